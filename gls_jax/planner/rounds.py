"""Block efficiency along a text: rounds follow one another, each begins where the last one ended.

``survival[t, d]`` is the probability, given the text, that a round that begins at position `t`
accepts more than `d` drafts. It says how probably the round emits 1, 2, ... tokens. So a round
begins at `t` with probability

    r_t = sum_n r_{t-n} P(a round that begins at t - n emits n tokens),

and with probability 1 at the beginning of a document. The block efficiency is the number of tokens
over the expected number of rounds: no simulation, no approximation. After a rejection the position
is a hard one, and rounds are counted at it as often as they begin there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gls_jax.decoding.tree_shape import Shape

__all__ = [
    "Efficiency",
    "block_efficiency",
    "chain_survival",
    "shape_survival",
    "tokens_per_round",
    "tree_survival",
]


class Efficiency(NamedTuple):
    """Tokens per call of the target.

    Attributes:
        mean: block efficiency, delivered tokens per round.
        standard_error: of the mean over documents; NaN for a single one.
        by_position: probability that the draft at each depth is accepted, given that those before
            it are. Drafts beyond the end of a document do not count; a depth that no document has
            is NaN.
    """

    mean: float
    standard_error: float
    by_position: tuple[float, ...]


def chain_survival(kernels: np.ndarray, num_drafts: int, length: int) -> np.ndarray:
    """Survival of K chains, `[P, L]`.

    Args:
        kernels: `[P, K' + 1, K' + 1]` of :func:`gls_jax.planner.conditional.kernels`, ``K' >= K``.
        num_drafts: `K`.
        length: `L`, drafts of a chain.
    """
    kernels = kernels[:, : num_drafts + 1, : num_drafts + 1]
    # Distribution of the number of active chains; all K are active in the beginning.
    num_active = np.zeros((len(kernels), num_drafts + 1))
    num_active[:, num_drafts] = 1
    survival = []
    for depth in range(length):
        num_active = np.einsum("pj,pjk->pk", num_active, _ahead(kernels, depth))
        survival.append(1 - num_active[:, 0])
    return np.stack(survival, axis=1)


def tree_survival(kernels: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Survival of a static tree with `widths` children at each depth, `[P, L]`.

    Every tree node has a separate list. So the acceptance at a depth does not depend on the node
    that the path passes through.
    """
    accepted = []
    for depth, width in enumerate(widths):
        accepted.append(1 - _ahead(kernels[:, width, 0], depth))
    return np.cumprod(np.stack(accepted, axis=1), axis=1)


def shape_survival(shape: Shape, kernels: np.ndarray) -> np.ndarray:
    """Survival of K chains or of a static tree, `[P, L]`."""
    if shape.is_chains:
        return chain_survival(kernels, shape.widths[0], shape.depth)
    return tree_survival(kernels, shape.widths)


def block_efficiency(survival: np.ndarray, begins: np.ndarray) -> Efficiency:
    """Tokens per round along documents.

    A round ends with its document: drafts accepted beyond the end are not delivered.

    Args:
        survival: `[P, L]`.
        begins: `bool[P]`, where documents begin.

    >>> import numpy as np
    >>> from gls_jax.planner import rounds
    >>> half = np.full((10_000, 1), 0.5)  # every draft is accepted with probability 1/2
    >>> round(rounds.block_efficiency(half, np.arange(10_000) == 0).mean, 2)
    1.5
    """
    num_positions, num_depths = survival.shape
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, num_positions))
    # at_least[t, d]: a round accepts d drafts or more; certain for 0, impossible for L + 1.
    at_least = np.pad(survival, ((0, 0), (1, 1)), constant_values=(1, 0))
    emission = at_least[:, :-1] - at_least[:, 1:]
    begin_probs, num_rounds = _begin_probabilities(emission, starts, lengths)
    mean, standard_error = tokens_per_round(lengths, num_rounds)
    # Acceptance by depth, over the rounds that reach it inside of their document.
    document = np.cumsum(begins) - 1
    offset = np.arange(num_positions) - starts[document]
    num_left = lengths[document] - offset
    is_inside = np.arange(num_depths) < num_left[:, None]
    weight = begin_probs[document, offset]
    num_tried = weight @ np.where(is_inside, at_least[:, :num_depths], 0)
    num_accepted = weight @ np.where(is_inside, survival, 0)
    with np.errstate(invalid="ignore"):
        by_position = num_accepted / num_tried
    return Efficiency(mean, standard_error, tuple(by_position.tolist()))


def tokens_per_round(num_tokens: np.ndarray, num_rounds: np.ndarray) -> tuple[float, float]:
    """Ratio of two sums over texts, and its standard error, which is NaN for one text.

    Args:
        num_tokens, num_rounds: of each text.
    """
    num_texts, total = len(num_rounds), num_rounds.sum()
    mean = num_tokens.sum() / total
    error = np.nan
    if num_texts > 1:
        # Delta method: the error of a ratio is that of the sum of the residuals, over `total`.
        squares = np.sum((num_tokens - mean * num_rounds) ** 2)
        error = np.sqrt(squares * num_texts / (num_texts - 1)) / total
    return float(mean), float(error)


def _begin_probabilities(
    emission: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that rounds begin at each token, and expected numbers of rounds.

    Args:
        emission: `[P, L + 1]`, probabilities that a round emits 1, ..., L + 1 tokens.
        starts, lengths: of the `D` documents.

    Returns:
        The probability that a round begins at each token of each document, `[D, tokens]`, and the
        expected number of rounds of each document, `[D]`.
    """
    longest, most_tokens = lengths.max(), emission.shape[1]
    probabilities = np.zeros((len(starts), longest + most_tokens))
    probabilities[:, 0] = 1
    num_rounds = np.zeros(len(starts))
    for offset in range(longest):
        # After a round that passes the end of its document no other round begins.
        begin = np.where(offset < lengths, probabilities[:, offset], 0)
        positions = np.minimum(starts + offset, len(emission) - 1)
        following = slice(offset + 1, offset + 1 + most_tokens)
        probabilities[:, following] += begin[:, None] * emission[positions]
        num_rounds += begin
    return probabilities, num_rounds


def _ahead(values: np.ndarray, depth: int) -> np.ndarray:
    """Values of the position `depth` further on.

    Beyond the end of the text the last position is repeated; no round is counted there.
    """
    positions = np.minimum(np.arange(len(values)) + depth, len(values) - 1)
    return values[positions]
