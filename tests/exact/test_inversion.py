"""Trials without clocks have the law of trials with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import races, schemes, trials
from gls_jax.exact import inversion
from tests import oracles
from tests.problems import NUM_DRAFTS, NUM_ITEMS, PROBLEMS, logs

KEY = jax.random.key(17)
FAST = ("gls", "gls_strong", "poisson", "gumbel_topk", "naive")
LAWS_P = np.stack([logs(p) for p, _ in PROBLEMS.values()])
LAWS_Q = np.stack([logs(q) for _, q in PROBLEMS.values()])
COUNTS = tuple(range(1, NUM_DRAFTS + 1))
TRIALS = 200_000


def wide(seed, num_items=300):
    """Laws with items that neither, one or both can produce, light ones and a heavy one."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(num_items, 0.3), 2)
    p[:20], q[10:30], p[30] = 0, 0, 2
    return logs(p / p.sum()), logs(q / q.sum())


WIDE = wide(0)
# Every item is as heavy as the next, 36 of them have no clock of their own, and a list of 30 is full of them.
LEVEL = logs(np.full(100, 0.01)), logs(np.random.default_rng(1).dirichlet(np.full(100, 0.3)))
# One shape for all: each scheme compiles once.
ALL_P, ALL_Q = (
    np.stack([np.pad(law, (0, 300 - len(law)), constant_values=-np.inf) for law in (*laws, *more)])
    for laws, more in zip(
        (LAWS_P, LAWS_Q), zip(*map(wide, range(4)), LEVEL, strict=True), strict=True
    )
)


def binomial_tails(estimate, exact):
    """Two-sided p-values of hit counts, in float64."""
    count = int(estimate.num_trials)
    hits = np.rint(np.asarray(estimate.mean, np.float64) * count).astype(int)
    return np.vectorize(lambda h, a: oracles.binomial(h, count, min(max(a, 0), 1)))(
        hits, np.asarray(exact, np.float64)
    )


@pytest.mark.parametrize("name", FAST)
def test_acceptance_is_the_exact_one(name):
    """False failures: 19 x 4 cells at 1e-9 each, with float32 of the exact value allowed for.

    Lists of distinct items are long enough for an item that comes twice to matter: counted twice, it makes 1e-20.
    """
    scheme = schemes.get(name)
    counts = (1, 2, 4, 30) if name == "gumbel_topk" else COUNTS
    got = trials.sweep(
        KEY, ALL_P, ALL_Q, scheme=name, num_drafts=counts, num_trials=TRIALS, method="inversion"
    )
    exact = jax.jit(jax.vmap(lambda p, q: scheme.acceptance_curve(p, q, counts)))(ALL_P, ALL_Q)
    exact = np.asarray(exact, np.float64)
    nearest = np.clip(np.asarray(got.mean, np.float64), exact - 3e-6, exact + 3e-6)
    assert binomial_tails(got, nearest).min() > 1e-9


@pytest.mark.parametrize("name", ["gls", "gls_strong", "naive"])
def test_a_law_a_draft(name):
    """Diverse drafts; 3 cells at 1e-9."""
    laws = np.stack([LAWS_P[at] for at in (0, 1, 6)])
    scheme = schemes.get(name)
    got = trials.sweep(
        KEY,
        laws[None],
        LAWS_Q[:1],
        scheme=name,
        num_drafts=(1, 2, 3),
        num_trials=TRIALS,
        method="inversion",
    )
    exact = scheme.acceptance_curve(laws, LAWS_Q[0], (1, 2, 3))
    assert binomial_tails(got, exact[None]).min() > 1e-9


@partial(jax.jit, static_argnames="one")
def outcomes(one, log_p, log_q):
    """How often `(target, draft)` of one stream was what, `[N^2]`."""
    target, draft = jax.vmap(one(log_p, log_q))(jax.random.split(KEY, TRIALS))
    return jnp.bincount(target * NUM_ITEMS + draft, length=NUM_ITEMS**2)


def with_clocks(log_p, log_q):
    def one(key):
        (_, draft), (_, target) = races.first_arrivals(key, 1, log_p, log_q)
        return target[0], draft[0]

    return one


def without_clocks(log_p, log_q, stream=inversion.one_stream):
    pair = inversion.pair_tables(log_p, log_q)
    return lambda key: stream(pair, races.exponentials(jax.random.fold_in(key, 5), 1, 6)[0])[1:]


def no_delay(pair, noise):
    """Planted defect: the draft may be any item, also one that cannot have arrived yet."""
    theta, level = noise[0], noise[1] / noise[0]
    u = -jnp.expm1(-noise[2:])
    own = inversion.draw_target(pair, u[0], u[1])
    other = inversion.draw_index(pair.p, pair.excess.shape[0], u[2], u[3])
    return theta, pair.order[own], pair.order[jnp.where(level > pair.excess[own], own, other)]


DEFECT = partial(without_clocks, stream=no_delay)


