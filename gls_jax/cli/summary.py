"""What a run of `gls-jax generate` is judged by: a table for people, an object for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from gls_jax.cli.serve import Clock

__all__ = ["summary", "table"]


def summary(records: Sequence[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """All figures, of all requests; times only of what was generated now.

    Args:
        records: of the finished replies, at least one.
        clock: of this run.
    """
    import numpy as np

    from gls_jax.decoding import Metrics

    histogram = np.array([record["accepted"] for record in records])
    emitted = np.array([len(record["tokens"]) for record in records])
    metrics = Metrics(
        histogram, emitted, nodes=0, calls_per_round=0, rounds=0
    )  # sizes that no figure below reads
    reasons = [record["finish_reason"] for record in records]
    figures = {
        "requests": len(records),
        "stopped": reasons.count("stop"),
        "tokens": int(emitted.sum()),
        "target_calls": int(histogram.sum()),
        "draft_calls": sum(record["draft_calls"] for record in records),
        "block_efficiency": _number(metrics.block_efficiency),
        "acceptance_histogram": metrics.acceptance_histogram.tolist(),
        "acceptance_by_position": [_number(chance) for chance in metrics.acceptance_by_position],
        "warm_up_seconds": clock.warm_up,
        "seconds": clock.seconds,
        "tokens_per_second": clock.tokens / clock.seconds if clock.tokens else None,
    }
    return figures | ({} if clock.parts is None else {"parts": clock.parts})


def table(figures: dict[str, Any], title: str) -> Table:
    """The summary for people."""
    rows = Table(title=title, show_header=False)
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_row("requests, ended by a stop", f"{figures['requests']}, {figures['stopped']}")
    rows.add_row("tokens", str(figures["tokens"]))
    rows.add_row(
        "target calls, draft calls", f"{figures['target_calls']}, {figures['draft_calls']}"
    )
    rows.add_row("mean acceptance length (block efficiency)", _shown(figures["block_efficiency"]))
    if figures["acceptance_by_position"]:
        shares = (
            f"{count} {share:.0%}" for count, share in enumerate(figures["acceptance_histogram"])
        )
        rows.add_row("acceptance histogram", "  ".join(shares))
        rows.add_row(
            "acceptance by position", "  ".join(map(_shown, figures["acceptance_by_position"]))
        )
    rows.add_row("prompts, compilation, first tokens", f"{figures['warm_up_seconds']:.1f} s")
    rows.add_row("tokens a second after that", _shown(figures["tokens_per_second"]))
    for part, seconds in figures.get("parts", {}).items():
        rows.add_row(f"  {part}", f"{seconds:.2f} s, {seconds / max(figures['seconds'], 1e-9):.0%}")
    return rows


def _number(value: float) -> float | None:
    """NaN is no JSON."""
    return None if math.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
