"""The bounds against double loops, linear programs and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes
from tests import oracles
from tests.problems import NUM_ITEMS, PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

each_problem = pytest.mark.parametrize("problem", PROBLEMS)


@each_problem
def test_list_matching_is_the_double_loop(problem):
    p, q = PROBLEMS[problem]
    rates = oracles.rates(p, q)
    for k in (1, 2, 7):
        expected_given_target = k / (k - 1 + rates)
        given_target = bounds.list_matching_given_target(logs(p), logs(q), k)
        np.testing.assert_allclose(given_target, expected_given_target, atol=1e-6)
        bound = float(bounds.list_matching(logs(p), logs(q), k))
        assert bound == pytest.approx((q * expected_given_target).sum(), abs=1e-6)
        for num_active in range(1, k + 1):
            strong = float(bounds.list_matching_strong(logs(p), logs(q), num_active, k))
            expected = (q * num_active / (k - 1 + rates)).sum()
            assert strong == pytest.approx(expected, abs=1e-6)


@each_problem
def test_relaxed_bound_is_its_formula_and_below_list_matching(problem):
    p, q = PROBLEMS[problem]
    for k in (1, 3):
        relaxed = np.asarray(bounds.list_matching_relaxed(logs(p), logs(q), k))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(p > 0, 1 / (1 + q / (k * p)), 0)
        np.testing.assert_allclose(relaxed, expected, atol=1e-6)
        given_target = np.asarray(bounds.list_matching_given_target(logs(p), logs(q), k))
        assert (relaxed <= given_target + 1e-6).all()


def test_diverse_drafts_sum_their_streams():
    draft_probs = np.stack([PROBLEMS[name][0] for name in ("plain", "zeros in p")])
    q = PROBLEMS["flat"][1]
    expected = sum((q / (1 + oracles.rates(p, q))).sum() for p in draft_probs)
    bound = float(bounds.list_matching(logs(draft_probs), logs(q), 2))
    assert bound == pytest.approx(expected, abs=1e-6)
    assert expected <= oracles.gls_acceptance(draft_probs, q) + 1e-9


@each_problem
def test_total_variation_and_what_it_promises(problem):
    p, q = PROBLEMS[problem]
    distance = abs(p - q).sum() / 2
    assert float(bounds.total_variation(logs(p), logs(q))) == pytest.approx(distance, abs=1e-6)
    worst = (1 - distance) / (1 + distance)
    assert float(bounds.communication_free(logs(p), logs(q))) == pytest.approx(worst, abs=1e-6)
    # Gumbel is never below it.
    assert float(bounds.list_matching(logs(p), logs(q), 1)) >= worst - 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_optimum_is_the_linear_program(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(4, 0.7), 2)
    if seed % 3 == 0:
        p[1] = 0
        p /= p.sum()
    for k in (1, 2, 3):
        expected = oracles.optimum_iid(p, q, k)
        assert float(bounds.optimum_iid(logs(p), logs(q), k)) == pytest.approx(expected, abs=1e-6)


def test_optimum_of_distinct_drafts_is_the_minimum_over_all_sets():
    """A prefix is the worst set here too.

    The schemes with distinct drafts stay below, and independent drafts reach less.
    """
    random_pairs = np.random.default_rng(3).dirichlet(np.ones(NUM_ITEMS), (8, 2))
    counts = (1, 2, 3)

    @jax.jit
    def values(p, q):
        distinct = [bounds.optimum_distinct(p, q, k) for k in counts]
        independent = [bounds.optimum_iid(p, q, k) for k in counts]
        top_k = schemes.get("gumbel_topk").acceptance_curve(p, q, counts)
        without_replacement = schemes.get("specinfer_wor").acceptance_curve(p, q, counts)
        return distinct, independent, top_k, without_replacement

    for p, q in [*PROBLEMS.values(), *random_pairs]:
        columns = zip(counts, *values(logs(p), logs(q)), strict=True)
        for k, distinct, independent, top_k, without_replacement in columns:
            if k <= (p > 0).sum():  # else the list is all that `p` can produce
                expected = oracles.optimum_distinct(p, q, k)
                assert float(distinct) == pytest.approx(expected, abs=2e-6)
            assert max(float(top_k), float(without_replacement)) <= float(distinct) + 2e-6
            assert float(distinct) >= float(independent) - 2e-6


@pytest.mark.parametrize("light", [-10.0, -30.0, -60.0, -79.0])
def test_optimum_of_distinct_drafts_holds_for_the_lightest_categories(light):
    """Two categories, one of nearly no mass: the list is both of them, and .6 of the target."""
    log_p = jnp.array([0.0, light, -jnp.inf])
    log_q = jnp.log(jnp.array([0.3, 0.3, 0.4]))
    assert float(bounds.optimum_distinct(log_p, log_q, 2)) == pytest.approx(0.6, abs=1e-4)


def test_optimum_takes_any_list_distribution():
    p, q = PROBLEMS["plain"]
    order = np.asarray(bounds.prefix_order(logs(p), logs(q)))
    assert (np.diff((q / p)[order]) >= 0).all()
    value = bounds.optimum(logs(p), logs(q), np.cumsum(p[order]) ** 3)
    assert float(value) == pytest.approx(oracles.optimum_iid(p, q, 3), abs=1e-6)
    with pytest.raises(ValueError, match=r"contained: expected shape \[6\], got \[5\]"):
        bounds.optimum(logs(p), logs(q), np.ones(5))


def relaxed_sum(log_p, log_q, num_drafts):
    return bounds.list_matching_relaxed(log_p, log_q, num_drafts).sum()


@pytest.mark.parametrize("bound", [bounds.list_matching, bounds.optimum_iid, relaxed_sum])
def test_gradients_of_a_batch_are_finite(bound):
    pairs = jnp.asarray([[logs(p), logs(q)] for p, q in PROBLEMS.values()])
    slopes = jax.jit(jax.vmap(jax.grad(lambda pair: bound(pair[0], pair[1], 3))))(pairs)
    assert bool(jnp.isfinite(slopes).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, q: bounds.list_matching(p, q, 0),
            "num_drafts: expected an int of at least 1, got 0",
        ),
        (lambda p, q: bounds.list_matching(p, q[:-1], 1), "same number of categories"),
        (
            lambda p, q: bounds.list_matching_strong(p, q, 3, 2),
            r"num_active: expected at most num_drafts \(2\), got 3",
        ),
        (lambda p, q: bounds.total_variation(p[None], q), r"log_p: expected shape \[N\]"),
        (lambda p, q: bounds.optimum_iid(p, q, 1.5), "num_drafts: expected an int"),
        (lambda p, q: bounds.list_matching(np.stack([p, p]), q, 3), r"expected 3 rows"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    p, q = map(logs, PROBLEMS["plain"])
    with pytest.raises(ValueError, match=message) as caught:
        call(p, q)
    assert "\n" not in str(caught.value)
