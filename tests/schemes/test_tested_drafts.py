"""Schemes that test their drafts against the target: the exact values against lists, programs and definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, decomposition, schemes
from gls_jax.schemes import specinfer_wor, weighted_importance
from tests import oracles
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SINGLE, SPECINFER, WOR, SPECTR, IMPORTANCE, OPTIMAL = (
    schemes.get(name)
    for name in ("single", "specinfer", "specinfer_wor", "spectr", "weighted_importance", "optimal")
)
MATCH = jax.jit(weighted_importance._match, static_argnums=3)
EACH_PAIR = jax.jit(jax.vmap(jax.vmap(weighted_importance._wins, (None, None, 0)), (None, 0, None)))
each_problem = pytest.mark.parametrize("problem", PROBLEMS)


def pairs(count, items, seed=0, spread=1.0):
    return np.random.default_rng(seed).dirichlet(np.full(items, spread), (count, 2))


@each_problem
def test_recursive_rejection_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    for scheme, replaced in ((SPECINFER, False), (WOR, True)):
        got = scheme.acceptance_curve(logs(p), logs(q), (1, 2, 3, 4))
        for k in (1, 2, 3, 4):
            accepted, emitted = oracles.rejection([p] * k, q, replaced)
            assert float(got[k - 1]) == pytest.approx(accepted, abs=1e-6)
            np.testing.assert_allclose(emitted, q, atol=1e-9)
    assert float(SINGLE.acceptance(logs(p), logs(q), 1)) == pytest.approx(
        np.minimum(p, q).sum(), abs=1e-6
    )


def test_recursive_rejection_with_diverse_laws_is_its_definition():
    laws = np.stack([PROBLEMS[name][0] for name in ("plain", "zeros in p", "peaked", "flat")])
    for q in (PROBLEMS["flat"][1], PROBLEMS["disjoint"][1], laws[1]):
        accepted, emitted = oracles.rejection(list(laws), q)
        assert float(SPECINFER.acceptance(logs(laws), logs(q), 4)) == pytest.approx(
            accepted, abs=1e-6
        )
        np.testing.assert_allclose(emitted, q, atol=1e-9)


@each_problem
def test_kseq_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    got = SPECTR.acceptance_curve(logs(p), logs(q), (1, 2, 3, 4))
    for k in (1, 2, 3, 4):
        accepted, emitted = oracles.kseq(p, q, k)
        assert float(got[k - 1]) == pytest.approx(accepted, abs=1e-6)
        np.testing.assert_allclose(emitted, q, atol=1e-7)


def test_kseq_of_nearly_equal_laws():
    """On a flat slope the root is ill-defined, but the acceptance is not: as in float64, and above SpecInfer."""
    rng = np.random.default_rng(13)
    q = rng.dirichlet(np.ones(5), 1000)
    p = q * np.exp(0.25 * rng.normal(size=q.shape))
    p /= p.sum(1, keepdims=True)
    spectr, specinfer = (
        jax.vmap(lambda p, q, s=s: s.acceptance(p, q, 8))(logs(p), logs(q))
        for s in (SPECTR, SPECINFER)
    )
    assert bool((spectr >= specinfer - 2e-6).all())
    with jax.enable_x64(True):
        fine = jax.vmap(lambda p, q: SPECTR.acceptance(p, q, 8))(jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(spectr, fine, atol=3e-6)


# Without replacement: chains of refusals


def test_a_list_longer_than_its_law_is_the_whole_law():
    """Chains that run out of items, at any length, and K beyond N."""
    for p, q in pairs(20, 4, seed=3):
        p[0] = 0
        p /= p.sum()
        whole = oracles.rejection([p] * 4, q, True)[0]
        for k in (3, 4, 5, 9):
            assert float(WOR.acceptance(logs(p), logs(q), k)) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("light", [-79.5, -60.0, -20.0])
def test_the_lightest_items_are_drafted_without_replacement(light):
    """What is left when the heavy item is refused is renormalised from next to nothing; chance of failure 1e-9."""
    p, q = jnp.array([0.0, light, light - 0.4]), jnp.log(jnp.array([0.3, 0.3, 0.4]))
    for k in (2, 3):
        hits = jax.vmap(lambda key, k=k: WOR.accepted(key, p, q, k)[-1])(
            jax.random.split(jax.random.key(0), 20_000)
        )
        assert oracles.binomial(int(hits.sum()), 20_000, float(WOR.acceptance(p, q, k))) > 1e-9


def test_chains_estimate_is_unbiased():
    """Against the exact value, within 6 standard errors (false-failure rate 2e-9 a check)."""
    for seed, (p, q) in enumerate(pairs(3, 8, seed=4)):
        for k in (2, 5):
            got = specinfer_wor.acceptance_estimate(jax.random.key(seed), logs(p), logs(q), k, 4096)
            exact = float(WOR.acceptance(logs(p), logs(q), k))
            assert abs(float(got.mean) - exact) <= 6 * float(got.standard_error) + 2e-6
            assert float(got.standard_error) < 0.3 / math.sqrt(4096)
    large = logs(pairs(1, 3000, seed=5)[0])
    got = specinfer_wor.acceptance_estimate(jax.random.key(0), *large, 2, 512)
    exact = float(WOR.acceptance(*large, 2))
    assert abs(float(got.mean) - exact) <= 6 * float(got.standard_error) + 1e-5


def test_what_is_too_much_says_so():
    law = jnp.full(100, -math.log(100))
    with pytest.raises(
        ValueError,
        match=r"would enumerate 10.10 chains .* for 100 items and K=7.*acceptance_estimate",
    ):
        WOR.acceptance(law, law, 7)
    with pytest.raises(
        ValueError,
        match=r"optimal.* expected at most 12 items, got 100; schemes 'weighted_importance'",
    ):
        OPTIMAL.verify(jax.random.key(0), jnp.zeros(2, int), law, law)
    with pytest.raises(
        ValueError, match=r"laws of their own looks at 2.N sets, expected at most 12 items, got 100"
    ):
        OPTIMAL.acceptance(jnp.stack([law, law]), law, 2)
    wide = jnp.full(5000, -math.log(5000))
    with pytest.raises(
        ValueError,
        match=r"weighted_importance.*expected at most 4096 items, got 5000; trials.acceptance",
    ):
        IMPORTANCE.acceptance(wide, wide, 2)
    with pytest.raises(ValueError, match=r"num_chains: expected at least 2, got 1"):
        specinfer_wor.acceptance_estimate(jax.random.key(0), law, law, 2, 1)
    with pytest.raises(ValueError, match=r"free: expected an int within 1..15, got 16"):
        weighted_importance.truncated_at(16)
    assert float(OPTIMAL.acceptance(law, law, 5)) == 1  # the value is known at any size


@pytest.mark.parametrize(
    "name", ["single", "specinfer", "specinfer_wor", "spectr", "weighted_importance", "optimal"]
)
def test_impossible_drafts_are_refused(name):
    p, q = (logs(law) for law in PROBLEMS["zeros in p"])
    scheme = schemes.get(name)
    with pytest.raises(
        ValueError,
        match=r"drafts: expected tokens of positive probability under log_p .at least e.-80., got 2",
    ):
        scheme.verify(jax.random.key(0), jnp.array([2]), p, q)
    if scheme.max_drafts is None:  # out of play it may be anything
        scheme.verify(jax.random.key(0), jnp.array([1, 2]), p, q, jnp.array([True, False]))


# Weighted importance


@pytest.mark.parametrize("free", [1, 2, 5, 8])
def test_truncated_program_is_solved(free):
    """The value against HiGHS for the first stage and for the later ones, whose champions have laws of their own."""
    problems = [*PROBLEMS.values(), *pairs(12, 9, seed=6), *pairs(12, 30, seed=7, spread=0.1)]
    for p, q in problems:
        law = p
        for _ in range(3):
            match = MATCH(*(jnp.asarray(x, jnp.float32) for x in (law, p, q)), free)
            after = np.asarray(match.law, np.float64)
            assert np.minimum(after, q).sum() == pytest.approx(
                oracles.pairwise_program(law, p, q, free), abs=2e-6
            )
            assert after.sum() == pytest.approx(1, abs=1e-5)
            law = after / after.sum()


def bracket_of(laws, q, free):
    """The tournament as nested pairs of draft numbers, the matches' `wins[i][j]` by item, and the champion's law."""
    entrants = [(k, jnp.asarray(law, jnp.float32)) for k, law in enumerate(laws)]
    wins = {}
    while len(entrants) > 1:
        after = []
        for (first, law), (second, other) in zip(entrants[::2], entrants[1::2], strict=False):
            match = MATCH(law, other, jnp.asarray(q, jnp.float32), free)
            rank = np.argsort(np.asarray(match.order))
            wins[first, second] = np.asarray(EACH_PAIR(match.wins, rank, rank), np.float64)
            after.append(((first, second), match.law))
        entrants = after + entrants[len(after) * 2 :]
    return entrants[0][0], wins, np.asarray(entrants[0][1], np.float64)


@each_problem
def test_tournament_is_its_definition(problem):
    """Acceptance and emitted law, list by list; a refused champion's replacement may be in the list."""
    p, q = PROBLEMS[problem]
    diverse = [p, PROBLEMS["peaked"][0], PROBLEMS["flat"][0]]
    for free, lists in ((2, ([p] * 3, diverse)), (5, ([p] * 2, [p] * 4))):
        scheme = weighted_importance.truncated_at(free)
        for laws in lists:
            accepted, emitted = oracles.tournament(laws, q, *bracket_of(laws, q, free))
            one_law = logs(p) if all(law is p for law in laws) else logs(np.stack(laws))
            assert float(scheme.acceptance(one_law, logs(q), len(laws))) == pytest.approx(
                accepted, abs=2e-6
            )
            np.testing.assert_allclose(emitted, q, atol=2e-6)


