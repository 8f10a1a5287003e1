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
def test_list_matching_by_the_double_loop(problem):
    p, q = PROBLEMS[problem]
    rates = oracles.rates(p, q)
    for k in (1, 2, 7):
        given = k / (k - 1 + rates)
        np.testing.assert_allclose(
            bounds.list_matching_given_target(logs(p), logs(q), k), given, atol=1e-6
        )
        assert float(bounds.list_matching(logs(p), logs(q), k)) == pytest.approx(
            (q * given).sum(), abs=1e-6
        )
        for active in range(1, k + 1):
            expected = (q * active / (k - 1 + rates)).sum()
            assert float(bounds.list_matching_strong(logs(p), logs(q), active, k)) == pytest.approx(
                expected, abs=1e-6
            )


@each_problem
def test_relaxed_bound(problem):
    p, q = PROBLEMS[problem]
    for k in (1, 3):
        relaxed = np.asarray(bounds.list_matching_relaxed(logs(p), logs(q), k))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(p > 0, 1 / (1 + q / (k * p)), 0)
        np.testing.assert_allclose(relaxed, expected, atol=1e-6)
        assert (
            relaxed <= np.asarray(bounds.list_matching_given_target(logs(p), logs(q), k)) + 1e-6
        ).all()


def test_diverse_drafts_sum_their_streams():
    laws = np.stack([PROBLEMS[name][0] for name in ("plain", "zeros in p")])
    q = PROBLEMS["flat"][1]
    expected = sum((q / (1 + oracles.rates(p, q))).sum() for p in laws)
    assert float(bounds.list_matching(logs(laws), logs(q), 2)) == pytest.approx(expected, abs=1e-6)
    assert expected <= oracles.gls_acceptance(laws, q) + 1e-9


@each_problem
def test_distances(problem):
    p, q = PROBLEMS[problem]
    distance = abs(p - q).sum() / 2
    assert float(bounds.total_variation(logs(p), logs(q))) == pytest.approx(distance, abs=1e-6)
    worst = (1 - distance) / (1 + distance)
    assert float(bounds.communication_free(logs(p), logs(q))) == pytest.approx(worst, abs=1e-6)
    assert (
        float(bounds.list_matching(logs(p), logs(q), 1)) >= worst - 1e-6
    )  # Gumbel is never below it


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
    """A prefix is the worst set here too; the race's schemes stay below, and distinct drafts beat independent ones."""
    laws = [*PROBLEMS.values(), *np.random.default_rng(3).dirichlet(np.ones(NUM_ITEMS), (8, 2))]
    counts = (1, 2, 3)

    @jax.jit
    def values(p, q):
        best = [
            [bound(p, q, k) for k in counts]
            for bound in (bounds.optimum_distinct, bounds.optimum_iid)
        ]
        return *best, [
            schemes.get(name).acceptance_curve(p, q, counts)
            for name in ("gumbel_topk", "specinfer_wor")
        ]

    for p, q in laws:
        distinct, iid, curves = values(logs(p), logs(q))
        for k, got, independent in zip(counts, distinct, iid, strict=True):
            if k <= (p > 0).sum():  # a shorter law's list is the whole law, whatever is behind it
                assert float(got) == pytest.approx(oracles.optimum_distinct(p, q, k), abs=2e-6)
            assert all(float(curve[k - 1]) <= float(got) + 2e-6 for curve in curves)
            assert float(got) >= float(independent) - 2e-6


@pytest.mark.parametrize("light", [-10.0, -30.0, -60.0, -79.0])
def test_optimum_of_distinct_drafts_down_to_the_lightest_items(light):
    """Two items, one of next to no mass: the list is both of them, and .6 of the target."""
    p, q = jnp.array([0.0, light, -jnp.inf]), jnp.log(jnp.array([0.3, 0.3, 0.4]))
    assert float(bounds.optimum_distinct(p, q, 2)) == pytest.approx(0.6, abs=1e-4)


def test_optimum_takes_any_contained_law():
    p, q = PROBLEMS["plain"]
    order = np.asarray(bounds.prefix_order(logs(p), logs(q)))
    assert (np.diff((q / p)[order]) >= 0).all()
    value = bounds.optimum(logs(p), logs(q), np.cumsum(p[order]) ** 3)
    assert float(value) == pytest.approx(oracles.optimum_iid(p, q, 3), abs=1e-6)
    with pytest.raises(ValueError, match=r"contained: expected shape \[6\], got \[5\]"):
        bounds.optimum(logs(p), logs(q), np.ones(5))


def test_batches_and_gradients():
    laws = jnp.stack([jnp.stack([logs(p), logs(q)]) for p, q in PROBLEMS.values()])
    for bound in (
        bounds.list_matching,
        bounds.optimum_iid,
        lambda p, q, k: bounds.list_matching_relaxed(p, q, k).sum(),
    ):
        slopes = jax.jit(jax.vmap(jax.grad(lambda pair, f=bound: f(pair[0], pair[1], 3))))(laws)
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
def test_bad_input(call, message):
    p, q = (logs(law) for law in PROBLEMS["plain"])
    with pytest.raises(ValueError, match=message) as caught:
        call(p, q)
    assert "\n" not in str(caught.value)