def same_law(first, second):
    first, second = np.asarray(first), np.asarray(second)
    cells = (first + second) > 20
    table = np.stack([np.append(x[cells], x[~cells].sum() + 1) for x in (first, second)])
    return scipy.stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("problem", ["flat", "plain", "zeros in p", "ties"])
def test_joint_law_of_a_stream(problem):
    """Two samples of (target, draft), false failures 1e-7 each; the planted defect is far outside."""
    log_p, log_q = map(logs, PROBLEMS[problem])
    dense = outcomes(with_clocks, log_p, log_q)
    assert same_law(dense, outcomes(without_clocks, log_p, log_q)) > 1e-7
    if problem in ("flat", "plain"):
        assert same_law(dense, outcomes(DEFECT, log_p, log_q)) < 1e-30


def test_the_target_does_not_know_when():
    """`theta` is Exp(1) whatever the target: Kolmogorov's distance, false failures 1e-7 a target."""
    log_p, log_q = map(logs, PROBLEMS["flat"])
    pair = inversion.pair_tables(log_p, log_q)
    noise = races.exponentials(KEY, 20_000, 6)
    theta, target, _ = map(
        np.asarray, jax.jit(jax.vmap(partial(inversion.one_stream, pair)))(noise)
    )
    for item in range(NUM_ITEMS):
        assert scipy.stats.kstest(theta[target == item], "expon").pvalue > 1e-7


@jax.jit
def drawn(prepared, count, grid):
    return jax.vmap(jax.vmap(partial(inversion.draw_index, prepared, count), (None, 0)), (0, None))(
        grid, grid
    )


@pytest.mark.parametrize("count", [1, 2, 7, 90, 91, 1000])
@pytest.mark.parametrize("size", [1, 2, 10, 1000])
def test_draw_on_a_grid(size, count):
    """Uniforms on a grid instead of at random: shares of a prefix to the grid's resolution, and never a weight of 0."""
    count = min(count, size)
    weights = np.random.default_rng(size).gamma(0.5, size=size).astype(np.float32)
    weights[1::3] = 0
    grid = (np.arange(512, dtype=np.float32) + 0.5) / 512
    prepared = inversion.weight_table(jnp.asarray(weights))
    counts = np.bincount(np.asarray(drawn(prepared, count, grid)).ravel(), minlength=size)
    assert counts.shape == (size,) and not counts[count:].any() and not counts[weights == 0].any()
    shares = weights[:count] / weights[:count].sum()
    rows = max(1, len(prepared.before))
    assert (
        abs(np.cumsum(counts[:count]) / counts.sum() - np.cumsum(shares)).max() < (1 + rows) / 512
    )


def test_light_items_of_a_vocabulary_keep_their_weight():
    """Float32 sums over 150,000 equal items round each of them by per mille; rows do not."""
    size = 151_936
    prepared = inversion.weight_table(jnp.full(size, 1 / size, jnp.float32))
    widths = np.diff(np.asarray(prepared.within[:-1]), axis=1, prepend=0)
    assert abs(widths * size - 1).max() < 1e-4
    flat = np.diff(np.cumsum(np.full(size, 1 / size, np.float32), dtype=np.float32))
    assert abs(flat * size - 1).max() > 2e-3


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24, 1.0])
def test_extreme_uniforms(extreme):
    weights = jnp.asarray([0, 0, 0.25, 0, 1e-30, 0.75, 0, 0, 0], jnp.float32)
    prepared = inversion.weight_table(weights)
    for u, v in ((extreme, extreme), (extreme, 0.0), (0.5, extreme)):
        assert weights[inversion.draw_index(prepared, 9, jnp.float32(u), jnp.float32(v))] > 0


def test_chosen_where_it_is_faster():
    """From some size on; the answer is that of whoever was chosen, bit for bit."""
    ask = partial(trials.acceptance, KEY, scheme="naive", num_drafts=2, num_trials=3000)
    for (log_p, log_q), method in (((LAWS_P[1], LAWS_Q[1]), "noise"), (WIDE, "inversion")):
        other = "inversion" if method == "noise" else "noise"
        assert float(ask(log_p, log_q).mean) == float(ask(log_p, log_q, method=method).mean)
        assert float(ask(log_p, log_q).mean) != float(ask(log_p, log_q, method=other).mean)


def test_memory_knows_neither_items_nor_trials():
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 1))
    for name in ("gls", "gumbel_topk"):

        def held(size, name=name):
            laws = jax.ShapeDtypeStruct((1, size), jnp.float32)
            asked = {"scheme": schemes.get(name), "num_drafts": (8,), "clocks": False}
            counter = trials._count.lower(keys, laws, laws, 0, 2**30, **asked).compile()
            return counter.memory_analysis().temp_size_in_bytes

        assert held(100_000) < 2**23 + 100 * 100_000  # lanes, and what is sorted and summed up once


def test_schemes_without_one_say_so():
    with pytest.raises(ValueError, match="scheme 'spectr' has no trials without clocks"):
        trials.acceptance(
            KEY,
            LAWS_P[0],
            LAWS_Q[0],
            scheme="spectr",
            num_drafts=2,
            num_trials=10,
            method="inversion",
        )
