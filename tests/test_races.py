import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import races

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
    high, low = races._threefry2x32((words[0], words[1]), jnp.arange(100, dtype=jnp.uint32))
    folds = jax.vmap(lambda k: jax.random.key_data(jax.random.fold_in(KEY, k)))(jnp.arange(100))
    np.testing.assert_array_equal(jnp.stack([high, low], axis=1), folds)
    np.testing.assert_array_equal(high ^ low, jax.random.bits(KEY, (100,)))


def test_small_clocks_keep_their_digits():
    """Relative error against float64 down to the smallest clock, 2^-65: no rounding to 0, no coarse grid."""
    bits = jnp.asarray([0, 0, 0, 1, 2, 255, 2**16, 2**24 + 1, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32)
    more = jnp.asarray([0, 7, 2**32 - 1, 5, 2**31, 3, 9, 2**30, 1, 0, 2**32 - 1], jnp.uint32)
    uniform = (np.asarray(bits, np.float64) + (np.asarray(more, np.float64) + 0.5) * 2.0**-32) * 2.0**-32
    clocks = np.asarray(jax.jit(races.clocks_from_bits)(bits, more), np.float64)
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
    leading = jax.random.bits(races.stream_key(KEY, 2), (5,))  # a stream's clocks follow from its key alone
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
    for (first, items), dense in zip(races.leaders(KEY, 5, log_p, log_q), arrivals, strict=True):
        np.testing.assert_array_equal(items, jnp.argmin(dense, axis=1))
        np.testing.assert_array_equal(first, dense.min(axis=1))


def test_winner_is_argmin_and_stays_in_range():
    arrivals = jnp.asarray([[3.0, 1.0, 1.0], [jnp.inf] * 3, [jnp.nan] * 3])
    assert races.winner(arrivals).tolist()[:2] == [1, 0]
    assert 0 <= int(races.winner(arrivals)[2]) < 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: races.exponentials(jax.random.PRNGKey(0), 1, 1), "typed key"),
        (lambda: races.exponentials(0, 1, 1), "typed key"),
        (lambda: races.exponentials(jax.random.split(KEY, 3), 1, 1), r"one key of shape \[\], got shape \[3\]"),
        (lambda: races.exponentials(jax.random.key(0, impl="rbg"), 1, 1), "'threefry2x32', got 'rbg'"),
        (lambda: races.exponentials(KEY, 0, 1), "num_streams: expected an int of at least 1, got 0"),
        (lambda: races.exponentials(KEY, 1, 2.5), "num_items: expected an int of at least 1"),
        (lambda: races.position_key(3, 4), "typed key"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
