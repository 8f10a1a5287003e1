"""Requests decoded batch by batch, with the time that it took."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from gls_jax import races
from gls_jax.decoding.choice import Drafters, auto
from gls_jax.decoding.generation import BrokenLogits, Stream, stream
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.preparation import prepare
from gls_jax.decoding.requests.replies import Reply
from gls_jax.decoding.uncached import from_function

__all__ = ["Timer", "check_options", "run_batches"]

_LARGEST_VOCABULARY = 2**31 - 1


@dataclasses.dataclass
class Timer:
    """Wall time of a run, summed over its batches.

    The first round of each batch is kept apart: it also reads the prompts and compiles.

    Attributes:
        warm_up: seconds until the end of the first rounds.
        seconds: seconds of all later rounds.
        tokens: tokens that came in these later rounds.
        parts: seconds of these later rounds by part, if the run was timed by part.
    """

    warm_up: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    parts: dict[str, float] | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Rate after the first rounds; None if no token came after them."""
        return self.tokens / self.seconds if self.tokens else None

    def add_parts(self, start: dict[str, float], end: dict[str, float], seconds: float) -> None:
        """Add the time by part of some rounds.

        Args:
            start, end: seconds by part, up to the first of these rounds and up to the last.
            seconds: of these rounds in all.
        """
        added = {name: end[name] - start[name] for name in end}
        # The remaining time goes to transfers between host and device, text and files.
        added["other"] = seconds - sum(added.values())
        earlier = self.parts or {}
        self.parts = {name: earlier.get(name, 0.0) + added[name] for name in added}


def check_options(
    options: DecodeOptions, *, has_drafter: bool = True, is_automatic: bool = False
) -> None:
    """Check decoding options as far as that is possible without the models.

    The options go through the same validation as for a real run, with a placeholder for the
    models: it has the largest vocabulary and is never called.

    Args:
        options: the options.
        has_drafter: whether the target has a drafter.
        is_automatic: whether drafting is automatic.

    Raises:
        ValueError: options out of range or that do not go together.

    >>> from gls_jax import decoding
    >>> from gls_jax.decoding import requests
    >>> requests.check_options(decoding.DecodeOptions(scheme="single", num_drafts=2))
    Traceback (most recent call last):
    ValueError: num_drafts: scheme 'single' takes at most 1, got 2
    """
    placeholder = from_function(_never_called, (), _LARGEST_VOCABULARY)
    drafters: Drafters = placeholder if has_drafter else None
    if is_automatic:
        drafters = auto(placeholder)
    prepare(races.new_key(0), placeholder, drafters, [[0]], None, options)


def run_batches(
    target: LanguageModel,
    drafters: Drafters,
    replies: Sequence[Reply],
    options: DecodeOptions,
    *,
    batch_size: int = 8,
    timed: bool = False,
    on_text: Callable[[str], object] | None = None,
    on_finished: Callable[[dict[str, Any]], object],
) -> Timer:
    """Decode all replies, `batch_size` at a time.

    A reply whose model gives NaN or infinite logits stays unfinished; the others are finished.

    Args:
        target: the model.
        drafters: what drafts, as `decoding.generate` takes it.
        replies: the replies, which are changed in place.
        options: common options; length, temperature and stop tokens come from the requests.
        batch_size: requests in one batch.
        timed: whether to measure the parts of a round, which costs some speed.
        on_text: called with each new piece of text.
        on_finished: called with :meth:`Reply.record` of each finished reply.

    Returns:
        Where the time went.
    """
    timer = Timer()
    batch_size = min(batch_size, len(replies))
    for start in range(0, len(replies), batch_size):
        batch = replies[start : start + batch_size]
        # Another batch size would compile again, so the last batch is filled up.
        num_fillers = batch_size - len(batch)
        started = time.perf_counter()
        run = _start_batch(target, drafters, batch, num_fillers, options, timed)
        _finish_batch(run, batch, started, timer, on_text or _ignore_text, on_finished)
    return timer


def _start_batch(
    target: LanguageModel,
    drafters: Drafters,
    batch: Sequence[Reply],
    num_fillers: int,
    options: DecodeOptions,
    timed: bool,
) -> Stream:
    """Begin to decode a batch, filled up with copies of its first request that end at once."""
    fillers = [batch[0]] * num_fillers
    rows = [*batch, *fillers]
    limits = [reply.max_new_tokens for reply in batch] + [1] * num_fillers
    # An option that differs between requests is a list with an entry for each row.
    batch_options = dataclasses.replace(
        options,
        max_new_tokens=limits,
        temperature=[reply.request.temperature for reply in rows],
        stop_tokens=[sorted(reply.stops.tokens) for reply in rows],
    )
    keys = jnp.stack([reply.key for reply in rows])
    prompts = [reply.prompt for reply in rows]
    return stream(keys, target, drafters, prompts, options=batch_options, timed=timed)


def _finish_batch(
    run: Stream,
    batch: Sequence[Reply],
    started: float,
    timer: Timer,
    on_text: Callable[[str], object],
    on_finished: Callable[[dict[str, Any]], object],
) -> None:
    """Decode a batch to the end of its replies."""
    num_tokens, warm_tokens = 0, 0
    warm_end, warm_parts = None, None
    for new_tokens in _until_broken(run):
        # The engine may emit tokens past the end of a reply, which only the text shows.
        finished_rows: list[int] = []
        for row, reply in enumerate(batch):
            if reply.finish_reason is None:
                num_before = len(reply.tokens)
                if piece := reply.take(new_tokens[row]):
                    on_text(piece)
                num_tokens += len(reply.tokens) - num_before
                if reply.finish_reason is not None:
                    finished_rows.append(row)
        # A finished reply is kept at once: a run that is interrupted does not lose it.
        if finished_rows:
            metrics = run.generation.metrics
            for row in finished_rows:
                on_finished(batch[row].record(metrics, row))
        # The first round also reads the prompts and compiles, so its time is kept apart.
        if warm_end is None:
            warm_end, warm_tokens = time.perf_counter(), num_tokens
            warm_parts = run.generation.metrics.seconds
        # The engine itself knows nothing of stop texts, and would continue.
        if all(reply.finish_reason is not None for reply in batch):
            break

    # Without a single round there is nothing to time.
    if warm_end is None:
        return
    seconds = time.perf_counter() - warm_end
    timer.warm_up += warm_end - started
    timer.seconds += seconds
    timer.tokens += num_tokens - warm_tokens
    parts = run.generation.metrics.seconds
    if warm_parts is not None and parts is not None:
        timer.add_parts(warm_parts, parts, seconds)


def _until_broken(run: Stream) -> Iterator[list]:
    """Rounds of a stream, which reports broken logits when all other requests are finished."""
    try:
        yield from run
    except BrokenLogits:
        return


def _ignore_text(piece: str) -> None:
    pass


def _never_called(params: Any, tokens: Any) -> Any:
    raise AssertionError
