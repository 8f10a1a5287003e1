"""Texts and features in batches, and which texts are held out."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gls_jax.drafter_options import DrafterTraining
from gls_jax.models.drafter.text_features import TextFeatures, padded_length

__all__ = ["TEXTS_OF_PROMPT", "Batch", "padded_batch", "split_texts", "text_batches"]

TEXTS_OF_PROMPT = 2
"""Replies to each prompt that the target writes; alike, so they are held out together."""


class Batch(NamedTuple):
    """Padded texts: `[B, T]` tokens, `[B, T, W]` features, `[B, T]` log-totals, `[B]` lengths."""

    tokens: Array
    features: Array
    log_totals: Array
    lengths: Array


def split_texts(texts: TextFeatures, options: DrafterTraining) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the texts to train on, and of those that are held out."""
    num_texts = len(texts.starts) - 1
    num_groups = -(-num_texts // TEXTS_OF_PROMPT)
    num_held_out = max(1, round(options.validation_share * num_groups))
    if num_groups <= num_held_out:
        raise ValueError(
            f"texts: expected enough to hold out {options.validation_share:.0%} of them, in pairs, "
            f"got {num_texts}"
        )
    held_out_groups = np.random.default_rng(options.seed).permutation(num_groups)[:num_held_out]
    is_held_out = np.isin(np.arange(num_texts) // TEXTS_OF_PROMPT, held_out_groups)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def text_batches(texts: TextFeatures, numbers: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Texts of about equal length in batches of at most `batch_tokens` tokens, padding included."""
    lengths = np.diff(texts.starts)[numbers]
    order = numbers[np.argsort(lengths, kind="stable")]
    batches = []
    end = len(order)
    # From the longest down, so that the first of a batch decides its length.
    while end > 0:
        longest = order[end - 1]
        length = padded_length(int(texts.starts[longest + 1] - texts.starts[longest]))
        size = max(1, batch_tokens // length)
        batches.append(order[max(0, end - size) : end])
        end -= size
    return batches


def padded_batch(texts: TextFeatures, numbers: np.ndarray) -> Batch:
    """The texts of these numbers, padded with zeros."""
    starts, ends = texts.starts[numbers], texts.starts[numbers + 1]
    length = padded_length(int((ends - starts).max()))

    def padded(values):
        rows = np.zeros((len(numbers), length, *values.shape[1:]), values.dtype)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            rows[row, : end - start] = values[start:end]
        return rows

    return Batch(
        tokens=jnp.asarray(padded(texts.tokens)),
        features=jnp.asarray(padded(texts.features)),
        log_totals=jnp.asarray(padded(texts.log_totals)),
        lengths=jnp.asarray(ends - starts, jnp.int32),
    )
