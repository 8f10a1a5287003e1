"""Ordered search (ours): visit candidates in the order of their noise, stop when no later one wins.

A candidate that arrives at time `T` with weight `w` has the score ``T / w``. If ``w <= w_max``, no
candidate that arrives after ``T = best * w_max`` can beat the best score so far. So the encoder's
search ends after about `w_max` arrivals, at any `N`. A decoder's ends after about ``L w_max``, for
it skips the other bins. The picks have the distribution of dense search, at a cost that does not
grow with `N`.

The cost of a symbol varies by orders of magnitude. One batched loop therefore gives each lane its
next symbol as soon as it has finished one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gls_jax import races
from gls_jax.compression.densities import Density
from gls_jax.compression.list_code import ListCode, smallest_score
from gls_jax.races import arrival_order
from gls_jax.typing import Index

__all__ = ["decode_indices", "encode_indices"]

_VISITS_AT_ONCE = 2**14  # over all lanes; a lane's visits are divided among its streams
_LONG_STEP = 4096
_PATIENCE = 16  # short steps before a symbol is left to the second sweep
_SLACK = 1e-4  # added to the bound: weights are rounded, and a few more visits cost nothing
_UNDECIDED = -2


class Searches(NamedTuple):
    """What is searched for, one row per symbol.

    Attributes:
        keys: position keys.
        rows: of the density.
        streams: the streams to follow.
        message: the bin to stay in; None for all candidates.
    """

    keys: Key[Array, " n"]
    rows: Any
    streams: Int[Array, "n R"]
    message: Int[Array, " n"] | None


class Lane(NamedTuple):
    """Progress of the search for one symbol.

    Attributes:
        place: number of the next visit.
        walks: position in each stream.
        best_score: logarithm of the smallest score so far.
        best_index: its candidate; -1 if there is none yet.
    """

    place: Int[Array, "*B"]
    walks: arrival_order.Walk
    best_score: Float[Array, "*B"]
    best_index: Int[Array, "*B"]


class Sweep(NamedTuple):
    """One pass over a queue of symbols.

    Attributes:
        num_lanes: symbols that are searched at the same time.
        step: visits per stream in one turn of the loop.
        limit: visits per stream after which a symbol is given up.
    """

    num_lanes: int
    step: int
    limit: int


def encode_indices(
    code: ListCode, keys: Key[Array, " n"], density: Density, shared: Any, rows: Any, count: Index
) -> Int[Array, " n"]:
    """The encoder's indices of the first `count` symbols: a search through all streams."""
    streams = jnp.broadcast_to(
        jnp.arange(code.num_streams, dtype=jnp.int32), (keys.shape[0], code.num_streams)
    )
    searches = Searches(keys=keys, rows=rows, streams=streams, message=None)
    return _search(code, searches, density, shared, count)


def decode_indices(
    code: ListCode,
    keys: Key[Array, " n"],
    message: Int[Array, " n"],
    stream: Index,
    density: Density,
    shared: Any,
    rows: Any,
    count: Index,
) -> Int[Array, " n"]:
    """A decoder's indices of the first `count` symbols; -1 if no candidate has the bin."""
    streams = jnp.full((keys.shape[0], 1), stream, jnp.int32)
    searches = Searches(keys=keys, rows=rows, streams=streams, message=message)
    return _search(code, searches, density, shared, count)


def _search(code: ListCode, searches: Searches, density: Density, shared, count):
    """Two sweeps: all symbols in short steps, then in long steps the few that need many visits."""
    num_symbols, num_streams = searches.streams.shape
    queue = jnp.arange(num_symbols, dtype=jnp.int32)
    index = jnp.full(num_symbols, _UNDECIDED, jnp.int32)
    visit = partial(_visit, code, searches, density, shared)
    # The second sweep takes up the symbols that the first one has given up.
    for sweep in _sweeps(code, num_streams, is_decoder=searches.message is not None):
        index = _run_sweep(sweep, visit, num_streams, queue, count, index)
        is_undecided = (index == _UNDECIDED) & (jnp.arange(num_symbols) < count)
        queue = jnp.nonzero(is_undecided, size=num_symbols, fill_value=0)[0].astype(jnp.int32)
        count = jnp.sum(is_undecided, dtype=jnp.int32)
    return index


