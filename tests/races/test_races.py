import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import races
from gls_jax.races import threefry
from tests import oracles

KEY = jax.random.key(20)


def test_clocks_are_the_bits_of_jax_random():
    """The leading 32 bits of every clock are `jax.random.bits` of `fold_in(key, stream)`."""
    clocks = np.asarray(races.exponentials(KEY, 5, 33))
    for stream in range(5):
        bits = jax.random.bits(jax.random.fold_in(KEY, stream), (33,))
        u = -np.expm1(-clocks[stream].astype(np.float64)) * 2.0**32
        np.testing.assert_allclose(u, np.asarray(bits, np.float64) + 0.5, rtol=1e-5)


def test_clocks_are_exponential():
    """Kolmogorov-Smirnov on 2^20 clocks; false-failure rate 1e-9."""
    clocks = np.asarray(races.exponentials(KEY, 4, 2**18)).ravel()
    assert scipy.stats.kstest(clocks, "expon").pvalue > 1e-9
    assert clocks.min() > 0 and np.isfinite(clocks).all()


def test_cipher_is_that_of_jax():
    """Both words, bit for bit: `fold_in` for the pair, `bits` for their exclusive or."""
    words = jax.random.key_data(KEY)
    high, low = threefry.threefry2x32((words[0], words[1]), jnp.arange(100, dtype=jnp.uint32))
    folds = jax.vmap(lambda k: jax.random.key_data(jax.random.fold_in(KEY, k)))(jnp.arange(100))
    np.testing.assert_array_equal(jnp.stack([high, low], axis=1), folds)
    np.testing.assert_array_equal(high ^ low, jax.random.bits(KEY, (100,)))


def test_small_clocks_keep_their_digits():
    """Relative error against float64 down to the smallest clock, 2^-65: no rounding to 0, no coarse grid."""
    bits = jnp.asarray(
        [0, 0, 0, 1, 2, 255, 2**16, 2**24 + 1, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32
    )
    more = jnp.asarray([0, 7, 2**32 - 1, 5, 2**31, 3, 9, 2**30, 1, 0, 2**32 - 1], jnp.uint32)
    uniform = (
        np.asarray(bits, np.float64) + (np.asarray(more, np.float64) + 0.5) * 2.0**-32
    ) * 2.0**-32
    clocks = np.asarray(jax.jit(races.exponentials_from_bits)(bits, more), np.float64)
    np.testing.assert_allclose(clocks[:-2], -np.log1p(-uniform[:-2]), rtol=1e-6)
    assert 15 < clocks[-1] < 25 and clocks[0] == pytest.approx(2.0**-65)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 100)])
def test_prefix_stability(shape):
    whole = races.exponentials(KEY, 8, 128)
    np.testing.assert_array_equal(races.exponentials(KEY, *shape), whole[: shape[0], : shape[1]])


def test_clocks_do_not_depend_on_the_batch_or_on_jit():
    keys = jax.random.split(KEY, 9)
    batch = jax.jit(jax.vmap(lambda key: races.exponentials(key, 3, 17)))(keys)
    for row, key in zip(batch, keys, strict=True):
        np.testing.assert_array_equal(row, races.exponentials(key, 3, 17))


def test_keys_of_positions_streams_and_private_noise_differ():
    keys = [KEY, races.private_key(KEY), *(races.position_key(KEY, t) for t in range(50))]
    words = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(words) == len(keys)
    leading = jax.random.bits(
        races.stream_key(KEY, 2), (5,)
    )  # a stream's clocks follow from its key alone
    u = -np.expm1(-np.asarray(races.exponentials(KEY, 3, 5)[2], np.float64)) * 2.0**32
    np.testing.assert_allclose(u, np.asarray(leading, np.float64) + 0.5, rtol=1e-5)


def wrong_winners(draw, num_items=2**20, races_run=160):
    """Races of one item of probability 1 against a million of 1e-30: how many does the sure item lose?"""
    weights = jnp.full(num_items, -69.0).at[0].set(0.0)

    def lost(key):
        return races.winner(races.arrivals(draw(key, num_items), weights)) != 0

    return int(jax.lax.map(lost, jax.random.split(KEY, races_run)).sum())


def test_float32_zero_trap():
    """A clock of exactly 0 beats every weight. Ours is never 0; `jax.random.exponential` is, with probability 2^-23.

    The planted generator loses 160 * 2^20 / 2^23 = 20 races on average, and none with probability 2e-9.
    """
    assert wrong_winners(lambda key, n: races.exponentials(key, 1, n)[0]) == 0
    assert wrong_winners(lambda key, n: jax.random.exponential(key, (n,), jnp.float32)) > 0


@pytest.mark.parametrize("diverse", [False, True])
def test_leaders_are_the_winners_of_the_dense_race(diverse):
    rng = np.random.default_rng(3)
    laws = jnp.log(jnp.asarray(rng.dirichlet(np.ones(37), 6), jnp.float32)).at[:, 5].set(-jnp.inf)
    log_p, log_q = (laws[:5] if diverse else laws[0]), laws[5]
    arrivals = [races.arrivals(races.exponentials(KEY, 5, 37), law) for law in (log_p, log_q)]
    for (first, items), dense in zip(
        races.first_arrivals(KEY, 5, log_p, log_q), arrivals, strict=True
    ):
        np.testing.assert_array_equal(items, jnp.argmin(dense, axis=1))
        np.testing.assert_array_equal(first, dense.min(axis=1))


