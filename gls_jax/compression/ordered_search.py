"""Ordered search (ours): follow the clocks in the order in which they go off, and stop when no
later one can win.

An arrival at time `T` with weight `w` has the score ``T / w``. Where ``w <= w_max`` no arrival
after ``T = best * w_max`` can beat the best score so far, so a search ends after about `w_max`
arrivals (a decoder's after ``L w_max``, for it skips the other bins), at any `N`: the law of the
dense search at a cost that does not grow.

Costs differ from symbol to symbol by orders of magnitude, so one batched loop gives each lane its
next symbol as soon as it has finished one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gls_jax import races
from gls_jax.compression.code import Density, ListCode, leader
from gls_jax.races import ordered
from gls_jax.typing import Index

__all__ = ["choose", "pick"]

_AT_ONCE = 2**14  # places visited at a time, over all lanes and streams
_PATIENCE = 16  # steps before a symbol is put aside for the second sweep
_SLACK = 1e-4  # of the bound: weights are rounded, and a few visits more cost nothing

_UNSURE = -2


class Searches(NamedTuple):
    """What is searched for, a row a symbol.

    Attributes:
        keys: of the positions.
        rows: of the density.
        streams: which streams to follow.
        message: the bin to stay in; None for all.
    """

    keys: Key[Array, " n"]
    rows: Any
    streams: Int[Array, "n R"]
    message: Int[Array, " n"] | None


class Lane(NamedTuple):
    """How far the search for one symbol is.

    Attributes:
        place: number of the next visit.
        walks: where each stream stands.
        score: logarithm of the best score so far.
        item: whose it is; -1 for nobody's.
    """

    place: Int[Array, "*B"]
    walks: ordered.Walk
    score: Float[Array, "*B"]
    item: Int[Array, "*B"]


def choose(
    code: ListCode, keys: Key[Array, " n"], density: Density, shared: Any, rows: Any, count: Index
) -> Int[Array, " n"]:
    """The encoder's indices of the first `count` symbols: a search through all streams."""
    streams = jnp.broadcast_to(
        jnp.arange(code.num_streams, dtype=jnp.int32), (keys.shape[0], code.num_streams)
    )
    return _search(code, Searches(keys, rows, streams, None), density, shared, count)


def pick(
    code: ListCode,
    keys: Key[Array, " n"],
    message: Int[Array, " n"],
    stream: Index,
    density: Density,
    shared: Any,
    rows: Any,
    count: Index,
) -> Int[Array, " n"]:
    """A decoder's indices of the first `count` symbols; -1 where no candidate has the bin
    `message`.
    """
    streams = jnp.full((keys.shape[0], 1), stream, jnp.int32)
    return _search(code, Searches(keys, rows, streams, message), density, shared, count)


def _search(
    code: ListCode, searches: Searches, density: Density, shared: Any, count
) -> Int[Array, " n"]:
    """Two sweeps: many symbols in short steps, then the few that need thousands of visits in long
    ones.
    """
    num_symbols, num_streams = searches.streams.shape
    everything = ordered.num_visits(code.num_candidates)
    places = 64 if searches.message is None else max(32, min(256, 1 << code.num_bins.bit_length()))
    short, long = max(8, places // num_streams), max(8, 4096 // num_streams)
    sweeps = [(_AT_ONCE // places, short, _PATIENCE * short), (_AT_ONCE // 4096, long, everything)]
    queue = jnp.arange(num_symbols, dtype=jnp.int32)
    found = jnp.full(num_symbols, _UNSURE, jnp.int32)
    for lanes, step, limit in sweeps[: 1 if _PATIENCE * short >= everything else 2]:
        found = _sweep(
            code,
            searches,
            density,
            shared,
            queue,
            count,
            found,
            lanes=lanes,
            step=step,
            limit=limit,
        )
        unsure = (found == _UNSURE) & (jnp.arange(num_symbols) < count)
        queue = jnp.nonzero(unsure, size=num_symbols, fill_value=0)[0].astype(jnp.int32)
        count = jnp.sum(unsure, dtype=jnp.int32)
    return found


def _sweep(
    code: ListCode,
    searches: Searches,
    density: Density,
    shared: Any,
    queue,
    count,
    found,
    *,
    lanes,
    step,
    limit,
) -> Int[Array, " n"]:
    """Search the first `count` symbols of the queue, each until it is sure or has visited `limit`
    places a stream.
    """
    num_streams, everything = searches.streams.shape[1], ordered.num_visits(code.num_candidates)
    walks = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, num_streams)), ordered.start())
    nowhere = jnp.zeros(lanes, jnp.int32)
    bound = density.log_bound
    assert bound is not None  # checked at the door
    fresh = Lane(nowhere, walks, jnp.full(lanes, jnp.inf, jnp.float32), nowhere - 1)

    def visit(symbol, lane: Lane):
        key, row, streams, message = jax.tree.map(lambda x: x[symbol], tuple(searches))

        def follow(stream, walk):
            walk, items, clocks = ordered.visit(stream, walk, lane.place, step, code.num_candidates)
            if message is not None:
                clocks = jnp.where(
                    races.bins(key, items, code.num_bins) == message, clocks, jnp.inf
                )
            candidates = races.candidates(key, items, code.dimension)
            return walk, *leader(
                jnp.log(clocks) - density.log_weight(shared, row, candidates), items
            )

        # Streams stay apart: XLA:CPU does not vectorise across a reshape.
        walks, scores, items = jax.vmap(follow)(races.keys.stream_words(key, streams), lane.walks)
        first, winner = leader(scores, items)
        ahead = first < lane.score
        score, item, place = (
            jnp.where(ahead, first, lane.score),
            jnp.where(ahead, winner, lane.item),
            lane.place + step,
        )
        largest = bound(shared, row) + _SLACK
        sure = (jnp.log(jnp.min(walks.time)) - largest >= score) | (place >= everything)
        return Lane(place, walks, score, item), sure

    def tick(state):
        turn, lane, taken, found = state
        symbols = queue[jnp.minimum(turn, count - 1)]
        lane, sure = jax.vmap(visit)(symbols, lane)
        over = sure | (lane.place >= limit)
        slot = jnp.where(over & (turn < count), symbols, found.shape[0])
        found = found.at[slot].set(jnp.where(sure, lane.item, _UNSURE), mode="drop")
        turn = jnp.where(over, taken + jnp.cumsum(over, dtype=jnp.int32) - 1, turn)
        lane = jax.tree.map(
            lambda new, old: jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), new, old),
            fresh,
            lane,
        )
        return turn, lane, taken + jnp.sum(over, dtype=jnp.int32), found

    state = (jnp.arange(lanes, dtype=jnp.int32), fresh, jnp.asarray(lanes, jnp.int32), found)
    return jax.lax.while_loop(lambda state: jnp.any(state[0] < count), tick, state)[3]
