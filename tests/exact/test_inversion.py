"""Trials by inversion have the same distribution as trials by noise."""

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
SCHEMES = ("gls", "gls_strong", "poisson", "gumbel_topk", "naive")
LOG_P = np.stack([logs(p) for p, _ in PROBLEMS.values()])
LOG_Q = np.stack([logs(q) for _, q in PROBLEMS.values()])
COUNTS = tuple(range(1, NUM_DRAFTS + 1))
NUM_TRIALS = 200_000


def wide_pair(seed, size=300):
    """Categories that neither, one or both distributions can produce, light ones and a heavy one."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(size, 0.3), 2)
    p[:20] = 0
    q[10:30] = 0
    p[30] = 2
    return logs(p / p.sum()), logs(q / q.sum())


WIDE_PAIR = wide_pair(0)
# All draft probabilities are equal. `gumbel_topk` draws the noise of 64 of the 100 categories; the
# other 36 can fill up a list of 30.
LEVEL_PAIR = (logs(np.full(100, 0.01)), logs(np.random.default_rng(1).dirichlet(np.full(100, 0.3))))


def padded(log_probs):
    """One shape for all, so that each scheme compiles once."""
    return np.pad(log_probs, (0, 300 - len(log_probs)), constant_values=-np.inf)


MORE_PAIRS = [*map(wide_pair, range(4)), LEVEL_PAIR]
ALL_LOG_P = np.stack([padded(x) for x in [*LOG_P, *(p for p, _ in MORE_PAIRS)]])
ALL_LOG_Q = np.stack([padded(x) for x in [*LOG_Q, *(q for _, q in MORE_PAIRS)]])


def p_values(estimate, exact):
    """Two-sided p-values of the counts of accepted trials, in float64."""
    num_trials = int(estimate.num_trials)
    accepted = np.rint(np.asarray(estimate.mean, np.float64) * num_trials).astype(int)

    def p_value(count, probability):
        return oracles.binomial(count, num_trials, min(max(probability, 0), 1))

    return np.vectorize(p_value)(accepted, np.asarray(exact, np.float64))


@pytest.mark.parametrize("name", SCHEMES)
def test_acceptance_is_the_exact_one(name):
    """False failures: 19 x 4 values at 1e-9 each, with float32 of the exact value allowed for.

    Lists of distinct categories are long enough for one that comes twice to matter: if it were
    counted twice, the p-value would be 1e-20.
    """
    scheme = schemes.get(name)
    counts = (1, 2, 4, 30) if name == "gumbel_topk" else COUNTS
    estimate = trials.sweep(
        KEY,
        ALL_LOG_P,
        ALL_LOG_Q,
        scheme=name,
        num_drafts=counts,
        num_trials=NUM_TRIALS,
        method="inversion",
    )
    curve = jax.jit(jax.vmap(lambda log_p, log_q: scheme.acceptance_curve(log_p, log_q, counts)))
    exact = np.asarray(curve(ALL_LOG_P, ALL_LOG_Q), np.float64)
    nearest = np.clip(np.asarray(estimate.mean, np.float64), exact - 3e-6, exact + 3e-6)
    assert p_values(estimate, nearest).min() > 1e-9


@pytest.mark.parametrize("name", ["gls", "gls_strong", "naive"])
def test_acceptance_of_diverse_drafts_is_the_exact_one(name):
    """One distribution a draft; 3 values at 1e-9."""
    draft_log_p = np.stack([LOG_P[0], LOG_P[1], LOG_P[6]])
    estimate = trials.sweep(
        KEY,
        draft_log_p[None],
        LOG_Q[:1],
        scheme=name,
        num_drafts=(1, 2, 3),
        num_trials=NUM_TRIALS,
        method="inversion",
    )
    exact = schemes.get(name).acceptance_curve(draft_log_p, LOG_Q[0], (1, 2, 3))
    assert p_values(estimate, exact[None]).min() > 1e-9


@partial(jax.jit, static_argnames="make_trial")
def joint_counts(make_trial, log_p, log_q):
    """How often one stream gave each `(target, draft)`, `[N^2]`."""
    keys = jax.random.split(KEY, NUM_TRIALS)
    target, draft = jax.vmap(make_trial(log_p, log_q))(keys)
    return jnp.bincount(target * NUM_ITEMS + draft, length=NUM_ITEMS**2)


def by_noise(log_p, log_q):
    def trial(key):
        (_, draft), (_, target) = races.first_arrivals(key, 1, log_p, log_q)
        return target[0], draft[0]

    return trial


def by_inversion(log_p, log_q, one_stream=inversion.one_stream):
    pair = inversion.pair_tables(log_p, log_q)

    def trial(key):
        noise = races.exponentials(jax.random.fold_in(key, 5), 1, 6)[0]
        _, target, draft = one_stream(pair, noise)
        return target, draft

    return trial


def stream_without_delay(pair, noise):
    """Planted defect: the draft may be any category, also one that cannot have arrived yet."""
    theta = noise[0]
    level = noise[1] / noise[0]
    u = -jnp.expm1(-noise[2:])
    target = inversion.draw_target(pair, u[0], u[1])
    other = inversion.draw_index(pair.p, pair.excess.shape[0], u[2], u[3])
    draft = jnp.where(level > pair.excess[target], target, other)
    return theta, pair.order[target], pair.order[draft]


WITH_DEFECT = partial(by_inversion, one_stream=stream_without_delay)


def same_distribution_p_value(first_counts, second_counts):
    counts = np.stack([np.asarray(first_counts), np.asarray(second_counts)])
    is_frequent = counts.sum(0) > 20
    rare = counts[:, ~is_frequent].sum(1, keepdims=True) + 1
    table = np.concatenate([counts[:, is_frequent], rare], axis=1)
    return scipy.stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("problem", ["flat", "plain", "zeros in p", "ties"])
def test_target_and_draft_of_a_stream_have_the_joint_distribution_of_the_race(problem):
    """Two samples, false failures 1e-7 each; the planted defect is far outside."""
    log_p, log_q = map(logs, PROBLEMS[problem])
    expected = joint_counts(by_noise, log_p, log_q)
    assert same_distribution_p_value(expected, joint_counts(by_inversion, log_p, log_q)) > 1e-7
    if problem in ("flat", "plain"):
        assert same_distribution_p_value(expected, joint_counts(WITH_DEFECT, log_p, log_q)) < 1e-30


def test_time_does_not_depend_on_the_target():
    """`theta` is Exp(1) for every target: Kolmogorov-Smirnov, false failures 1e-7 a target."""
    log_p, log_q = map(logs, PROBLEMS["flat"])
    stream = partial(inversion.one_stream, inversion.pair_tables(log_p, log_q))
    noise = races.exponentials(KEY, 20_000, 6)
    theta, target, _ = map(np.asarray, jax.jit(jax.vmap(stream))(noise))
    for category in range(NUM_ITEMS):
        assert scipy.stats.kstest(theta[target == category], "expon").pvalue > 1e-7


@jax.jit
def drawn_on_grid(table, count, grid):
    draw = partial(inversion.draw_index, table, count)
    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(grid, grid)


@pytest.mark.parametrize("count", [1, 2, 7, 90, 91, 1000])
@pytest.mark.parametrize("size", [1, 2, 10, 1000])
def test_shares_of_a_grid_of_uniforms_are_the_weights(size, count):
    """Shares of a prefix are right to the resolution of the grid, and a weight of 0 is not drawn."""
    count = min(count, size)
    weights = np.random.default_rng(size).gamma(0.5, size=size).astype(np.float32)
    weights[1::3] = 0
    grid = (np.arange(512, dtype=np.float32) + 0.5) / 512
    table = inversion.weight_table(jnp.asarray(weights))
    drawn = np.asarray(drawn_on_grid(table, count, grid)).ravel()
    counts = np.bincount(drawn, minlength=size)
    assert counts.shape == (size,) and not counts[count:].any() and not counts[weights == 0].any()
    shares = weights[:count] / weights[:count].sum()
    num_rows = max(1, len(table.before))
    error = abs(np.cumsum(counts[:count]) / counts.sum() - np.cumsum(shares)).max()
    assert error < (1 + num_rows) / 512


def test_light_categories_of_a_vocabulary_keep_their_weight():
    """Float32 sums over 150,000 equal weights round each of them by per mille; rows do not."""
    size = 151_936
    table = inversion.weight_table(jnp.full(size, 1 / size, jnp.float32))
    widths = np.diff(np.asarray(table.within[:-1]), axis=1, prepend=0)
    assert abs(widths * size - 1).max() < 1e-4
    flat_sums = np.cumsum(np.full(size, 1 / size, np.float32), dtype=np.float32)
    assert abs(np.diff(flat_sums) * size - 1).max() > 2e-3


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24, 1.0])
def test_extreme_uniforms_draw_no_weight_of_zero(extreme):
    weights = jnp.asarray([0, 0, 0.25, 0, 1e-30, 0.75, 0, 0, 0], jnp.float32)
    table = inversion.weight_table(weights)
    for u, v in ((extreme, extreme), (extreme, 0.0), (0.5, extreme)):
        assert weights[inversion.draw_index(table, 9, jnp.float32(u), jnp.float32(v))] > 0


def test_method_is_chosen_by_size():
    """The default is the result of the method that is chosen, bit for bit."""
    acceptance = partial(trials.acceptance, KEY, scheme="naive", num_drafts=2, num_trials=3000)
    small_pair = (LOG_P[1], LOG_Q[1])
    for pair, method, other in (
        (small_pair, "noise", "inversion"),
        (WIDE_PAIR, "inversion", "noise"),
    ):
        default = float(acceptance(*pair).mean)
        assert default == float(acceptance(*pair, method=method).mean)
        assert default != float(acceptance(*pair, method=other).mean)


@pytest.mark.parametrize("name", ["gls", "gumbel_topk"])
def test_memory_does_not_grow_with_the_trials(name):
    def sweep(keys, log_p, log_q):
        return trials.sweep(
            keys,
            log_p,
            log_q,
            scheme=name,
            num_drafts=(8,),
            num_trials=2**30,
            method="inversion",
        )

    size = 100_000
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 1))
    log_probs = jax.ShapeDtypeStruct((1, size), jnp.float32)
    compiled = jax.jit(sweep).lower(keys, log_probs, log_probs).compile()
    # The trials of a chunk, and what is sorted and summed once.
    assert compiled.memory_analysis().temp_size_in_bytes < 2**23 + 100 * size


def test_schemes_without_inversion_say_so():
    with pytest.raises(ValueError, match="scheme 'spectr' has no trials by inversion"):
        trials.acceptance(
            KEY,
            LOG_P[0],
            LOG_Q[0],
            scheme="spectr",
            num_drafts=2,
            num_trials=10,
            method="inversion",
        )
