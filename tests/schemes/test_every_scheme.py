"""What every registered scheme must stand: a scheme enters the registry and with it these tests.

All keys are fixed. Each statistical test fails a correct scheme with probability at most ALPHA for another key; there
are fewer than 700 of them. The one over MANY problems makes fewer than 12,000 tests at ALPHA / 50 each: the suite's
false-failure rate is below 1e-6.
"""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, races, sampling, schemes, trials
from tests import oracles
from tests.problems import NUM_DRAFTS, NUM_ITEMS, PROBLEMS, logs, many

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALPHA = 1e-9
TRIALS = 40_000

SCHEMES = [schemes.get(name) for name in schemes.NAMES]
WITHOUT_REPLACEMENT = ("gumbel_topk", "specinfer_wor")
CASES = [
    (scheme, k) for scheme in SCHEMES for k in ((1,) if scheme.max_drafts == 1 else (1, NUM_DRAFTS))
]


@cache
def simulator(scheme, num_drafts):
    """Drafts `[T, K]` and tokens `[T]` of many keys; compiled once a scheme."""

    def trial(key, log_p, log_q):
        drafts = scheme.propose(key, log_p, num_drafts)
        return drafts, scheme.verify(key, drafts, log_p, log_q)

    return jax.jit(jax.vmap(trial, in_axes=(0, None, None)))


def simulate(scheme, num_drafts, p, q, seed=0, count=TRIALS):
    keys = jax.random.split(jax.random.key(seed), count)
    drafts, tokens = simulator(scheme, num_drafts)(keys, logs(p), logs(q))
    return np.asarray(drafts), np.asarray(tokens)


def law_p_value(tokens, law):
    return oracles.chi_square(np.bincount(tokens, minlength=NUM_ITEMS), law)


each_case = pytest.mark.parametrize(
    ("scheme", "num_drafts"), CASES, ids=lambda x: getattr(x, "name", x)
)
each_problem = pytest.mark.parametrize("problem", PROBLEMS)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda x: x.name)


@each_case
@each_problem
def test_laws_of_token_and_first_draft_and_exact_acceptance(scheme, num_drafts, problem):
    p, q = PROBLEMS[problem]
    drafts, tokens = simulate(scheme, num_drafts, p, q)
    assert drafts.min() >= 0 and drafts.max() < NUM_ITEMS and (p[drafts] > 0).all()
    assert law_p_value(tokens, q) > ALPHA
    assert law_p_value(drafts[:, 0], p) > ALPHA
    hits = int((drafts == tokens[:, None]).any(1).sum())
    exact = float(scheme.acceptance(logs(p), logs(q), num_drafts))
    assert oracles.binomial(hits, TRIALS, exact) > ALPHA


MANY = 200


@each_case
def test_many_random_problems(scheme, num_drafts):
    """Law, acceptance and order on 200 problems of ten kinds: zeros, ties, equal and disjoint laws, one item, two."""
    p, q = many(MANY)
    count = 1000 if scheme.name == "optimal" else 4000
    keys = jax.random.split(jax.random.key(11), count)
    simulate_all = jax.jit(
        lambda p, q: jax.lax.map(lambda pair: simulator(scheme, num_drafts)(keys, *pair), (p, q))
    )
    drafts, tokens = (np.asarray(x) for x in simulate_all(logs(p), logs(q)))
    both = jnp.asarray(logs(p)), jnp.asarray(logs(q))
    exact = jax.jit(
        lambda laws: jax.lax.map(lambda pair: scheme.acceptance(*pair, num_drafts), laws)
    )(both)
    best = jax.jit(
        lambda laws: jax.lax.map(lambda pair: bounds.optimum_iid(*pair, num_drafts), laws)
    )(both)
    for m in range(MANY):
        assert law_p_value(tokens[m], q[m]) > ALPHA / 50, m
        hits = int((drafts[m] == tokens[m][:, None]).any(1).sum())
        assert oracles.binomial(hits, count, float(exact[m])) > ALPHA / 50, m
    if scheme.name not in WITHOUT_REPLACEMENT:
        assert (np.asarray(exact) <= np.asarray(best) + 2e-6).all()


