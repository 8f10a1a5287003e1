"""Clocks in order of arrival: all orders equally likely, times of sorted exponentials, no item lost."""

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


def walks(num_items, count, places=None):
    """Items and clocks of whole walks under many keys."""
    places = arrival_order.num_visits(num_items) if places is None else places

    @jax.jit
    @jax.vmap
    def run(key):
        return arrival_order.visit(
            races.keys.words(key), arrival_order.start(), 0, places, num_items
        )[1:]

    return map(np.asarray, run(jax.random.split(KEY, count)))


@pytest.mark.parametrize("num_items", [1, 2, 3, 5, 6, 8])
def test_orders_are_equally_likely_and_times_are_sorted_clocks(num_items):
    """All orders of few items, and first arrivals of all: chi-square and Kolmogorov-Smirnov on 100,000 walks."""
    items, clocks = walks(num_items, 100_000)
    arrived = np.isfinite(clocks)
    assert (arrived.sum(1) == num_items).all() and (items[arrived] < num_items).all()
    orders = items[arrived].reshape(-1, num_items)
    shown = min(num_items, 5)
    _, counts = np.unique(orders[:, :shown] @ num_items ** np.arange(shown), return_counts=True)
    assert len(counts) == math.perm(num_items, shown)
    assert num_items == 1 or scipy.stats.chisquare(counts).pvalue > ALPHA
    times = clocks[arrived].reshape(-1, num_items)
    assert (np.diff(times, axis=1) >= 0).all()
    spacings = np.diff(times, axis=1, prepend=0) * np.arange(num_items, 0, -1)
    assert scipy.stats.kstest(spacings.ravel(), "expon").pvalue > ALPHA


def test_few_rounds_would_be_caught(monkeypatch):
    """Planted defect: the same chi-square finds that two rounds of the network do not mix."""
    mixed = ordered._mixed
    calls = iter(range(100))
    monkeypatch.setattr(
        ordered,
        "_mixed",
        lambda x, *rest: mixed(x, *rest) if next(calls) < 2 else jnp.zeros_like(x),
    )
    items, _ = walks(8, 20_000)
    _, counts = np.unique(items[:, :3] @ 8 ** np.arange(3), return_counts=True)
    assert len(counts) < math.perm(8, 3) or scipy.stats.chisquare(counts).pvalue < ALPHA


def test_neighbours_are_unrelated():
    """First two items among 64: every pair, their difference and their exclusive or, 100,000 walks."""
    items, _ = walks(64, 100_000, places=2)
    first, second = items.T
    pairs = np.bincount(first * 64 + second, minlength=64 * 64).reshape(64, 64)
    assert np.trace(pairs) == 0
    for counts in (
        pairs[~np.eye(64, dtype=bool)],
        np.bincount((second - first) % 64)[1:],
        np.bincount(first ^ second)[1:],
    ):
        assert scipy.stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("num_items", [37, 64, 5000])
def test_steps_do_not_matter(num_items):
    """A walk in steps of 16 sees what one long step sees: every item once, at the same time."""
    stream, places = races.keys.stream_words(KEY, 3), arrival_order.num_visits(num_items)
    _, items, clocks = arrival_order.visit(stream, arrival_order.start(), 0, places, num_items)
    step = jax.jit(lambda walk, first: arrival_order.visit(stream, walk, first, 16, num_items))
    walk, parts = arrival_order.start(), []
    for first in range(0, places + 16, 16):  # one step beyond the end
        walk, *part = step(walk, first)
        parts.append(part)
    found = [np.concatenate(column) for column in zip(*parts, strict=True)]
    arrived = np.isfinite(found[1])
    assert sorted(found[0][arrived]) == list(range(num_items))
    np.testing.assert_array_equal(found[0][: len(items)], items)
    np.testing.assert_allclose(found[1][: len(items)], clocks, rtol=2e-6)
    assert int(walk.seen) == num_items or num_items == places


def test_streams_differ():
    """Two streams of a key, and one stream of two keys, begin with unrelated items."""
    first = lambda key, stream: arrival_order.visit(  # noqa: E731
        races.keys.stream_words(key, stream), arrival_order.start(), 0, 1, 2**20
    )[1][0]
    keys = jax.random.split(KEY, 200)
    heads = jax.jit(jax.vmap(lambda key: jnp.stack([first(key, 0), first(key, 1)])))(keys)
    assert (
        len(np.unique(heads)) > 390
    )  # 400 draws of 2^20 items: more than ten repeats have chance 1e-14
