"""Categories in order of arrival: all orders equally likely, times of sorted noise, none missing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import races
from gls_jax.races import arrival_order

KEY = jax.random.key(60)
ALPHA = 1e-9  # false-failure rate of every statistical test here


def walks(num_categories, num_keys, walk_length=None):
    """Categories and noise of walks under many keys, `[keys, places]` each; whole walks by default."""
    walk_length = walk_length or arrival_order.num_visits(num_categories)

    @jax.jit
    @jax.vmap
    def walk(key):
        stream = races.keys.words(key)
        start = arrival_order.start()
        _, categories, noise = arrival_order.visit(stream, start, 0, walk_length, num_categories)
        return categories, noise

    categories, noise = walk(jax.random.split(KEY, num_keys))
    return np.asarray(categories), np.asarray(noise)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 8])
def test_orders_are_equally_likely_and_times_are_sorted_noise(size):
    """All orders of the first arrivals by chi-square, spacings by Kolmogorov-Smirnov, 100,000 walks."""
    categories, noise = walks(size, 100_000)
    arrived = np.isfinite(noise)
    assert (arrived.sum(1) == size).all() and (categories[arrived] < size).all()
    orders = categories[arrived].reshape(-1, size)
    num_first = min(size, 5)
    order_numbers = orders[:, :num_first] @ size ** np.arange(num_first)
    _, counts = np.unique(order_numbers, return_counts=True)
    assert len(counts) == math.perm(size, num_first)
    assert size == 1 or scipy.stats.chisquare(counts).pvalue > ALPHA
    times = noise[arrived].reshape(-1, size)
    assert (np.diff(times, axis=1) >= 0).all()
    spacings = np.diff(times, axis=1, prepend=0) * np.arange(size, 0, -1)
    assert scipy.stats.kstest(spacings.ravel(), "expon").pvalue > ALPHA


def test_few_rounds_would_be_caught(monkeypatch):
    """Planted defect: the same chi-square finds that two rounds of the network do not mix."""
    mixed = arrival_order._mixed
    rounds = iter(range(100))

    def two_rounds_only(x, *constants):
        return mixed(x, *constants) if next(rounds) < 2 else jnp.zeros_like(x)

    monkeypatch.setattr(arrival_order, "_mixed", two_rounds_only)
    categories, _ = walks(8, 20_000)
    _, counts = np.unique(categories[:, :3] @ 8 ** np.arange(3), return_counts=True)
    assert len(counts) < math.perm(8, 3) or scipy.stats.chisquare(counts).pvalue < ALPHA


def test_neighbours_are_unrelated():
    """The first two categories of 64 in 100,000 walks.

    Every pair, their difference and their exclusive or.
    """
    categories, _ = walks(64, 100_000, walk_length=2)
    first, second = categories.T
    pairs = np.bincount(first * 64 + second, minlength=64 * 64).reshape(64, 64)
    assert np.trace(pairs) == 0
    different = pairs[~np.eye(64, dtype=bool)]
    differences = np.bincount((second - first) % 64)[1:]
    exclusive_ors = np.bincount(first ^ second)[1:]
    for counts in (different, differences, exclusive_ors):
        assert scipy.stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("size", [37, 64, 5000])
def test_a_walk_in_steps_is_the_walk_in_one(size):
    """Steps of 16 see what one long step sees: every category once, at the same time."""
    stream = races.keys.stream_words(KEY, 3)
    walk_length = arrival_order.num_visits(size)
    start = arrival_order.start()
    _, categories, noise = arrival_order.visit(stream, start, 0, walk_length, size)
    step = jax.jit(lambda walk, first: arrival_order.visit(stream, walk, first, 16, size))
    walk = start
    category_parts = []
    noise_parts = []
    for first in range(0, walk_length + 16, 16):  # one step beyond the end
        walk, some_categories, some_noise = step(walk, first)
        category_parts.append(some_categories)
        noise_parts.append(some_noise)
    all_categories = np.concatenate(category_parts)
    all_noise = np.concatenate(noise_parts)
    arrived = np.isfinite(all_noise)
    assert sorted(all_categories[arrived]) == list(range(size))
    np.testing.assert_array_equal(all_categories[: len(categories)], categories)
    np.testing.assert_allclose(all_noise[: len(noise)], noise, rtol=2e-6)
    assert int(walk.seen) == size or size == walk_length


def test_streams_and_keys_begin_with_unrelated_categories():

    def first_category(key, stream):
        words = races.keys.stream_words(key, stream)
        return arrival_order.visit(words, arrival_order.start(), 0, 1, 2**20)[1][0]

    def two_streams(key):
        return jnp.stack([first_category(key, 0), first_category(key, 1)])

    categories = jax.jit(jax.vmap(two_streams))(jax.random.split(KEY, 200))
    # 400 draws of 2^20 categories: more than ten repeats have probability 1e-14.
    assert len(np.unique(categories)) > 390
