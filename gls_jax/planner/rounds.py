"""Block efficiency along a text: rounds follow one another, each beginning where the last one
ended.

``reach[t, d]`` is the chance that a round that begins at position `t` accepts more than `d` drafts,
given the text. Then a round begins at `t` with probability ``r_t = sum_n r_{t-n} P(a round that
begins at t - n emits n tokens)``, 1 at the beginning of a document, and the block efficiency is the
ratio of tokens to rounds: no simulation, no approximation. Positions behind a rejection are hard
ones, and this counts them as often as they come.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gls_jax.decoding.tree_shape import Shape

__all__ = ["Efficiency", "block_efficiency", "reach_of_chains", "reach_of_tree"]


class Efficiency(NamedTuple):
    """Tokens a call of the target.

    Attributes:
        mean: block efficiency, delivered tokens a round.
        standard_error: of the mean over documents; NaN for a single one.
        by_position: chance that the draft at each depth is accepted, given that those before it
            are; what would stand behind the end of a text does not count, and a depth that no text
            has is NaN.
    """

    mean: float
    standard_error: float
    by_position: tuple[float, ...]


def reach_of_chains(kernels: np.ndarray, num_drafts: int, length: int) -> np.ndarray:
    """K chains of `length` drafts: `[P, L]` from kernels `[P, K' + 1, K' + 1]`, ``K' >= K``."""
    kernels = kernels[:, : num_drafts + 1, : num_drafts + 1]
    alive = np.zeros((len(kernels), num_drafts + 1))
    alive[:, num_drafts] = 1
    reach = []
    for depth in range(length):
        alive = np.einsum("pj,pjk->pk", alive, _ahead(kernels, depth))
        reach.append(1 - alive[:, 0])
    return np.stack(reach, axis=1)


def reach_of_tree(kernels: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """A static tree: every context at a depth has a list of its own, whichever node the path came
    through.
    """
    hits = [1 - _ahead(kernels[:, width, 0], depth) for depth, width in enumerate(widths)]
    return np.cumprod(np.stack(hits, axis=1), axis=1)


def block_efficiency(reach: np.ndarray, begins: np.ndarray) -> Efficiency:
    """Tokens a round along the documents, which ends with its document: what is accepted behind
    that is not delivered.

    Args:
        reach: `[P, L]`.
        begins: `bool[P]`, where documents begin.

    >>> import numpy as np
    >>> from gls_jax.planner import rounds
    >>> half = np.full((10_000, 1), 0.5)  # every draft is accepted with probability 1/2
    >>> round(rounds.block_efficiency(half, np.arange(10_000) == 0).mean, 2)
    1.5
    """
    length = reach.shape[1]
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.append(starts, len(begins)))
    left = np.repeat(starts + sizes, sizes) - np.arange(
        len(begins)
    )  # tokens of the document from here on
    inside = np.arange(length) < left[:, None]
    before = np.pad(reach, ((0, 0), (1, 0)), constant_values=1)[:, :-1]
    tried, accepted = np.where(inside, before, 0), np.where(inside, reach, 0)
    ends = np.pad(reach, ((0, 0), (1, 1)), constant_values=(1, 0))
    advance = ends[:, :-1] - np.pad(reach, ((0, 0), (0, 1)))  # P(1, ..., L + 1 tokens)
    begun = np.zeros((len(starts), sizes.max() + length + 1))
    begun[:, 0] = 1
    rounds = np.zeros(len(starts))
    for t in range(sizes.max()):
        now = np.where(t < sizes, begun[:, t], 0)  # a round that overshoots the end begins no other
        at = np.minimum(starts + t, len(reach) - 1)
        begun[:, t + 1 : t + length + 2] += now[:, None] * advance[at]
        rounds += now
    total, count = rounds.sum(), len(starts)
    mean = sizes.sum() / total
    spread = np.sum((sizes - mean * rounds) ** 2)
    error = np.sqrt(spread * count / (count - 1)) / total if count > 1 else np.nan
    here = begun[
        np.repeat(np.arange(count), sizes), np.arange(len(begins)) - np.repeat(starts, sizes)
    ]
    with np.errstate(invalid="ignore"):
        conditional = (here @ accepted) / (here @ tried)
    return Efficiency(float(mean), float(error), tuple(float(x) for x in conditional))


def reach_of(shape: Shape, kernels: np.ndarray) -> np.ndarray:
    """Of K chains or a static tree."""
    if shape.chains:
        return reach_of_chains(kernels, shape.widths[0], shape.depth)
    return reach_of_tree(kernels, shape.widths)


def _ahead(values: np.ndarray, by: int) -> np.ndarray:
    """Those of the position `by` further on; the last one's at the end, where no round is counted."""
    return values[np.minimum(np.arange(len(values)) + by, len(values) - 1)]
