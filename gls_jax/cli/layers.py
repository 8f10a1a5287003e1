"""Layers as they are written on the command line, such as `12-17` or `3,7-9`."""

from __future__ import annotations

__all__ = ["others", "parse"]


def parse(text: str) -> list[tuple[int, int]]:
    """`12-17,20` as ranges."""
    ranges = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not (
            first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)
        ):
            raise ValueError(f"drop_layers: expected layers such as 12-17 or 3,7-9, got {text!r}")
        ranges.append((int(first), int(last or first)))
    return ranges


def others(dropped: list[tuple[int, int]], count: int) -> tuple[int, ...]:
    """The layers that stay."""
    if any(last >= count for _, last in dropped):
        raise ValueError(
            f"drop_layers: expected layers within 0-{count - 1}, got {max(dropped)[1]}"
        )
    kept = tuple(
        layer
        for layer in range(count)
        if not any(first <= layer <= last for first, last in dropped)
    )
    if not kept:
        raise ValueError(
            f"drop_layers: expected some of the {count} layers to stay, got all of them"
        )
    return kept
