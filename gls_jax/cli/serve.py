"""Batches of requests, worked off one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gls_jax.cli.reply import Reply

if TYPE_CHECKING:
    from gls_jax.decoding import DecodeOptions, LanguageModel, Stream

__all__ = ["Clock", "serve"]


@dataclasses.dataclass
class Clock:
    """Wall time, the first round of each batch apart: it reads the prompts and, where needed,
    compiles.

    Attributes:
        warm_up: seconds until the end of the first rounds.
        seconds: of the rounds after.
        tokens: that came in these.
        parts: seconds of these by part, for a timed run.
    """

    warm_up: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    parts: dict[str, float] | None = None


def serve(
    target: LanguageModel,
    drafter: LanguageModel | None,
    replies: Sequence[Reply],
    batch: int,
    clock: Clock,
    show: Callable[[str], Any],
    finished: Callable[[dict[str, Any]], Any],
    options: DecodeOptions,
    timed: bool,
) -> None:
    """Let all replies grow to their ends.

    Args:
        target, drafter: the models; no drafter for plain generation.
        replies: what is wanted.
        batch: requests in one batch.
        clock: where the time goes.
        show: called with each new piece of text.
        finished: called with each finished reply's record.
        options: the same for all requests, but for what each request says itself.
        timed: whether each part of a round is timed.

    A reply whose logits are no law stays unfinished; the others do not.
    """
    size = min(batch, len(replies))
    for start in range(0, len(replies), size):
        part = replies[start : start + size]
        # A last batch of another size would compile again; rows that only fill it up end after one
        # token.
        filler = [part[0]] * (size - len(part))
        _batch(target, drafter, part, filler, clock, show, finished, options, timed)


def _batch(target, drafter, replies, filler, clock, show, finished, options, timed) -> None:
    import jax.numpy as jnp

    from gls_jax import decoding

    rows = [*replies, *filler]
    started = time.perf_counter()
    run = decoding.stream(
        jnp.stack([row.key for row in rows]),
        target,
        drafter,
        [row.prompt for row in rows],
        options=dataclasses.replace(
            options,
            max_new_tokens=[row.limit for row in replies] + [1] * len(filler),
            temperature=[row.request.temperature for row in rows],
            stop_tokens=[sorted(row.stops.tokens) for row in rows],
        ),
        timed=timed,
    )
    came, warm = 0, None
    for new in _rounds(run):
        ended: list[int] = []
        for row, (reply, tokens) in enumerate(zip(replies, new, strict=False)):
            if reply.finish_reason is None:
                before = len(reply.tokens)
                show(reply.take(tokens))
                came += len(reply.tokens) - before
                if reply.finish_reason:
                    ended.append(row)
        if ended:
            metrics = run.generation.metrics
            for row in ended:
                finished(replies[row].record(metrics.histogram[row], metrics.draft_calls[row]))
        if warm is None:
            warm = time.perf_counter(), came, run.generation.metrics.seconds
        if all(reply.finish_reason for reply in replies):
            break
    if warm is None:  # not one round
        return
    first, early, parts = warm
    clock.warm_up += first - started
    clock.seconds += (steady := time.perf_counter() - first)
    clock.tokens += came - early
    if (until := run.generation.metrics.seconds) is not None and parts is not None:
        _add_parts(clock, parts, until, steady)


def _rounds(run: Stream) -> Iterator:
    from gls_jax import decoding

    try:
        yield from run
    except decoding.BrokenLogits:  # comes when all others are ready
        return


def _add_parts(
    clock: Clock, before: dict[str, float], after: dict[str, float], steady: float
) -> None:
    spent = {name: after[name] - before[name] for name in ("draft", "verify", "select")}
    spent["other"] = steady - sum(spent.values())  # transfers, text, files
    clock.parts = {
        name: (clock.parts or {}).get(name, 0.0) + seconds for name, seconds in spent.items()
    }
