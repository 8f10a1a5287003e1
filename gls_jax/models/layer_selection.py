"""Which layers of a model a drafter keeps.

The command line and the experiments say which layers to drop; `gls_jax.models` takes the layers to
keep.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["LayerRange", "check_kept_layers", "middle_fifth", "parse_ranges", "remaining_layers"]

LayerRange: TypeAlias = tuple[int, int]
"""First and last layer of a range, both included."""


def parse_ranges(text: str) -> list[LayerRange]:
    """Parse layers such as `12-17` or `3,7-9`; the empty text means no layers.

    Raises:
        ValueError: text of another form, or a range whose last layer precedes its first.

    >>> from gls_jax.models import layer_selection
    >>> layer_selection.parse_ranges("3,7-9")
    [(3, 3), (7, 9)]
    """
    ranges = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"drop_layers: expected layers such as 12-17 or 3,7-9, got {text!r}")
        ranges.append((int(first), int(last)))
    return ranges


def remaining_layers(dropped: Sequence[LayerRange], num_layers: int) -> tuple[int, ...]:
    """Layers that remain when the `dropped` ranges are left out.

    Raises:
        ValueError: a range beyond the last layer, or no layer remains.

    >>> from gls_jax.models import layer_selection
    >>> layer_selection.remaining_layers([(0, 0), (3, 4)], 6)
    (1, 2, 5)
    """
    highest = max((last for _, last in dropped), default=0)
    if highest >= num_layers:
        raise ValueError(f"drop_layers: expected layers within 0-{num_layers - 1}, got {highest}")
    dropped_layers = {layer for first, last in dropped for layer in range(first, last + 1)}
    kept_layers = tuple(layer for layer in range(num_layers) if layer not in dropped_layers)
    if not kept_layers:
        raise ValueError(
            f"drop_layers: expected some of the {num_layers} layers to stay, got all of them"
        )
    return kept_layers


def middle_fifth(num_layers: int) -> LayerRange:
    """Middle fifth of the layers, at least one: what a drafter leaves out by default.

    >>> from gls_jax.models import layer_selection
    >>> layer_selection.middle_fifth(30)
    (12, 17)
    """
    first = 2 * num_layers // 5
    last = 3 * num_layers // 5 - 1
    return first, max(first, last)


def check_kept_layers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """Validate indices of layers to keep; None keeps all `num_layers`.

    Raises:
        ValueError: no index, indices that are not ints or do not increase, or an index that no
            layer has.
    """
    if layers is None:
        return tuple(range(num_layers))
    try:
        kept_layers = [operator.index(layer) for layer in layers]
    except TypeError:
        raise ValueError(f"layers: expected a sequence of ints, got {layers!r}") from None
    valid_layers = sorted(set(kept_layers) & set(range(num_layers)))
    if not kept_layers or kept_layers != valid_layers:
        raise ValueError(
            f"layers: expected increasing indices from 0 to {num_layers - 1}, at least one, "
            f"got {kept_layers}"
        )
    return tuple(kept_layers)