@pytest.mark.parametrize("name", ["gls", "gls_strong", "poisson", "naive"])
def test_iid_drafts_are_independent(name):
    """Pairs of drafts against the product law."""
    p, q = PROBLEMS["plain"]
    drafts, _ = simulate(schemes.get(name), NUM_DRAFTS, p, q)
    for first, second in ((0, 1), (2, 3)):
        joint = np.bincount(
            drafts[:, first] * NUM_ITEMS + drafts[:, second], minlength=NUM_ITEMS**2
        )
        assert oracles.chi_square(joint, np.outer(p, p).ravel()) > ALPHA


@pytest.mark.parametrize("name", WITHOUT_REPLACEMENT)
def test_drafts_without_replacement_are_distinct_and_have_their_law(name):
    p, q = PROBLEMS["plain"]
    drafts, _ = simulate(schemes.get(name), NUM_DRAFTS, p, q)
    assert all(len(set(row)) == NUM_DRAFTS for row in drafts[:1000].tolist())
    joint = np.bincount(drafts[:, 0] * NUM_ITEMS + drafts[:, 1], minlength=NUM_ITEMS**2)
    law = np.outer(p, p) / (1 - p)[:, None] * (1 - np.eye(NUM_ITEMS))
    assert oracles.chi_square(joint, law.ravel()) > ALPHA


