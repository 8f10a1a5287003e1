"""Ordered search (ours): visit candidates in the order of their noise, stop when no later one wins.

A candidate's noise is its arrival time `T` in the race of its stream. With weight `w` its score is
``T / w``. If ``w <= w_max``, no candidate that arrives after ``T = best * w_max`` can beat the best
score so far.

The cost does not grow with `N`. Scale the weights such that they average 1 over the candidates.
The encoder's best score is then about ``1 / (K N)`` with `K` streams, and its search ends after
about `w_max` arrivals in all streams together. A decoder uses one stream, and only one in `L`
candidates is in its bin; because it skips the others, its search ends after about ``L w_max``
arrivals. The chosen candidates have the same distribution as in dense search.

The number of arrivals varies by orders of magnitude between symbols. So the symbols wait in a
queue, and one batched loop searches several of them at a time, one in each batch lane. A lane
whose symbol is finished takes the next symbol from the queue.

Words of this module: a *position* is an index in the order of arrival of a stream, and to *visit*
it means to draw its candidate and score. In one *step* of the loop every lane visits the same
number of positions. A *pass* is one run of the loop over a queue.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gls_jax import races, work_shape
from gls_jax.compression.densities import Density
from gls_jax.compression.list_code import ListCode, smallest_score
from gls_jax.races import arrival_order
from gls_jax.typing import Index

__all__ = ["decode_indices", "encode_indices"]

# The visits of a lane in one step are the same on every platform: they decide how the sums of
# arrival times are rounded, and so they are part of the format. Only the number of lanes differs.
# Visits of a lane in one step of the second pass: few symbols are left, and each needs many.
_LONG_STEP = 4096
# Steps of the first pass after which a symbol is left to the second pass.
_MAX_SHORT_STEPS = 16
# Tolerance for rounding, in log weight. It is added to the bound, and costs a few more visits.
_SLACK = 1e-4
# The index of a symbol whose search is not finished; -1 means that no candidate has a weight.
_UNDECIDED = -2


class Searches(NamedTuple):
    """The symbols of a search.

    Attributes:
        keys: position key of each symbol.
        rows: row of each symbol for the density, a pytree of arrays with leading axis `n`.
        streams: numbers of the R streams that are searched for each symbol.
        message: only candidates of this bin are considered; None considers all.
    """

    keys: Key[Array, " n"]
    rows: Any
    streams: Int[Array, "n R"]
    message: Int[Array, " n"] | None


class Lane(NamedTuple):
    """Progress of the search for one symbol.

    Attributes:
        num_visited: positions visited in each stream, which is the number of the next one.
        walks: arrival time and number of arrivals so far, `[R]` for the streams.
        best_score: logarithm of the smallest score so far.
        best_index: its candidate; -1 if there is none yet.
    """

    num_visited: Int[Array, "*B"]
    walks: arrival_order.Walk
    best_score: Float[Array, "*B"]
    best_index: Int[Array, "*B"]


class Pass(NamedTuple):
    """Sizes of one pass over a queue of symbols.

    Attributes:
        num_lanes: symbols that are searched at the same time.
        step_size: positions per stream that a lane visits in one step.
        max_visited: positions per stream after which a symbol is given up.
    """

    num_lanes: int
    step_size: int
    max_visited: int


def encode_indices(
    code: ListCode, keys: Key[Array, " n"], density: Density, shared: Any, rows: Any, count: Index
) -> Int[Array, " n"]:
    """The encoder's indices of the first `count` symbols: a search through all streams.

    `shared` and `rows` are the arguments of the density, as in
    :func:`gls_jax.compression.encode`.
    """
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
    """A decoder's indices of the first `count` symbols; -1 if no candidate has the bin.

    `shared` and `rows` are the arguments of the density, as in
    :func:`gls_jax.compression.decode`.
    """
    streams = jnp.full((keys.shape[0], 1), stream, jnp.int32)
    searches = Searches(keys=keys, rows=rows, streams=streams, message=message)
    return _search(code, searches, density, shared, count)


def _search(code: ListCode, searches: Searches, density: Density, shared, count):
    """Two passes: all symbols in short steps, then in long steps the few that need many visits."""
    num_symbols, num_streams = searches.streams.shape
    queue = jnp.arange(num_symbols, dtype=jnp.int32)
    index = jnp.full(num_symbols, _UNDECIDED, jnp.int32)
    advance = partial(_advance_lane, code, searches, density, shared)
    # The queue of the second pass has the symbols that the first one gave up.
    is_decoder = searches.message is not None
    for sizes in _passes(code, num_symbols, num_streams, is_decoder=is_decoder):
        index = _run_pass(sizes, advance, num_streams, queue, count, index)
        is_undecided = (index == _UNDECIDED) & (jnp.arange(num_symbols) < count)
        queue = jnp.nonzero(is_undecided, size=num_symbols, fill_value=0)[0].astype(jnp.int32)
        count = jnp.sum(is_undecided, dtype=jnp.int32)
    return index


def _passes(code: ListCode, num_symbols: int, num_streams: int, *, is_decoder: bool) -> list[Pass]:
    """The sizes of both passes, or of the first alone where it visits every candidate."""
    visits = work_shape.current().visits
    # A decoder skips the candidates of other bins, so it takes about L times as many visits.
    decoder_step = max(32, min(256, 1 << code.num_bins.bit_length()))
    short_step = decoder_step if is_decoder else 64
    # The visits of a lane in one step are divided among the streams.
    step_size = max(8, short_step // num_streams)
    short_pass = Pass(
        num_lanes=min(num_symbols, visits // short_step),
        step_size=step_size,
        max_visited=_MAX_SHORT_STEPS * step_size,
    )
    num_positions = arrival_order.num_visits(code.num_candidates)
    if short_pass.max_visited >= num_positions:
        return [short_pass]
    long_pass = Pass(
        num_lanes=visits // _LONG_STEP,
        step_size=max(8, _LONG_STEP // num_streams),
        max_visited=num_positions,
    )
    return [short_pass, long_pass]


def _run_pass(sizes: Pass, advance: Callable, num_streams: int, queue, count, index):
    """Search the first `count` symbols of the queue; fill in the indices that become certain.

    Args:
        sizes: of the pass.
        advance: `_advance_lane` without its first arguments.
        num_streams: R, streams of each symbol.
        queue: `i32[n]`, symbols in the order in which they are searched.
        count: number of symbols in the queue.
        index: `i32[n]`, :data:`_UNDECIDED` where nothing is known yet.
    """
    num_lanes = sizes.num_lanes
    # Lanes before their first step.
    first_walks = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_lanes, num_streams)), arrival_order.start()
    )
    none_visited = jnp.zeros(num_lanes, jnp.int32)
    no_score = jnp.full(num_lanes, jnp.inf, jnp.float32)
    new_lanes = Lane(
        num_visited=none_visited,
        walks=first_walks,
        best_score=no_score,
        best_index=none_visited - 1,
    )

    def step(state):
        queue_index, lanes, num_taken, index = state
        symbols = queue[jnp.minimum(queue_index, count - 1)]
        lanes, is_decided = jax.vmap(partial(advance, sizes.step_size))(symbols, lanes)
        is_finished = is_decided | (lanes.num_visited >= sizes.max_visited)

        # Past the end of the queue, lanes repeat its last symbol; they must not write.
        write_at = jnp.where(is_finished & (queue_index < count), symbols, index.shape[0])
        new_index = jnp.where(is_decided, lanes.best_index, _UNDECIDED)
        index = index.at[write_at].set(new_index, mode="drop")

        # A lane whose symbol is finished starts again with the next symbol of the queue.
        next_index = num_taken + jnp.cumsum(is_finished, dtype=jnp.int32) - 1
        queue_index = jnp.where(is_finished, next_index, queue_index)
        lanes = jax.tree.map(partial(_where_lanes, is_finished), new_lanes, lanes)
        num_taken = num_taken + jnp.sum(is_finished, dtype=jnp.int32)
        return queue_index, lanes, num_taken, index

    # The first lanes take the first symbols of the queue. Indices are the last part of the state.
    first_queue_index = jnp.arange(num_lanes, dtype=jnp.int32)
    first_state = (first_queue_index, new_lanes, jnp.asarray(num_lanes, jnp.int32), index)
    last_state = jax.lax.while_loop(lambda state: jnp.any(state[0] < count), step, first_state)
    return last_state[3]


def _advance_lane(
    code: ListCode, searches: Searches, density: Density, shared, step_size: int, symbol, lane: Lane
):
    """Visit `step_size` more positions of each stream of a symbol.

    Returns:
        The lane after these visits, and whether its best index is now certain.
    """
    key, row, streams, message = jax.tree.map(lambda x: x[symbol], tuple(searches))

    def follow_stream(words, walk):
        walk, indices, times = arrival_order.visit(
            words, walk, lane.num_visited, step_size, code.num_candidates
        )
        # A decoder ignores the candidates of other bins.
        if message is not None:
            is_in_bin = races.bins(key, indices, code.num_bins) == message
            times = jnp.where(is_in_bin, times, jnp.inf)
        candidates = races.candidates(key, indices, code.dimension)
        scores = jnp.log(times) - density.log_weight(shared, row, candidates)
        return walk, *smallest_score(scores, indices)

    # vmap avoids a reshape over streams and positions, across which XLA:CPU does not vectorise.
    stream_key_words = races.keys.stream_words(key, streams)
    walks, scores, indices = jax.vmap(follow_stream)(stream_key_words, lane.walks)
    new_score, new_index = smallest_score(scores, indices)
    is_better = new_score < lane.best_score
    best_score = jnp.where(is_better, new_score, lane.best_score)
    best_index = jnp.where(is_better, new_index, lane.best_index)
    num_visited = lane.num_visited + step_size

    # No weight exceeds the bound, so no later score is below log(time) - log_bound.
    assert density.log_bound is not None  # checked in symbol_validation
    log_bound = density.log_bound(shared, row) + _SLACK
    is_decided = jnp.log(jnp.min(walks.time)) - log_bound >= best_score
    is_decided |= num_visited >= arrival_order.num_visits(code.num_candidates)
    lane = Lane(num_visited=num_visited, walks=walks, best_score=best_score, best_index=best_index)
    return lane, is_decided


def _where_lanes(is_finished, new, old):
    # Walks have an axis of streams after that of lanes.
    return jnp.where(is_finished.reshape(-1, *[1] * (old.ndim - 1)), new, old)
