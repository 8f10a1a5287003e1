"""Measured generation with a setting, for comparison with the predictions of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from gls_jax import decoding
from gls_jax.decoding import LanguageModel
from gls_jax.planner.costs import round_seconds
from gls_jax.planner.predictions import Setting
from gls_jax.planner.rounds import tokens_per_round

__all__ = ["Measured", "measure_generation"]

_PLAIN_TOKENS = 32  # of each text without drafts, for the speedup


class Measured(NamedTuple):
    """The measurements of a setting.

    Attributes:
        block_efficiency: delivered tokens per call of the target; drafts accepted beyond the end of
            a text do not count.
        standard_error: of it, over the texts.
        rounds: of all texts.
        tokens_per_second: of the whole batch, from the median time of a round.
        speedup: over plain generation. The two are run alternately, so that a machine that is busy
            for a while changes it least.
    """

    block_efficiency: float
    standard_error: float
    rounds: int
    tokens_per_second: float
    speedup: float


def measure_generation(
    keys: Key[Array, " R"],
    target: LanguageModel,
    drafter: LanguageModel,
    prompts: Sequence[Sequence[int]],
    setting: Setting,
    *,
    batch: int,
    options: decoding.DecodeOptions,
) -> Measured:
    """Generate a text for each key, cycling over the prompts, `batch` at a time.

    Args:
        keys: `[R]`, one per text.
        target, drafter: the models.
        prompts: token ids.
        setting: the scheme and shape of the drafts.
        batch: texts decoded together, which divides their number.
        options: length, stop tokens and sampling parameters; what is drafted comes from `setting`.
    """
    longest = int(np.max(np.asarray(options.max_new_tokens)))
    plain_options = dataclasses.replace(options, max_new_tokens=min(_PLAIN_TOKENS, longest))
    draft_options = dataclasses.replace(
        options,
        scheme=setting.scheme,
        num_drafts=setting.num_drafts,
        draft_length=setting.draft_length,
        tree=setting.tree,
    )
    # Counts are of each text, seconds of each round.
    num_tokens, num_rounds = [], []
    plain_seconds, draft_seconds = [], []
    for start in range(0, len(keys), batch):
        batch_keys = keys[start : start + batch]
        texts = [prompts[row % len(prompts)] for row in range(start, start + batch)]
        plain = decoding.stream(batch_keys, target, None, texts, options=plain_options)
        plain_seconds += round_seconds(plain)
        run = decoding.stream(batch_keys, target, drafter, texts, options=draft_options)
        draft_seconds += round_seconds(run)
        generation = run.generation
        num_tokens.append(generation.lengths)
        num_rounds.append(generation.metrics.histogram.sum(axis=1))
    tokens = np.concatenate(num_tokens).astype(np.float64)
    rounds = np.concatenate(num_rounds).astype(np.float64)
    block_efficiency, standard_error = tokens_per_round(tokens, rounds)
    # Medians: the first round of a batch also reads the prompts.
    draft_second, plain_second = np.median(draft_seconds), np.median(plain_seconds)
    return Measured(
        block_efficiency=block_efficiency,
        standard_error=standard_error,
        rounds=int(rounds.sum()),
        tokens_per_second=float(batch * block_efficiency / draft_second),
        speedup=float(block_efficiency * plain_second / draft_second),
    )