@each_scheme
def test_active_drafts_do_not_change_the_law(scheme):
    """Whichever drafts are in play (fixed beforehand), also none, the emitted token has law q."""
    p, q = PROBLEMS["plain"]
    num_drafts = scheme.max_drafts or NUM_DRAFTS

    def trial(key, active):
        drafts = scheme.propose(key, logs(p), num_drafts)
        return scheme.verify(key, drafts, logs(p), logs(q), active)

    run = jax.jit(jax.vmap(trial, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(3), TRIALS)
    for active in (
        np.zeros(num_drafts, bool),
        np.ones(num_drafts, bool),
        np.arange(num_drafts) % 2 == 1,
    ):
        assert law_p_value(np.asarray(run(keys, active)), q) > ALPHA


@each_scheme
def test_claimed_invariance_holds(scheme):
    """Conditional: other draft laws, same drafts, same token. Strong: other drafts and other active sets as well."""
    num_drafts = scheme.max_drafts or NUM_DRAFTS
    (p, q), (other, _) = PROBLEMS["plain"], PROBLEMS["peaked"]
    verify = jax.jit(jax.vmap(scheme.verify, in_axes=(0, 0, None, None, None)))
    keys = jax.random.split(jax.random.key(5), TRIALS)[:5000]
    drafts = simulate(scheme, num_drafts, p, q, seed=5)[0][
        :5000
    ]  # the number that is compiled already
    everyone = np.ones(num_drafts, bool)
    tokens = verify(keys, drafts, logs(p), logs(q), everyone)
    assert (scheme.invariance != "none") == bool(
        (tokens == verify(keys, drafts, logs(other), logs(q), everyone)).all()
    )
    if scheme.invariance == "strong":
        first_only = np.arange(num_drafts) == 0
        np.testing.assert_array_equal(
            tokens, verify(keys, drafts[:, ::-1], logs(other), logs(q), first_only)
        )


@each_scheme
def test_drafts_are_prefix_stable(scheme):
    keys = jax.random.split(jax.random.key(1), 500)
    counts = (1,) if scheme.max_drafts == 1 else (1, 2, NUM_ITEMS - 1, NUM_ITEMS)
    propose = jax.jit(
        jax.vmap(lambda key, p: [scheme.propose(key, p, k) for k in counts], in_axes=(0, None))
    )
    for name in ("plain", "fewer items than drafts"):
        lists = propose(keys, logs(PROBLEMS[name][0]))
        for k, drafts in zip(counts, lists, strict=True):
            np.testing.assert_array_equal(drafts, lists[-1][:, :k])


@pytest.mark.parametrize(
    "scheme",
    [s for s in SCHEMES if s.trials is not None or s.name in ("minhash", "optimal")],
    ids=lambda x: x.name,
)
def test_hits_are_propose_and_verify(scheme):
    """The Monte Carlo shortcut draws the same clocks as the scheme itself: trial by trial the same outcome.

    Of the schemes without one, whose hits are put together from the two, there is one for each number of drafts.
    """
    most = scheme.max_drafts or NUM_DRAFTS
    count = (
        4000 if scheme.name == "optimal" else TRIALS
    )  # the number that is compiled already; plans take their time
    keys = jax.random.split(jax.random.key(0), count)[:4000]
    hits = jax.jit(
        jax.vmap(lambda key, p, q: scheme.accepted(key, p, q, most), in_axes=(0, None, None))
    )
    for p, q in PROBLEMS.values():
        got = np.asarray(hits(keys, logs(p), logs(q)))
        for k in {1, most}:
            drafts, tokens = (x[:4000] for x in simulate(scheme, k, p, q, count=count))
            np.testing.assert_array_equal(got[:, k - 1], (drafts == tokens[:, None]).any(1))
        # A longer list hits no less, where the target does not change with it.
        assert (
            (got[:, :-1] <= got[:, 1:]).all()
            or scheme.name.startswith("gls")
            or scheme.invariance != "strong"
        )


@each_scheme
def test_bounds_hold(scheme):
    """bound <= acceptance, and acceptance <= optimum for i.i.d. drafts, on every problem and K."""
    for p, q in PROBLEMS.values():
        for k in range(1, (scheme.max_drafts or NUM_DRAFTS) + 1):
            exact = float(scheme.acceptance(logs(p), logs(q), k))
            if scheme.exact.bound is not None:
                assert exact >= float(scheme.exact.bound(logs(p), logs(q), k)) - 2e-6
            if (
                scheme.name not in WITHOUT_REPLACEMENT
            ):  # else the drafts are not i.i.d., and acceptance may and does exceed that optimum
                assert exact <= float(bounds.optimum_iid(logs(p), logs(q), k)) + 2e-6


@each_scheme
def test_acceptance_under_jit_vmap_grad(scheme):
    k = scheme.max_drafts or NUM_DRAFTS
    laws_p = jnp.stack([logs(p) for p, _ in PROBLEMS.values()])
    laws_q = jnp.stack([logs(q) for _, q in PROBLEMS.values()])
    single = jnp.stack([scheme.acceptance(p, q, k) for p, q in zip(laws_p, laws_q, strict=True)])
    value_and_slopes = jax.value_and_grad(lambda p, q: scheme.acceptance(p, q, k), argnums=(0, 1))
    batch, slopes = jax.jit(jax.vmap(value_and_slopes))(laws_p, laws_q)
    np.testing.assert_allclose(batch, single, atol=1e-6)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


@each_scheme
def test_gradient_is_the_derivative(scheme):
    """Against central differences in float64, along softmax directions, away from ties; one compilation for both."""
    k = scheme.max_drafts or NUM_DRAFTS
    with jax.enable_x64(True):
        rng = np.random.default_rng(8)
        at, to = rng.normal(size=(2, 2, NUM_ITEMS))

        def value(step):
            laws = jax.nn.log_softmax(at + step * to, axis=-1)
            return scheme.acceptance(laws[0], laws[1], k)

        both = jax.jit(jax.value_and_grad(value))
        (before, _), (_, slope), (after, _) = (
            both(jnp.asarray(step)) for step in (-1e-5, 0.0, 1e-5)
        )
        assert float(slope) == pytest.approx(float(after - before) / 2e-5, rel=1e-5, abs=1e-8)


@each_scheme
def test_trials_agree_with_acceptance(scheme):
    p, q = PROBLEMS["plain"]
    k = scheme.max_drafts or NUM_DRAFTS
    got = trials.acceptance(
        jax.random.key(7), logs(p), logs(q), scheme=scheme, num_drafts=k, num_trials=100_000
    )
    exact = float(scheme.acceptance(logs(p), logs(q), k))
    assert oracles.binomial(round(float(got.mean) * 100_000), 100_000, exact) > ALPHA


# Diverse drafts


@pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES if s.diverse and s.max_drafts is None], ids=lambda x: x.name
)
def test_diverse_drafts(scheme):
    """One law a draft, one of them with zeros: law of every draft, law of the token, exact acceptance, prefix curve."""
    p = np.stack([PROBLEMS[name][0] for name in ("plain", "peaked", "zeros in p")])
    q = PROBLEMS["flat"][1]
    drafts, tokens = simulate(scheme, 3, p, q)
    for k in range(3):
        assert law_p_value(drafts[:, k], p[k]) > ALPHA
    assert law_p_value(tokens, q) > ALPHA
    exact = scheme.acceptance_curve(logs(p), logs(q), (1, 2, 3))
    hits = int((drafts == tokens[:, None]).any(1).sum())
    assert oracles.binomial(hits, TRIALS, float(exact[2])) > ALPHA
    assert float(exact[1]) == pytest.approx(
        float(scheme.acceptance(logs(p[:2]), logs(q), 2)), abs=1e-6
    )


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.diverse], ids=lambda x: x.name)
def test_equal_laws_are_not_diverse(scheme):
    k = scheme.max_drafts or NUM_DRAFTS
    for p, q in PROBLEMS.values():
        rows = np.tile(logs(p), (k, 1))
        assert float(scheme.acceptance(rows, logs(q), k)) == pytest.approx(
            float(scheme.acceptance(logs(p), logs(q), k)), abs=1e-6
        )


