"""A plan's predictions against generation: the same settings, measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from gls_jax import decoding
from gls_jax.decoding import LanguageModel
from gls_jax.planner.costs import seconds_a_round
from gls_jax.planner.plan import Setting

__all__ = ["Measured", "generated"]

_PLAIN = 32  # tokens of each text without drafts, beside it


class Measured(NamedTuple):
    """What generation made of a setting.

    Attributes:
        block_efficiency: delivered tokens a call of the target; not those accepted behind the end
            of a text.
        standard_error: of it, over the texts.
        rounds: of all texts.
        tokens_per_second: of the whole batch, from the median time of a round.
        speedup: against plain generation in turns with it, so that a machine that is busy for a
            while changes it least.
    """

    block_efficiency: float
    standard_error: float
    rounds: int
    tokens_per_second: float
    speedup: float


def generated(
    keys: Key[Array, " R"],
    target: LanguageModel,
    drafter: LanguageModel,
    prompts: Sequence[Sequence[int]],
    setting: Setting,
    *,
    batch: int,
    options: decoding.DecodeOptions,
) -> Measured:
    """Generate a text for each key, the prompts in turn, `batch` at a time.

    Args:
        keys: `[R]`, one a text.
        target, drafter: the models.
        prompts: token ids.
        setting: what is drafted.
        batch: texts decoded together, which divides their number.
        options: length, stop tokens and sampling parameters; what is drafted comes from `setting`.
    """
    texts, seconds, steps = [], [], []
    for start in range(0, len(keys), batch):
        those = keys[start : start + batch], target
        own = [prompts[r % len(prompts)] for r in range(start, start + batch)]
        fewer = dataclasses.replace(
            options, max_new_tokens=min(_PLAIN, int(np.max(np.asarray(options.max_new_tokens))))
        )
        steps += seconds_a_round(decoding.stream(*those, None, own, options=fewer))
        drafting = dataclasses.replace(
            options,
            scheme=setting.scheme,
            num_drafts=setting.num_drafts,
            draft_length=setting.draft_length,
            tree=setting.tree,
        )
        run = decoding.stream(
            *those,
            drafter,
            own,
            options=drafting,
        )
        seconds += seconds_a_round(run)
        made = run.generation
        texts.append((made.lengths, made.metrics.histogram.sum(axis=1)))
    tokens, rounds = (
        np.concatenate(parts).astype(np.float64) for parts in zip(*texts, strict=True)
    )
    mean, count = tokens.sum() / rounds.sum(), len(rounds)
    spread = np.sum((tokens - mean * rounds) ** 2)
    error = np.sqrt(spread * count / (count - 1)) / rounds.sum() if count > 1 else np.nan
    a_round = np.median(seconds)
    rate, speedup = batch * mean / a_round, mean * np.median(steps) / a_round
    return Measured(float(mean), float(error), int(rounds.sum()), float(rate), float(speedup))
