"""Races: exponential noise, its keys, the winners, and darts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import races
from gls_jax.races import threefry
from tests import oracles

KEY = jax.random.key(20)


def leading_bits(noise):
    """The first 32 bits of the uniform behind exponential noise, as a number."""
    return -np.expm1(-np.asarray(noise, np.float64)) * 2.0**32


def test_noise_has_the_bits_of_jax_random():
    """The leading 32 bits of all noise are `jax.random.bits` of `fold_in(key, stream)`."""
    noise = races.exponentials(KEY, 5, 33)
    for stream in range(5):
        bits = jax.random.bits(jax.random.fold_in(KEY, stream), (33,))
        expected = np.asarray(bits, np.float64) + 0.5
        np.testing.assert_allclose(leading_bits(noise[stream]), expected, rtol=1e-5)


def test_noise_is_exponential():
    """Kolmogorov-Smirnov on 2^20 numbers; false-failure rate 1e-9."""
    noise = np.asarray(races.exponentials(KEY, 4, 2**18)).ravel()
    assert scipy.stats.kstest(noise, "expon").pvalue > 1e-9
    assert noise.min() > 0 and np.isfinite(noise).all()


def test_threefry_is_that_of_jax():
    """Both words, bit for bit: `fold_in` for the pair, `bits` for their exclusive or."""
    first, second = jax.random.key_data(KEY)
    high, low = threefry.threefry2x32((first, second), jnp.arange(100, dtype=jnp.uint32))
    folds = jax.random.key_data(races.keys.fold_in_each(KEY, jnp.arange(100)))
    np.testing.assert_array_equal(jnp.stack([high, low], axis=1), folds)
    np.testing.assert_array_equal(high ^ low, jax.random.bits(KEY, (100,)))


def test_fold_in_each_is_fold_in_number_by_number():
    numbers = np.array([3, 0, 2**31, 2**32 - 2], np.uint32)
    folded = jax.random.key_data(races.keys.fold_in_each(KEY, numbers))
    for row, number in zip(folded, numbers, strict=True):
        expected = jax.random.key_data(jax.random.fold_in(KEY, number))
        np.testing.assert_array_equal(row, expected)


def test_small_noise_keeps_its_digits():
    """Relative error against float64 down to the smallest value, 2^-65: no 0, no coarse grid."""
    high = jnp.asarray(
        [0, 0, 0, 1, 2, 255, 2**16, 2**24 + 1, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32
    )
    low = jnp.asarray([0, 7, 2**32 - 1, 5, 2**31, 3, 9, 2**30, 1, 0, 2**32 - 1], jnp.uint32)
    fraction = (np.asarray(low, np.float64) + 0.5) * 2.0**-32
    uniform = (np.asarray(high, np.float64) + fraction) * 2.0**-32
    noise = np.asarray(jax.jit(races.exponentials_from_bits)(high, low), np.float64)
    np.testing.assert_allclose(noise[:-2], -np.log1p(-uniform[:-2]), rtol=1e-6)
    assert 15 < noise[-1] < 25 and noise[0] == pytest.approx(2.0**-65)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 100)])
def test_more_streams_or_categories_change_no_noise(shape):
    whole = races.exponentials(KEY, 8, 128)
    np.testing.assert_array_equal(races.exponentials(KEY, *shape), whole[: shape[0], : shape[1]])


def test_noise_does_not_depend_on_the_batch_or_on_jit():
    keys = jax.random.split(KEY, 9)
    batch = jax.jit(jax.vmap(lambda key: races.exponentials(key, 3, 17)))(keys)
    for row, key in zip(batch, keys, strict=True):
        np.testing.assert_array_equal(row, races.exponentials(key, 3, 17))


def test_keys_of_positions_streams_and_private_noise_differ():
    keys = [KEY, races.private_key(KEY), *(races.position_key(KEY, t) for t in range(50))]
    words = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(words) == len(keys)
    # The noise of a stream follows from its key alone.
    bits = jax.random.bits(races.stream_key(KEY, 2), (5,))
    expected = np.asarray(bits, np.float64) + 0.5
    np.testing.assert_allclose(leading_bits(races.exponentials(KEY, 3, 5)[2]), expected, rtol=1e-5)


def wrong_winners(draw, num_categories=2**20, num_races=160):
    """Races of one category of probability 1 against a million of 1e-30: how many does it lose?"""
    weights = jnp.full(num_categories, -69.0).at[0].set(0.0)

    def is_lost(key):
        return races.winner(races.arrivals(draw(key, num_categories), weights)) != 0

    return int(jax.lax.map(is_lost, jax.random.split(KEY, num_races)).sum())


def test_noise_is_never_zero():
    """Noise of exactly 0 beats every weight; `jax.random.exponential` is 0 with probability 2^-23.

    With that generator, the planted defect, 160 * 2^20 / 2^23 = 20 races are lost on average, and
    none with probability 2e-9.
    """
    assert wrong_winners(lambda key, n: races.exponentials(key, 1, n)[0]) == 0
    assert wrong_winners(lambda key, n: jax.random.exponential(key, (n,), jnp.float32)) > 0


@pytest.mark.parametrize("diverse", [False, True])
def test_first_arrivals_are_the_winners_of_the_dense_race(diverse):
    probs = jnp.asarray(np.random.default_rng(3).dirichlet(np.ones(37), 6), jnp.float32)
    log_probs = jnp.log(probs).at[:, 5].set(-jnp.inf)
    pair = (log_probs[:5] if diverse else log_probs[0], log_probs[5])
    noise = races.exponentials(KEY, 5, 37)
    sparse = races.first_arrivals(KEY, 5, *pair)
    for log_weights, (first, winners) in zip(pair, sparse, strict=True):
        dense = races.arrivals(noise, log_weights)
        np.testing.assert_array_equal(winners, jnp.argmin(dense, axis=1))
        np.testing.assert_array_equal(first, dense.min(axis=1))


def test_winner_is_argmin_and_stays_in_range():
    arrivals = jnp.asarray([[3.0, 1.0, 1.0], [jnp.inf] * 3, [jnp.nan] * 3])
    assert races.winner(arrivals).tolist()[:2] == [1, 0]
    assert 0 <= int(races.winner(arrivals)[2]) < 3


# Darts


def test_uniforms_are_those_of_the_noise():
    """`1 - exp(-S)` of stream 0, prefix-stable, within (0, 1) also where all bits are equal."""
    u = np.asarray(races.uniforms(KEY, 4096))
    noise = np.asarray(races.exponentials(KEY, 1, 4096)[0], np.float64)
    np.testing.assert_allclose(u, -np.expm1(-noise), rtol=1e-6)
    np.testing.assert_array_equal(races.uniforms(KEY, 1), u[:1])
    extreme_bits = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    ends = np.asarray(threefry.uniform(extreme_bits, extreme_bits))
    np.testing.assert_allclose(ends, [2.0**-65, 1 - 2.0**-24], rtol=1e-7)
    assert ends[1] < 1


def test_scale_is_the_integer_product():
    """`word * N` in three words against Python integers; the first is the category."""
    rng = np.random.default_rng(6)
    high, low = rng.integers(0, 2**32, (2, 200), dtype=np.uint32)
    high[:4] = [0, 2**32 - 1, 0, 2**32 - 1]
    low[:4] = [0, 2**32 - 1, 2**32 - 1, 0]
    random_words = [(int(h) << 32) + int(w) for h, w in zip(high, low, strict=True)]
    scale = jax.jit(threefry.scale, static_argnums=2)
    for size in (1, 3, 10, 65_535, 65_536, 151_936, 2**31 - 1):
        # First word of a category and last word of the one before: a wrong carry swaps them.
        edges = []
        for category in range(1, min(size, 100)):
            first_word = -(-category * 2**64 // size)
            edges += [first_word, first_word - 1]
        edges += [0] * (198 - len(edges))
        words = np.array(random_words + edges, object)
        parts = scale((words >> 32).astype(np.uint32), (words % 2**32).astype(np.uint32), size)
        first, second, third = (np.asarray(part).astype(object) for part in parts)
        product = (first << 64) + (second << 32) + third
        assert product.tolist() == (words * size).tolist()


def test_dart_is_a_function_of_its_number():
    """For every block, start, traced or not, and batch."""
    whole = jax.jit(lambda key: races.darts(key, 0, 300, 11))(KEY)
    block = jax.jit(jax.vmap(lambda key, start: races.darts(key, start, 7, 11), in_axes=(None, 0)))
    starts = np.array([0, 1, 50, 293])
    numbers = starts[:, None] + np.arange(7)
    for part, all_darts in zip(block(KEY, starts), whole, strict=True):
        np.testing.assert_array_equal(part, np.asarray(all_darts)[numbers])
    _, last_heights = block(KEY, np.array([2**31 - 7]))  # the last darts there are
    _, first_heights = block(KEY, np.array([0]))
    assert (last_heights != first_heights).all()


@pytest.mark.parametrize("size", [3, 10, 1000])
def test_darts_are_uniform(size):
    """Chi-square for categories, Kolmogorov-Smirnov for heights, and both jointly.

    The false-failure rate of each is 1e-9.
    """
    categories, heights = map(np.asarray, races.darts(KEY, 5, 2**18, size))
    assert oracles.chi_square(np.bincount(categories, minlength=size), np.ones(size)) > 1e-9
    assert scipy.stats.kstest(heights, "uniform").pvalue > 1e-9
    quarters = (heights * 4).astype(int)
    joint_counts = np.bincount(categories * 4 + quarters, minlength=4 * size)
    assert oracles.chi_square(joint_counts, np.ones(4 * size)) > 1e-9
    # Two darts in a row, by fifths of the categories.
    fifths = categories * 5 // size
    pair_counts = np.bincount(fifths[:-1] * 5 + fifths[1:], minlength=25)
    fifth_sizes = np.bincount(np.arange(size) * 5 // size, minlength=5)
    expected = np.outer(fifth_sizes, fifth_sizes).ravel()
    assert oracles.chi_square(pair_counts, expected) > 1e-9


def test_low_darts_keep_their_digits():
    """Darts below 2^-10, scaled up, are uniform again in each category, and on no grid of 2^-32.

    So a curve of 1e-6 is hit at its right rate. Of 2^23 darts only 8 are that low.
    """
    categories, heights = map(np.asarray, jax.jit(lambda: races.darts(KEY, 0, 2**23, 10))())
    low = heights < 2.0**-10
    assert oracles.binomial(int(low.sum()), len(low), 2.0**-10) > 1e-9
    assert scipy.stats.kstest(heights[low] * 2.0**10, "uniform").pvalue > 1e-9
    assert oracles.chi_square(np.bincount(categories[low], minlength=10), np.ones(10)) > 1e-9
    lowest = np.sort(heights)[:64].astype(np.float64) * 2.0**32
    assert (lowest != np.round(lowest)).mean() > 0.9 and heights.min() > 0 and heights.max() < 1
    assert oracles.binomial(int((heights < 1e-6).sum()), len(heights), 1e-6) > 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: races.exponentials(jax.random.PRNGKey(0), 1, 1), "typed key"),
        (lambda: races.exponentials(0, 1, 1), "typed key"),
        (
            lambda: races.exponentials(jax.random.split(KEY, 3), 1, 1),
            r"one key of shape \[\], got shape \[3\]",
        ),
        (
            lambda: races.exponentials(jax.random.key(0, impl="rbg"), 1, 1),
            "'threefry2x32', got 'rbg'",
        ),
        (
            lambda: races.first_arrivals(KEY, 1),
            "log_weights: expected at least one distribution, got none",
        ),
        (
            lambda: races.exponentials(KEY, 0, 1),
            "num_streams: expected an int of at least 1, got 0",
        ),
        (lambda: races.exponentials(KEY, 1, 2.5), "num_items: expected an int of at least 1"),
        (lambda: races.position_key(3, 4), "typed key"),
        (lambda: races.uniforms(0, 1), "typed key"),
        (lambda: races.uniforms(KEY, 0), "count: expected an int of at least 1, got 0"),
        (lambda: races.darts(0, 0, 1, 1), "typed key"),
        (
            lambda: races.darts(KEY, -1, 1, 1),
            r"start: expected one int within 0..2147483647, got -1",
        ),
        (lambda: races.darts(KEY, 0, 0, 1), "count: expected an int of at least 1, got 0"),
        (lambda: races.darts(KEY, 0, 1, 0), "num_categories: expected an int of at least 1, got 0"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