def test_free_ranks_help():
    for p, q in pairs(5, 9, seed=8):
        least, most = (
            float(weighted_importance.truncated_at(s).acceptance(logs(p), logs(q), 2))
            for s in (1, 9)
        )
        best = float(bounds.optimum_iid(logs(p), logs(q), 2))
        assert most == pytest.approx(best, abs=2e-6)  # all free: the optimum for two drafts
        assert least <= best + 2e-6


def test_gradients_on_peaked_laws_are_finite():
    rng = np.random.default_rng(14)
    slopes = jax.jit(
        jax.vmap(jax.grad(lambda p, q: IMPORTANCE.acceptance(p, q, 3), argnums=(0, 1)))
    )
    for scale in (4.0, 12.0, 20.0):
        p, q = jax.nn.log_softmax(jnp.asarray(scale * rng.normal(size=(2, 200, 5)), jnp.float32))
        assert all(bool(jnp.isfinite(slope).all()) for slope in slopes(p, q))


# The optimum and the decomposition


def test_optimal_plan_attains_the_optimum():
    """The linear program, its prefix formula, and acceptance 1 exactly where it is possible."""
    seen = set()
    for p, q in [*PROBLEMS.values(), *pairs(10, 6, seed=9), *pairs(10, 6, seed=10, spread=5.0)]:
        for k in (1, 2, 3):
            plan = decomposition.best_selection([p] * k, q)
            assert plan.acceptance == pytest.approx(
                float(OPTIMAL.acceptance(logs(p), logs(q), k)), abs=1e-6
            )
            assert plan.acceptance == pytest.approx(oracles.optimum_iid(p, q, k), abs=1e-6)
            sure = bool(decomposition.always_accepts(logs(p), logs(q), k))
            assert sure == (plan.acceptance > 1 - 1e-6)
            seen.add(sure)
    assert seen == {True, False}


