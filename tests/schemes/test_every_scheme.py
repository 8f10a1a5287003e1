"""What must hold for every registered scheme: one that enters the registry enters these tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes, trials
from tests import oracles
from tests.problems import NUM_DRAFTS, NUM_ITEMS, PROBLEMS, logs, many
from tests.schemes.scheme_trials import (
    ALPHA,
    SCHEMES,
    TRIALS,
    WITHOUT_REPLACEMENT,
    compiled_trials,
    count_accepted,
    distribution_p_value,
    draw,
    has_iid_drafts,
    most_drafts,
    name_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

MANY = 200

CASES = [
    (scheme, num_drafts)
    for scheme in SCHEMES
    for num_drafts in ((1,) if scheme.max_drafts == 1 else (1, NUM_DRAFTS))
]
each_case = pytest.mark.parametrize(("scheme", "num_drafts"), CASES, ids=name_of)
each_problem = pytest.mark.parametrize("problem", PROBLEMS)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)


@each_case
@each_problem
def test_token_and_drafts_have_their_distributions_and_acceptance_is_exact(
    scheme, num_drafts, problem
):
    p, q = PROBLEMS[problem]
    drafts, tokens = draw(scheme, num_drafts, p, q)
    assert drafts.min() >= 0 and drafts.max() < NUM_ITEMS and (p[drafts] > 0).all()
    assert distribution_p_value(tokens, q) > ALPHA
    if scheme.samples_drafts:
        assert distribution_p_value(drafts[:, 0], p) > ALPHA
    else:
        assert (drafts == drafts[0]).all()
    exact = float(scheme.acceptance(logs(p), logs(q), num_drafts))
    assert oracles.binomial(count_accepted(drafts, tokens), TRIALS, exact) > ALPHA


@each_case
def test_many_random_problems(scheme, num_drafts):
    """Distribution, acceptance and optimum on 200 problems of ten kinds.

    Zeros, ties, equal and disjoint distributions, one token, two tokens.
    """
    p, q = many(MANY)
    log_p, log_q = jnp.asarray(logs(p)), jnp.asarray(logs(q))
    count = 4000
    keys = jax.random.split(jax.random.key(11), count)
    run_trials = compiled_trials(scheme, num_drafts)

    def for_all(function):
        return jax.jit(lambda p, q: jax.lax.map(lambda pair: function(*pair), (p, q)))

    drafts, tokens = for_all(lambda p, q: run_trials(keys, p, q))(log_p, log_q)
    drafts, tokens = np.asarray(drafts), np.asarray(tokens)
    exact = for_all(lambda p, q: scheme.acceptance(p, q, num_drafts))(log_p, log_q)
    optimum = for_all(lambda p, q: bounds.optimum_iid(p, q, num_drafts))(log_p, log_q)
    for m in range(MANY):
        assert distribution_p_value(tokens[m], q[m]) > ALPHA / 50, m
        num_accepted = count_accepted(drafts[m], tokens[m])
        assert oracles.binomial(num_accepted, count, float(exact[m])) > ALPHA / 50, m
    if has_iid_drafts(scheme):
        assert (np.asarray(exact) <= np.asarray(optimum) + 2e-6).all()


@pytest.mark.parametrize("name", ["gls", "gls_strong", "poisson", "naive"])
def test_iid_drafts_are_independent(name):
    p, q = PROBLEMS["plain"]
    drafts, _ = draw(schemes.get(name), NUM_DRAFTS, p, q)
    for first, second in ((0, 1), (2, 3)):
        pairs = drafts[:, first] * NUM_ITEMS + drafts[:, second]
        counts = np.bincount(pairs, minlength=NUM_ITEMS**2)
        assert oracles.chi_square(counts, np.outer(p, p).ravel()) > ALPHA


@pytest.mark.parametrize("name", WITHOUT_REPLACEMENT)
def test_drafts_without_replacement_are_distinct_and_have_their_distribution(name):
    p, q = PROBLEMS["plain"]
    drafts, _ = draw(schemes.get(name), NUM_DRAFTS, p, q)
    assert all(len(set(row)) == NUM_DRAFTS for row in drafts[:1000].tolist())
    pairs = drafts[:, 0] * NUM_ITEMS + drafts[:, 1]
    counts = np.bincount(pairs, minlength=NUM_ITEMS**2)
    expected = np.outer(p, p) / (1 - p)[:, None] * (1 - np.eye(NUM_ITEMS))
    assert oracles.chi_square(counts, expected.ravel()) > ALPHA


@each_scheme
def test_active_drafts_do_not_change_the_distribution(scheme):
    """Whichever drafts are active (fixed beforehand), also none, the emitted token is drawn from q."""
    p, q = PROBLEMS["plain"]
    num_drafts = most_drafts(scheme)

    def trial(key, active):
        drafts = scheme.propose(key, logs(p), num_drafts)
        return scheme.verify(key, drafts, logs(p), logs(q), active)

    run = jax.jit(jax.vmap(trial, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(3), TRIALS)
    none = np.zeros(num_drafts, bool)
    every_other = np.arange(num_drafts) % 2 == 1
    for active in (none, ~none, every_other):
        assert distribution_p_value(np.asarray(run(keys, active)), q) > ALPHA


@each_scheme
def test_claimed_invariance_holds(scheme):
    check_invariance(scheme)


def test_a_false_invariance_is_caught():
    """GLS reads the active set: strong invariance would be a false claim that the test sees."""
    claims_too_much = dataclasses.replace(schemes.get("gls"), invariance="strong")
    with pytest.raises(AssertionError):
        check_invariance(claims_too_much)


def check_invariance(scheme):
    """Conditional: same drafts from other distributions, same token. Strong: whatever the drafts."""
    num_drafts = most_drafts(scheme)
    (p, q), (other_p, _) = PROBLEMS["plain"], PROBLEMS["peaked"]
    verify = jax.jit(jax.vmap(scheme.verify, in_axes=(0, 0, None, None, None)))
    # Some of as many draws as elsewhere, which are compiled already.
    keys = jax.random.split(jax.random.key(5), TRIALS)[:5000]
    drafts = draw(scheme, num_drafts, p, q, seed=5)[0][:5000]
    all_active = np.ones(num_drafts, bool)
    tokens = verify(keys, drafts, logs(p), logs(q), all_active)
    with_other_p = verify(keys, drafts, logs(other_p), logs(q), all_active)
    assert (scheme.invariance != "none") == bool((tokens == with_other_p).all())
    if scheme.invariance == "strong":
        first_active = np.arange(num_drafts) == 0
        reversed_drafts = drafts[:, ::-1]
        with_other_drafts = verify(keys, reversed_drafts, logs(other_p), logs(q), first_active)
        np.testing.assert_array_equal(tokens, with_other_drafts)


@each_scheme
def test_drafts_are_prefix_stable(scheme):
    keys = jax.random.split(jax.random.key(1), 500)
    counts = (1,) if scheme.max_drafts == 1 else (1, 2, NUM_ITEMS - 1, NUM_ITEMS)

    def propose_all(key, log_p):
        return [scheme.propose(key, log_p, k) for k in counts]

    run = jax.jit(jax.vmap(propose_all, in_axes=(0, None)))
    for problem in ("plain", "fewer items than drafts"):
        lists = run(keys, logs(PROBLEMS[problem][0]))
        for k, drafts in zip(counts, lists, strict=True):
            np.testing.assert_array_equal(drafts, lists[-1][:, :k])


# Of the schemes without separate trials, whose trials call `propose` and `verify`, one for each
# number of drafts.
WITH_TRIALS = [s for s in SCHEMES if s.trials is not None or s.name in ("minhash", "optimal")]


@pytest.mark.parametrize("scheme", WITH_TRIALS, ids=name_of)
def test_trials_are_propose_and_verify(scheme):
    """A Monte Carlo trial draws the noise of the scheme itself: trial by trial the same outcome."""
    num_drafts = most_drafts(scheme)
    # Some of as many draws as elsewhere, which are compiled already.
    keys = jax.random.split(jax.random.key(0), TRIALS)[:4000]

    def trial(key, log_p, log_q):
        return scheme.accepted(key, log_p, log_q, num_drafts)

    run = jax.jit(jax.vmap(trial, in_axes=(0, None, None)))
    for p, q in PROBLEMS.values():
        accepted = np.asarray(run(keys, logs(p), logs(q)))
        for k in {1, num_drafts}:
            drafts, tokens = draw(scheme, k, p, q)
            expected = (drafts[:4000] == tokens[:4000, None]).any(1)
            np.testing.assert_array_equal(accepted[:, k - 1], expected)
        # A longer list accepts no less, where the target does not change with it.
        grows = (accepted[:, :-1] <= accepted[:, 1:]).all()
        assert grows or scheme.name.startswith("gls") or scheme.invariance != "strong"


@each_scheme
def test_bounds_hold(scheme):
    """bound <= acceptance, and acceptance <= optimum for i.i.d. drafts, on every problem and K."""
    for p, q in PROBLEMS.values():
        for k in range(1, most_drafts(scheme) + 1):
            exact = float(scheme.acceptance(logs(p), logs(q), k))
            if scheme.exact.bound is not None:
                assert exact >= float(scheme.exact.bound(logs(p), logs(q), k)) - 2e-6
            # Without replacement drafts are not i.i.d.; the acceptance may and does exceed that.
            if has_iid_drafts(scheme):
                assert exact <= float(bounds.optimum_iid(logs(p), logs(q), k)) + 2e-6


@each_scheme
def test_acceptance_under_jit_vmap_grad(scheme):
    k = most_drafts(scheme)
    log_p = jnp.stack([logs(p) for p, _ in PROBLEMS.values()])
    log_q = jnp.stack([logs(q) for _, q in PROBLEMS.values()])
    one_by_one = [scheme.acceptance(p, q, k) for p, q in zip(log_p, log_q, strict=True)]
    value_and_slopes = jax.value_and_grad(lambda p, q: scheme.acceptance(p, q, k), argnums=(0, 1))
    batch, slopes = jax.jit(jax.vmap(value_and_slopes))(log_p, log_q)
    np.testing.assert_allclose(batch, jnp.stack(one_by_one), atol=1e-6)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


@each_scheme
def test_gradient_is_the_derivative(scheme):
    """Against central differences in float64, along softmax directions, away from ties."""
    k = most_drafts(scheme)
    with jax.enable_x64(True):
        origin, direction = np.random.default_rng(8).normal(size=(2, 2, NUM_ITEMS))

        def value(step):
            log_p, log_q = jax.nn.log_softmax(origin + step * direction, axis=-1)
            return scheme.acceptance(log_p, log_q, k)

        value_and_slope = jax.jit(jax.value_and_grad(value))  # one compilation for both
        before, _ = value_and_slope(jnp.asarray(-1e-5))
        _, slope = value_and_slope(jnp.asarray(0.0))
        after, _ = value_and_slope(jnp.asarray(1e-5))
        assert float(slope) == pytest.approx(float(after - before) / 2e-5, rel=1e-5, abs=1e-8)


@each_scheme
def test_simulated_acceptance_agrees_with_the_exact_one(scheme):
    log_p, log_q = (logs(probs) for probs in PROBLEMS["plain"])
    k, num_trials = most_drafts(scheme), 100_000
    estimate = trials.acceptance(
        jax.random.key(7), log_p, log_q, scheme=scheme, num_drafts=k, num_trials=num_trials
    )
    num_accepted = round(float(estimate.mean) * num_trials)
    exact = float(scheme.acceptance(log_p, log_q, k))
    assert oracles.binomial(num_accepted, num_trials, exact) > ALPHA


# Drafts with different distributions

DIVERSE = [scheme for scheme in SCHEMES if scheme.diverse]


@pytest.mark.parametrize("scheme", [s for s in DIVERSE if s.max_drafts is None], ids=name_of)
def test_diverse_drafts_have_their_distributions_and_acceptance_is_exact(scheme):
    """One distribution has zeros. The curve's K uses the first K rows."""
    p = np.stack([PROBLEMS[name][0] for name in ("plain", "peaked", "zeros in p")])
    q = PROBLEMS["flat"][1]
    drafts, tokens = draw(scheme, 3, p, q)
    for k in range(3):
        assert distribution_p_value(drafts[:, k], p[k]) > ALPHA
    assert distribution_p_value(tokens, q) > ALPHA
    curve = scheme.acceptance_curve(logs(p), logs(q), (1, 2, 3))
    assert oracles.binomial(count_accepted(drafts, tokens), TRIALS, float(curve[2])) > ALPHA
    first_two = float(scheme.acceptance(logs(p[:2]), logs(q), 2))
    assert float(curve[1]) == pytest.approx(first_two, abs=1e-6)


@pytest.mark.parametrize("scheme", DIVERSE, ids=name_of)
def test_equal_rows_are_one_distribution(scheme):
    k = most_drafts(scheme)
    for p, q in PROBLEMS.values():
        rows = np.tile(logs(p), (k, 1))
        from_rows = float(scheme.acceptance(rows, logs(q), k))
        from_one = float(scheme.acceptance(logs(p), logs(q), k))
        assert from_rows == pytest.approx(from_one, abs=1e-6)