# Bad input


@each_scheme
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, p, q: s.acceptance(p, q, 0), "num_drafts: expected an int of at least 1, got 0"),
        (
            lambda s, p, q: s.propose(jax.random.key(0), p, -1),
            "num_drafts: expected an int of at least 1, got -1",
        ),
        (lambda s, p, q: s.acceptance(p, q[:-1], 1), "same number of categories, got 6 and 5"),
        (
            lambda s, p, q: s.acceptance(p[None, None], q, 1),
            "log_p: expected shape|draws its list from one distribution",
        ),
        (
            lambda s, p, q: s.acceptance(p, q[None], 1),
            r"log_q: expected shape \[N\] with N >= 1, got \[1, 6\]",
        ),
        (
            lambda s, p, q: s.acceptance(np.exp(p), q, 1),
            "log_p: expected log-probabilities of at most 0, got 0.",
        ),
        (lambda s, p, q: s.acceptance("p", q, 1), "log_p: expected an array of floats"),
        (
            lambda s, p, q: s.acceptance(p.astype(complex), q, 1),
            "log_p: expected an array of floats",
        ),
        (lambda s, p, q: s.propose(7, p, 1), "typed key"),
        (
            lambda s, p, q: s.verify(jax.random.key(0), jnp.zeros((1, 1), int), p, q),
            "drafts: expected integers",
        ),
        (
            lambda s, p, q: s.verify(jax.random.key(0), jnp.zeros(1), p, q),
            "drafts: expected integers",
        ),
        (
            lambda s, p, q: s.verify(jax.random.key(0), jnp.full(1, 6), p, q),
            "drafts: expected tokens within 0..5",
        ),
        (
            lambda s, p, q: s.verify(jax.random.key(0), jnp.full(1, -1), p, q),
            "drafts: expected tokens within 0..5",
        ),
        (
            lambda s, p, q: s.verify(jax.random.key(0), jnp.zeros(1, int), p, q, jnp.ones(2, bool)),
            "active: expected",
        ),
        (
            lambda s, p, q: s.verify(jax.random.key(0), jnp.zeros(1, int), p, q, jnp.ones(1)),
            "active: expected bool",
        ),
        (
            lambda s, p, q: jax.jit(s.acceptance)(p, q, 1),
            "num_drafts: expected an int .* got a traced value",
        ),
    ],
)
def test_bad_input(scheme, call, message):
    p, q = (logs(law) for law in PROBLEMS["plain"])
    with pytest.raises(ValueError, match=message) as caught:
        call(scheme, p, q)
    assert "\n" not in str(caught.value)