def test_winner_is_argmin_and_stays_in_range():
    arrivals = jnp.asarray([[3.0, 1.0, 1.0], [jnp.inf] * 3, [jnp.nan] * 3])
    assert races.winner(arrivals).tolist()[:2] == [1, 0]
    assert 0 <= int(races.winner(arrivals)[2]) < 3


# Darts


def test_uniforms_are_those_of_the_clocks():
    """`1 - exp(-S)` of stream 0, prefix-stable, within (0, 1) also where all bits are equal."""
    u = np.asarray(races.uniforms(KEY, 4096))
    np.testing.assert_allclose(
        u, -np.expm1(-np.asarray(races.exponentials(KEY, 1, 4096)[0], np.float64)), rtol=1e-6
    )
    np.testing.assert_array_equal(races.uniforms(KEY, 1), u[:1])
    ends = np.asarray(threefry.uniform(*(jnp.asarray([0, 2**32 - 1], jnp.uint32),) * 2))
    np.testing.assert_allclose(ends, [2.0**-65, 1 - 2.0**-24], rtol=1e-7)
    assert ends[1] < 1


def test_item_and_height_of_a_word_are_the_integer_product():
    """`word * N` in three words against Python integers; the first is the item."""
    rng = np.random.default_rng(6)
    high, low = rng.integers(0, 2**32, (2, 200), dtype=np.uint32)
    high[:4], low[:4] = [0, 2**32 - 1, 0, 2**32 - 1], [0, 2**32 - 1, 2**32 - 1, 0]
    scale = jax.jit(threefry.scale, static_argnums=2)
    for size in (1, 3, 10, 65_535, 65_536, 151_936, 2**31 - 1):
        edges = [
            -(-item * 2**64 // size) - late for item in range(1, min(size, 100)) for late in (0, 1)
        ]
        edges += [0] * (
            198 - len(edges)
        )  # first and last word of an item: one carry off and they swap
        words = [*((int(h) << 32) + int(w) for h, w in zip(high, low, strict=True)), *edges]
        pair = (
            (np.array(words, object) >> 32).astype(np.uint32),
            (np.array(words, object) % 2**32).astype(np.uint32),
        )
        product = sum(
            np.asarray(part).astype(object) << (64 - 32 * at)
            for at, part in enumerate(scale(*pair, size))
        )
        assert product.tolist() == [word * size for word in words]


def test_dart_is_a_function_of_its_number():
    """Whatever the block, the start, traced or not, and the batch."""
    items, heights = jax.jit(lambda key: races.darts(key, 0, 300, 11))(KEY)
    cut = jax.jit(jax.vmap(lambda key, start: races.darts(key, start, 7, 11), in_axes=(None, 0)))
    starts = np.array([0, 1, 50, 293])
    for got, whole in zip(cut(KEY, starts), (items, heights), strict=True):
        np.testing.assert_array_equal(got, np.asarray(whole)[starts[:, None] + np.arange(7)])
    assert (
        cut(KEY, np.array([2**31 - 7]))[1] != cut(KEY, np.array([0]))[1]
    ).all()  # the last darts there are


@pytest.mark.parametrize("num_items", [3, 10, 1000])
def test_darts_are_uniform(num_items):
    """Items by chi-square, heights by Kolmogorov-Smirnov, and both jointly; false-failure rate 1e-9 each."""
    items, heights = map(np.asarray, races.darts(KEY, 5, 2**18, num_items))
    assert oracles.chi_square(np.bincount(items, minlength=num_items), np.ones(num_items)) > 1e-9
    assert scipy.stats.kstest(heights, "uniform").pvalue > 1e-9
    cells = np.bincount(items * 4 + (heights * 4).astype(int), minlength=4 * num_items)
    assert oracles.chi_square(cells, np.ones(4 * num_items)) > 1e-9
    pairs = np.bincount(
        (items[:-1] * 5 // num_items) * 5 + items[1:] * 5 // num_items, minlength=25
    )
    step = np.bincount(np.arange(num_items) * 5 // num_items, minlength=5)
    assert oracles.chi_square(pairs, np.outer(step, step).ravel()) > 1e-9


def test_low_darts_keep_their_digits():
    """Of 2^23 darts those below 2^-10, scaled up, are uniform again, item by item, and lie on no grid of 2^-32.

    A curve of 1e-6 is then hit at its right rate: directly there would be 8 hits.
    """
    items, heights = map(np.asarray, jax.jit(lambda: races.darts(KEY, 0, 2**23, 10))())
    low = heights < 2.0**-10
    assert oracles.binomial(int(low.sum()), len(low), 2.0**-10) > 1e-9
    assert scipy.stats.kstest(heights[low] * 2.0**10, "uniform").pvalue > 1e-9
    assert oracles.chi_square(np.bincount(items[low], minlength=10), np.ones(10)) > 1e-9
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
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
