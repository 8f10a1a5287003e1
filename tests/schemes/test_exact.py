"""Exact acceptances against the definition: quadrature, convolution, linear programs and brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes, trials
from gls_jax.schemes import gls, gumbel_topk
from tests import oracles
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {name: laws for name, laws in PROBLEMS.items() if name != "rare target"}
GLS, TOPK, POISSON = (schemes.get(name) for name in ("gls", "gumbel_topk", "poisson"))


def pairs(count, items, seed=0, spread=1.0):
    return np.random.default_rng(seed).dirichlet(np.full(items, spread), (count, 2))


@pytest.mark.parametrize("problem", SMALL)
def test_gls_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    for k in (1, 2, 5):
        assert float(GLS.acceptance(logs(p), logs(q), k)) == pytest.approx(
            oracles.gls_acceptance([p] * k, q), abs=1e-6
        )


def test_gls_diverse_is_its_definition():
    q = PROBLEMS["flat"][1]
    for names in (("plain", "peaked"), ("zeros in p", "plain", "point mass p")):
        laws = np.stack([PROBLEMS[name][0] for name in names])
        got = float(GLS.acceptance(logs(laws), logs(q), len(laws)))
        assert got == pytest.approx(oracles.gls_acceptance(laws, q), abs=1e-6)


def test_gls_in_float64_has_eight_digits_more():
    p, q = PROBLEMS["plain"]
    with jax.enable_x64(True):
        for k in (1, 3):
            got = float(GLS.acceptance(jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q)), k))
            assert got == pytest.approx(oracles.gls_acceptance([p] * k, q), abs=1e-9)
        got = GLS.acceptance(jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q)), 1)
        assert got.dtype == jnp.float64
        assert float(got) == pytest.approx((q / oracles.rates(p, q)).sum(), abs=1e-12)


@pytest.mark.parametrize("diverse", [False, True])
def test_gls_agrees_with_a_million_brute_force_trials(diverse):
    """Within 4 standard errors: for another generator a correct value fails with probability 6e-5 a check."""
    rng = np.random.default_rng(11)
    p, q = rng.dirichlet(np.ones(10), 4), rng.dirichlet(np.ones(10))
    laws = p if diverse else np.stack([p[0]] * 4)
    exact = float(GLS.acceptance(logs(laws if diverse else p[0]), logs(q), 4))
    hits = oracles.gls_trials(laws, q, 1_000_000, rng)
    assert abs(hits / 1e6 - exact) < 4 * np.sqrt(exact * (1 - exact) / 1e6)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_gls_equals_the_bound_where_the_lemma_is_tight(k):
    """K = 1, p = q, and p a point mass: to 1e-6."""
    for items in (1, 2, 10, 1000):
        for p, q in pairs(10, items, seed=items):
            mass = np.eye(items)[np.argmax(q)]
            for draft in ([p] if k == 1 else []) + [q, mass]:
                exact, bound = (
                    float(f(logs(draft), logs(q), k))
                    for f in (GLS.acceptance, bounds.list_matching)
                )
                assert exact == pytest.approx(bound, abs=1e-6)
    assert float(GLS.acceptance(logs(q), logs(q), k)) == pytest.approx(1, abs=1e-6)


def test_order_of_acceptances_on_a_thousand_pairs():
    """bound <= GLS, bound <= Poisson <= top-K, GLS and Poisson <= i.i.d. optimum, for K = 1..8; float32 slack 2e-6."""
    ks = tuple(range(1, 9))

    @jax.jit
    @jax.vmap
    def curves(pair):
        exact = [s.acceptance_curve(*pair, ks) for s in (GLS, POISSON, TOPK)]
        ends = [
            jnp.stack([f(*pair, k) for k in ks]) for f in (bounds.list_matching, bounds.optimum_iid)
        ]
        return (*exact, *ends)

    for items, spread in ((10, 1.0), (10, 0.3), (30, 0.1)):
        laws = logs(pairs(334, items, seed=items, spread=spread) + 1e-30)
        gls_, poisson, topk, bound, optimum = (np.asarray(x) for x in curves(laws))
        assert (gls_ >= bound - 2e-6).all() and (poisson >= bound - 2e-6).all()
        assert (topk >= poisson - 2e-6).all()
        assert (gls_ <= optimum + 2e-6).all() and (poisson <= optimum + 2e-6).all()
        for curve in (gls_, poisson, topk):
            assert (np.diff(curve, axis=1) >= -2e-6).all()  # more drafts never hurt


def test_gls_curve_is_its_points():
    p, q = (logs(law) for law in PROBLEMS["plain"])
    curve = GLS.acceptance_curve(p, q, (7, 1, 3))
    np.testing.assert_allclose(curve, [GLS.acceptance(p, q, k) for k in (7, 1, 3)], atol=5e-7)


def test_gls_active_streams():
    """J of K drafts in play: brute force (5 standard errors, 6e-7), and the strong bound below it."""
    rng = np.random.default_rng(2)
    p, q = PROBLEMS["plain"]
    clocks = rng.standard_exponential((400_000, 4, len(p)))
    target, drafts = (clocks.min(1) / q).argmin(-1), (clocks / p).argmin(-1)
    for active in (1, 2, 4):
        exact = float(gls.acceptance_active(logs(p), logs(q), active, 4))
        got = (drafts[:, :active] == target[:, None]).any(1).mean()
        assert abs(got - exact) < 5 * np.sqrt(exact * (1 - exact) / len(clocks))
        assert exact >= float(bounds.list_matching_strong(logs(p), logs(q), active, 4)) - 2e-6


def test_gls_large_k_and_vocabulary():
    """K = 1000 stays a probability; N = 20,000 agrees with the float64 run of the same formula to 1e-6."""
    p, q = (logs(law) for law in PROBLEMS["plain"])
    assert 0.99 < float(GLS.acceptance(p, q, 1000)) <= 1
    big = np.random.default_rng(0).normal(size=(2, 20_000)) * 2
    big = jax.nn.log_softmax(jnp.asarray(big, jnp.float32))
    low = np.asarray(GLS.acceptance_curve(*big, (1, 8)))
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(big, np.float64))
        wide = wide - jax.nn.logsumexp(wide, axis=-1, keepdims=True)
        high = np.asarray(GLS.acceptance_curve(wide[0], wide[1], (1, 8)))
    np.testing.assert_allclose(low, high, atol=1e-6)


@pytest.mark.parametrize("scheme", ["gls", "poisson", "gumbel_topk", "naive", "single"])
def test_extreme_logits(scheme):
    """Logits down to -1e4 and laws that float32 cannot tell from point masses: finite, within [0, 1]."""
    logits = jnp.asarray([[0.0, -1e4, -50, -80, -100], [-90.0, 0, -30, -1e4, -1e-3]])
    laws = jax.nn.log_softmax(logits)
    for p, q in ((laws[0], laws[1]), (laws[1], laws[0]), (laws[0], laws[0])):
        value = float(schemes.get(scheme).acceptance(p, q, 1))
        assert 0 <= value <= 1
    assert value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("problem", SMALL)
def test_topk_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    for k in (1, 2, 4):
        assert float(TOPK.acceptance(logs(p), logs(q), k)) == pytest.approx(
            oracles.topk_acceptance(p, q, k), abs=1e-6
        )


def test_topk_interval_holds_the_exact_value(monkeypatch):
    """The vocabulary evaluation, against the exact one on laws small enough for both; the interval is not vacuous."""
    rng = np.random.default_rng(4)
    ks = (1, 2, 4, 8)
    for spread, similar in ((2.0, 0.8), (3.0, 0.3), (0.5, 0.5)):
        z = rng.normal(size=(2, 480)) * spread
        z[1] = similar * z[0] + (1 - similar) * z[1]
        log_p, log_q = (np.asarray(x) for x in jax.nn.log_softmax(jnp.asarray(z, jnp.float32)))
        exact = gumbel_topk.acceptance_interval(log_p, log_q, ks)
        np.testing.assert_array_equal(exact.lower, exact.upper)
        with monkeypatch.context() as patch:
            patch.setattr(gumbel_topk, "_EXACT_ITEMS", 100)
            patch.setattr(gumbel_topk, "_HEAD", 48)
            ends = gumbel_topk.acceptance_interval(log_p, log_q, ks)
        assert (ends.lower <= exact.estimate + 2e-6).all() and (
            exact.estimate <= ends.upper + 2e-6
        ).all()
        assert (ends.upper - ends.lower < 0.05).all()
        np.testing.assert_allclose(ends.estimate, exact.estimate, atol=5e-3)


def test_topk_of_a_vocabulary_fits_in_memory():
    """N = 151,936: the compiled program needs less than 1 GB beside its inputs; a narrow interval, right at K = 1."""
    z = np.random.default_rng(1).normal(size=(2, 151_936)) * 2.5
    laws = jax.nn.log_softmax(jnp.asarray([z[0], 0.8 * z[0] + 0.2 * z[1]], jnp.float32))
    compiled = (
        jax.jit(lambda p, q: gumbel_topk.acceptance_interval(p, q, (1, 8))).lower(*laws).compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9
    ends = compiled(*laws)
    assert (ends.upper - ends.lower < 0.02).all()
    gumbel = float(
        bounds.list_matching(*laws, 1)
    )  # K = 1: one race, all three schemes are the Gumbel coupling
    assert ends.lower[0] - 1e-4 <= gumbel <= ends.upper[0] + 1e-4
    assert float(ends.estimate[0]) == pytest.approx(gumbel, abs=2e-3)


def test_gls_memory_is_linear_in_the_items():
    """Compiled temporaries at N = 151,936 stay below 100 MB at any K, with and without the gradient."""
    laws = jax.ShapeDtypeStruct((151_936,), jnp.float32)
    for k in (2, 32):
        value = jax.jit(lambda p, q, k=k: GLS.acceptance(p, q, k)).lower(laws, laws).compile()
        assert value.memory_analysis().temp_size_in_bytes < 1e8
    slope = (
        jax.jit(jax.grad(lambda p, q: GLS.acceptance(p, q, 8), argnums=(0, 1)))
        .lower(laws, laws)
        .compile()
    )
    assert slope.memory_analysis().temp_size_in_bytes < 1e9


def test_poisson_is_its_formula():
    for p, q in PROBLEMS.values():
        for k in (1, 3):
            expected = (q * (1 - (1 - 1 / oracles.rates(p, q)) ** k)).sum()
            assert float(POISSON.acceptance(logs(p), logs(q), k)) == pytest.approx(
                expected, abs=1e-6
            )


def test_small_acceptances_keep_their_digits():
    """K = 1 at N = 150,000: GLS is the bound, to 1e-6 and, where the acceptance is 1e-4, to a part in a thousand."""
    rng = np.random.default_rng(5)
    for z in (rng.normal(size=(2, 150_000)) * 5, rng.normal(size=(2, 150_000)) * [[2.0], [0.0]]):
        laws = jax.nn.log_softmax(jnp.asarray(z, jnp.float32))
        exact, bound = float(GLS.acceptance(*laws, 1)), float(bounds.list_matching(*laws, 1))
        assert exact == pytest.approx(bound, abs=1e-6)
        assert exact == pytest.approx(bound, rel=1e-3)


def test_poisson_with_unlikely_drafts():
    """Large M: no cancellation in 1 - (1 - 1/M)^K, and never below the list matching bound."""
    p, q = np.array([1 - 1e-9, 1e-9]), np.array([1e-3, 1 - 1e-3])
    for k in (1000, 10_000):
        value, bound = (
            float(f(logs(p), logs(q), k)) for f in (POISSON.acceptance, bounds.list_matching)
        )
        assert value == pytest.approx(
            (q * (1 - (1 - 1 / oracles.rates(p, q)) ** k)).sum(), rel=1e-5
        )
        assert value >= bound - 1e-6


def test_topk_interval_of_tiny_probabilities():
    """Probabilities whose squares leave float32, and lists long enough to reach them; a head of 32 items."""
    p = np.full(76, 1e-19)
    p[:32] = (1 - 44e-19) / 32
    q = np.full(76, 0.0)
    q[:32], q[-1] = 0.1 / 32, 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gumbel_topk, "_HEAD", 32)
        patch.setattr(gumbel_topk, "_EXACT_ITEMS", 64)
        ends = gumbel_topk.acceptance_interval(logs(p), logs(q), (38,))
        patch.setattr(gumbel_topk, "_EXACT_ITEMS", 76)
        with jax.enable_x64(True), np.errstate(divide="ignore"):
            truth = float(gumbel_topk.acceptance_interval(np.log(p), np.log(q), (38,)).estimate[0])
    assert float(ends.lower[0]) - 1e-6 <= truth <= float(ends.upper[0]) + 1e-6


def test_topk_where_all_but_one_item_are_rare():
    """Ratios of e^69 and more, which matter once the likely item is in the list: never above the optimum."""
    log_p, log_q = logs([1, 1e-30, 1e-33, 1e-34]), logs([0.1, 0.2, 0.3, 0.4])
    # A match is a target 0 or 1, or one that overtakes 1 in the race for the second place: chance 1e-3 and 1e-4.
    assert float(TOPK.acceptance(log_p, log_q, 2)) == pytest.approx(
        0.1 + 0.2 + 1e-3 + 1e-4, abs=1e-5
    )
    assert (
        float(TOPK.acceptance(log_p, log_q, 2))
        <= float(bounds.optimum_distinct(log_p, log_q, 2)) + 1e-6
    )
    for method in ("noise", "inversion"):
        found = trials.acceptance(
            jax.random.key(1),
            log_p,
            log_q,
            scheme="gumbel_topk",
            num_drafts=2,
            num_trials=20_000,
            method=method,
        )
        assert oracles.binomial(round(float(found.mean) * 20_000), 20_000, 0.3011) > 1e-9


@pytest.mark.parametrize(
    ("name", "items"),
    [("gls", 1500), ("poisson", 1500), *(("gumbel_topk", n) for n in (512, 513, 1500))],
)
def test_gradients_on_a_cut_vocabulary_are_finite(name, items):
    """Top-k leaves most items impossible; ratios then reach the cap, and squares of small masses leave float32."""
    z = np.random.default_rng(0).normal(size=(2, items)) * 3
    z[:, items // 2 :] = -np.inf
    z[0, :3], z[1, 3:6] = (-60, -66, -75), (-60, -75, -np.inf)
    laws = jax.nn.log_softmax(jnp.asarray(z, jnp.float32))
    scheme = schemes.get(name)
    slopes = jax.jit(jax.grad(lambda p, q: scheme.acceptance(p, q, 4), argnums=(0, 1)))(*laws)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


def test_mixed_float_types_are_promoted():
    p, q = PROBLEMS["plain"]
    with jax.enable_x64(True):
        for scheme in (GLS, TOPK, POISSON):
            for laws in ((np.log(p), logs(q)), (logs(p), np.log(q))):
                assert scheme.acceptance(*laws, 2).dtype == jnp.float64


def test_the_lightest_items_are_impossible_everywhere():
    """Around the floor of 2e-35 the exact acceptance and the simulation agree on what can be drafted."""
    keys = jax.random.split(jax.random.key(0), 500)
    q = jnp.array([-jnp.inf, 0.0])
    for light, expected in ((-79.0, 1.0), (-81.0, 0.0), (-90.0, 0.0)):
        p = jnp.array([0.0, light])
        assert float(TOPK.acceptance(p, q, 2)) == expected
        assert (
            float(jax.vmap(lambda key, p=p: TOPK.accepted(key, p, q, 2)[1])(keys).mean())
            == expected
        )
        drafts = jax.vmap(lambda key, p=p: TOPK.propose(key, p, 2))(keys)
        assert bool((drafts[:, 1] == (1 if expected else 0)).all())