def _sweeps(code: ListCode, num_streams: int, *, is_decoder: bool) -> list[Sweep]:
    """The second sweep is left out where the first one visits every candidate."""
    # A decoder skips the candidates of other bins, so it takes about L times as many visits.
    decoder_step = max(32, min(256, 1 << code.num_bins.bit_length()))
    short_step = decoder_step if is_decoder else 64
    # Visits of one turn are divided among the streams.
    step_per_stream = max(8, short_step // num_streams)
    short_sweep = Sweep(
        num_lanes=_VISITS_AT_ONCE // short_step,
        step=step_per_stream,
        limit=_PATIENCE * step_per_stream,
    )
    num_visits = arrival_order.num_visits(code.num_candidates)
    if short_sweep.limit >= num_visits:
        return [short_sweep]
    long_sweep = Sweep(
        num_lanes=_VISITS_AT_ONCE // _LONG_STEP,
        step=max(8, _LONG_STEP // num_streams),
        limit=num_visits,
    )
    return [short_sweep, long_sweep]


def _run_sweep(sweep: Sweep, visit: Callable, num_streams: int, queue, count, index):
    """Search the first `count` symbols of the queue; fill in the indices that become certain.

    `index` is `i32[n]`, :data:`_UNDECIDED` where nothing is known yet.
    """
    num_lanes = sweep.num_lanes
    # A lane before its first visit.
    first_walks = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_lanes, num_streams)), arrival_order.start()
    )
    first_place = jnp.zeros(num_lanes, jnp.int32)
    no_score = jnp.full(num_lanes, jnp.inf, jnp.float32)
    new_lanes = Lane(
        place=first_place,
        walks=first_walks,
        best_score=no_score,
        best_index=first_place - 1,
    )

    def turn(state):
        queue_place, lanes, num_taken, index = state
        symbols = queue[jnp.minimum(queue_place, count - 1)]
        lanes, is_decided = jax.vmap(partial(visit, sweep.step))(symbols, lanes)
        is_over = is_decided | (lanes.place >= sweep.limit)

        # Behind the end of the queue lanes repeat its last symbol; they must not write.
        write_at = jnp.where(is_over & (queue_place < count), symbols, index.shape[0])
        new_index = jnp.where(is_decided, lanes.best_index, _UNDECIDED)
        index = index.at[write_at].set(new_index, mode="drop")

        # A lane whose symbol is over starts again with the next symbol of the queue.
        next_place = num_taken + jnp.cumsum(is_over, dtype=jnp.int32) - 1
        queue_place = jnp.where(is_over, next_place, queue_place)
        lanes = jax.tree.map(partial(_where_lanes, is_over), new_lanes, lanes)
        num_taken = num_taken + jnp.sum(is_over, dtype=jnp.int32)
        return queue_place, lanes, num_taken, index

    # The first lanes take the first symbols of the queue. Indices are the last part of the state.
    queue_places = jnp.arange(num_lanes, dtype=jnp.int32)
    first_state = (queue_places, new_lanes, jnp.asarray(num_lanes, jnp.int32), index)
    last_state = jax.lax.while_loop(lambda state: jnp.any(state[0] < count), turn, first_state)
    return last_state[3]


def _visit(
    code: ListCode, searches: Searches, density: Density, shared, step: int, symbol, lane: Lane
):
    """The next `step` places of each stream of a symbol; whether its index is now certain."""
    key, row, streams, message = jax.tree.map(lambda x: x[symbol], tuple(searches))

    def follow(stream, walk):
        walk, indices, noise = arrival_order.visit(
            stream, walk, lane.place, step, code.num_candidates
        )
        # A decoder ignores the candidates of other bins.
        if message is not None:
            is_in_bin = races.bins(key, indices, code.num_bins) == message
            noise = jnp.where(is_in_bin, noise, jnp.inf)
        candidates = races.candidates(key, indices, code.dimension)
        scores = jnp.log(noise) - density.log_weight(shared, row, candidates)
        return walk, *smallest_score(scores, indices)

    # vmap keeps the streams apart: XLA:CPU does not vectorise across a reshape.
    stream_words = races.keys.stream_words(key, streams)
    walks, scores, indices = jax.vmap(follow)(stream_words, lane.walks)
    new_score, new_index = smallest_score(scores, indices)
    is_better = new_score < lane.best_score
    best_score = jnp.where(is_better, new_score, lane.best_score)
    best_index = jnp.where(is_better, new_index, lane.best_index)
    place = lane.place + step

    # No weight exceeds the bound, so no later score is below log(time) - log_bound.
    assert density.log_bound is not None  # checked in symbol_validation
    log_bound = density.log_bound(shared, row) + _SLACK
    is_decided = jnp.log(jnp.min(walks.time)) - log_bound >= best_score
    is_decided |= place >= arrival_order.num_visits(code.num_candidates)
    lane = Lane(place=place, walks=walks, best_score=best_score, best_index=best_index)
    return lane, is_decided


def _where_lanes(is_over, new, old):
    # Walks have an axis of streams behind that of lanes.
    return jnp.where(is_over.reshape(-1, *[1] * (old.ndim - 1)), new, old)