def test_limits_and_names():
    p, q = (logs(law) for law in PROBLEMS["plain"])
    with pytest.raises(ValueError, match="scheme 'single' takes at most 1, got 2"):
        schemes.get("single").acceptance(p, q, 2)
    with pytest.raises(ValueError, match=r"expected one of gls, gls_strong, .* got 'gumbel'"):
        schemes.get("gumbel")
    for name in ("poisson", "gumbel_topk"):
        with pytest.raises(
            ValueError, match=f"scheme '{name}' draws its list from one distribution"
        ):
            schemes.get(name).acceptance(np.stack([p, p]), q, 2)
    with pytest.raises(ValueError, match=r"expected 2 rows \(num_drafts\), got shape \[3, 6\]"):
        schemes.get("gls").acceptance(np.stack([p, p, p]), q, 2)


# Planted defects: the tests above must see them.


def fails(scheme, num_drafts=NUM_DRAFTS, problem="plain"):
    """What the tests of law and acceptance say of a scheme: the smallest p-value."""
    p, q = PROBLEMS[problem]
    drafts, tokens = simulate(scheme, num_drafts, p, q)
    hits = int((drafts == tokens[:, None]).any(1).sum())
    exact = float(scheme.acceptance(logs(p), logs(q), num_drafts))
    return min(law_p_value(tokens, q), oracles.binomial(hits, TRIALS, exact)) < ALPHA


def fresh_token_on_rejection(key, drafts, log_p, log_q, active):
    """The public decoder's bias: where no draft matches, a fresh sample of q instead of the coupled token."""
    coupled = schemes.get("gls").verification.verify(key, drafts, log_p, log_q, active)
    clocks = races.exponentials(races.private_key(key), 1, log_q.shape[0])[0]
    fresh = races.winner(races.arrivals(clocks, log_q))
    return jnp.where(jnp.any(drafts == coupled), coupled, fresh)


def ratio_test_on_the_proposal_noise(key, drafts, log_p, log_q, active):
    """Acceptance and residual from the draft's own stream."""
    clocks = races.exponentials(key, 1, log_q.shape[0])[0]
    draft = drafts[0]
    accept = clocks[draft] > log_p[draft] - log_q[draft]
    residual = jnp.log(jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0))
    return jnp.where(accept, draft, races.winner(races.arrivals(clocks, residual)))


def proposal_noise_in_every_test(name):
    """The scheme itself, with the clocks that proposed the drafts in the place of every test's private noise."""
    scheme = schemes.get(name)

    def verify(key, drafts, log_p, log_q, active):
        streams = np.zeros(len(drafts), int) if scheme.ranked else np.arange(len(drafts))
        clocks = races.exponentials(key, len(drafts), log_q.shape[0])[streams, drafts]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(races, "uniforms", lambda _, count: -jnp.expm1(-clocks[:count]))
            return scheme.verification.verify(key, drafts, log_p, log_q, active)

    return verify


def drop_a_stream(key, drafts, log_p, log_q, active):
    clocks = races.exponentials(key, drafts.shape[0], log_q.shape[0])
    return sampling.target_of_list(clocks[:-1], log_q)


def wrong_clock(key, drafts, log_p, log_q, active):
    """The minimum over streams of S / p instead of S / q."""
    return sampling.target_of_list(races.exponentials(key, drafts.shape[0], log_q.shape[0]), log_p)


@pytest.mark.parametrize(
    ("name", "defect"),
    [
        ("gls", fresh_token_on_rejection),
        ("single", ratio_test_on_the_proposal_noise),
        ("gls", drop_a_stream),
        ("gls", wrong_clock),
        *(
            (scheme.name, proposal_noise_in_every_test(scheme.name))
            for scheme in SCHEMES
            if scheme.needs_draft_probs
        ),
    ],
)
def test_planted_defects_are_caught(name, defect):
    sound = schemes.get(name)
    num_drafts = sound.max_drafts or NUM_DRAFTS
    problem = (
        "peaked" if name == "optimal" else "plain"
    )  # where everything is accepted no test can be wrong
    assert not fails(sound, num_drafts, problem)
    assert fails(dataclasses.replace(sound, verify_fn=defect), num_drafts, problem)


def test_a_false_invariance_is_caught():
    """GLS looks at the active set: claiming strong invariance for it would be a lie that the test sees."""
    with pytest.raises(AssertionError):
        test_claimed_invariance_holds(dataclasses.replace(schemes.get("gls"), invariance="strong"))
