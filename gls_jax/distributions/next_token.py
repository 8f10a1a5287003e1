"""Pairs of next-token distributions of two language models along texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gls_jax import checks
from gls_jax.decoding import log_probs
from gls_jax.distributions.pairs import Pairs

__all__ = ["cut_texts", "next_token_pairs"]

Logits = Callable[[Any], jax.Array]
"""A causal model: tokens `i32[B, T]` to logits `[B, T, V]`."""


def next_token_pairs(
    target: Logits,
    drafter: Logits,
    texts: Sequence[Sequence[int]],
    *,
    num_positions: int,
    max_context: int = 512,
    temperature: float = 1.0,
    draft_temperature: float = 1.0,
    top_k: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Next-token distributions of two models after every prefix of the texts.

    With `top_k` the pairs are cut to the tokens that either model can produce. The others change
    no acceptance, and studying a hundred tokens is hundreds of times cheaper than studying a whole
    vocabulary.

    Args:
        target: the target model.
        drafter: the drafter, on the same vocabulary.
        texts: token ids, one sequence per text.
        num_positions: largest number of pairs.
        max_context: texts are cut into pieces of at most this many tokens, each read separately.
        temperature: of the target.
        draft_temperature: of the drafter.
        top_k: of both, or None.
        progress: called with `(positions done, positions)`.

    Returns:
        :class:`Pairs`, at most `num_positions` of them, in the order of the texts.

    Raises:
        ValueError: no text of at least one token, or vocabularies of different size.
    """
    num_positions = checks.count(num_positions, "num_positions")
    max_context = checks.count(max_context, "max_context")
    pieces = cut_texts(texts, max_context)
    if not pieces:
        raise ValueError("texts: expected at least one text of at least one token, got none")
    longest = max(map(len, pieces))
    num_positions = min(num_positions, sum(map(len, pieces)))
    parts: list[Pairs] = []
    num_done = 0
    for piece in pieces:
        if num_done == num_positions:
            break
        # All pieces have one shape, so that models are compiled once. Models are causal: what
        # follows a token, such as the padding, does not change its distribution.
        tokens = np.zeros((1, longest), np.int32)
        tokens[0, : len(piece)] = piece
        # At most the requested number of positions is read.
        num_read = min(len(piece), num_positions - num_done)
        draft_logits = drafter(tokens)[0, :num_read]
        target_logits = target(tokens)[0, :num_read]
        if draft_logits.shape[-1] != target_logits.shape[-1]:
            sizes = f"{draft_logits.shape[-1]} and {target_logits.shape[-1]}"
            raise ValueError(f"drafter and target: expected one vocabulary, got {sizes} tokens")
        log_p = log_probs(draft_logits, temperature=draft_temperature, top_k=top_k)
        log_q = log_probs(target_logits, temperature=temperature, top_k=top_k)
        pairs = Pairs(np.asarray(log_p), np.asarray(log_q))
        parts.append(pairs if top_k is None else _cut_to_joint_support(pairs))
        num_done += num_read
        if progress is not None:
            progress(num_done, num_positions)
    return _concatenate(parts)


def cut_texts(texts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Texts cut into pieces of at most `length` tokens, in their order."""
    return [list(text[at : at + length]) for text in texts for at in range(0, len(text), length)]


def _cut_to_joint_support(pairs: Pairs) -> Pairs:
    """Drop tokens that neither model can produce, the same number in every row."""
    is_possible = np.isfinite(pairs.log_p) | np.isfinite(pairs.log_q)
    width = int(is_possible.sum(axis=1).max())
    # Possible tokens first; rows that have fewer of them keep some impossible ones.
    kept = np.argsort(~is_possible, axis=1, kind="stable")[:, :width]
    return Pairs(*(np.take_along_axis(rows, kept, axis=1) for rows in pairs))


def _concatenate(parts: Sequence[Pairs]) -> Pairs:
    """All pairs, filled up with impossible tokens to one width."""
    width = max(part.log_p.shape[1] for part in parts)

    def pad(rows: np.ndarray) -> np.ndarray:
        columns = (0, width - rows.shape[1])
        return np.pad(rows, ((0, 0), columns), constant_values=-np.inf)

    log_p = np.concatenate([pad(part.log_p) for part in parts])
    log_q = np.concatenate([pad(part.log_q) for part in parts])
    return Pairs(log_p, log_q)