def test_optimum_of_diverse_drafts_is_its_program():
    for names in (("plain", "peaked"), ("zeros in p", "flat", "point mass p")):
        laws = np.stack([PROBLEMS[name][0] for name in names])
        for q in (PROBLEMS["flat"][1], PROBLEMS["zeros in q"][1]):
            plan = decomposition.best_selection(laws, q)
            assert float(OPTIMAL.acceptance(logs(laws), logs(q), len(laws))) == pytest.approx(
                plan.acceptance, abs=1e-6
            )
            for scheme in (SPECINFER, IMPORTANCE, schemes.get("gls")):
                assert (
                    float(scheme.acceptance(logs(laws), logs(q), len(laws)))
                    <= plan.acceptance + 2e-6
                )


def test_set_and_selected_distributions_are_enumerations():
    laws = np.stack([PROBLEMS[name][0] for name in ("plain", "zeros in p", "flat")])
    chance = decomposition.set_distribution(laws)
    expected = np.zeros_like(chance)
    for drafts in np.ndindex(6, 6, 6):
        expected[sum(1 << x for x in set(drafts))] += np.prod(laws[range(3), drafts])
    np.testing.assert_allclose(chance, expected, atol=1e-12)
    q = PROBLEMS["flat"][1]
    plan = decomposition.best_selection(laws, q)
    choose = jnp.asarray(plan.choose)

    def rule(drafts):
        """The plan as a rule on lists: an item drafted twice shares its chance."""
        mask = jnp.bitwise_or.reduce(1 << drafts)
        copies = jnp.sum(drafts[:, None] == drafts, axis=1)
        return choose[mask, drafts] / copies

    law = decomposition.selected_distribution(rule, logs(laws), 3)
    np.testing.assert_allclose(law, plan.distribution, atol=1e-5)
    assert np.minimum(plan.distribution, q).sum() == pytest.approx(plan.acceptance, abs=1e-9)


def test_decomposition_refuses_what_it_cannot_do():
    with pytest.raises(
        ValueError, match=r"draft_probs: expected shape \[K, N\] with N within 1..12, got \[2, 13\]"
    ):
        decomposition.set_distribution(np.full((2, 13), 1 / 13))
    with pytest.raises(ValueError, match=r"q: expected shape \[2\], got \[3\]"):
        decomposition.best_selection([[0.5, 0.5]], [0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match=r"at most 1000000 lists, got 10\^7"):
        decomposition.selected_distribution(
            lambda drafts: drafts == drafts[0], jnp.full(10, -math.log(10)), 7
        )


# Order


def test_order_of_acceptances():
    """single <= SpecInfer <= SpecTr <= optimum, importance <= optimum, all growing with K, on 400 pairs."""
    ks = (1, 2, 3, 4, 6, 8)
    for items, spread in ((10, 1.0), (30, 0.1)):
        laws = jnp.asarray(logs(pairs(200, items, seed=items, spread=spread) + 1e-30))

        @jax.jit
        def curves(laws):
            chosen = (SPECINFER, SPECTR, OPTIMAL, IMPORTANCE)
            return [
                jax.lax.map(lambda pair, s=s: s.acceptance_curve(*pair, ks), laws) for s in chosen
            ]

        specinfer, spectr, optimum, importance = (np.asarray(x) for x in curves(laws))
        assert (specinfer <= spectr + 2e-6).all() and (spectr <= optimum + 2e-6).all()
        assert (importance <= optimum + 2e-6).all()
        for curve in (specinfer, spectr, optimum):
            assert (np.diff(curve, axis=1) >= -2e-6).all()
