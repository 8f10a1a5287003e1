"""Texts of a few tokens against the target's probability of every text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from gls_jax.conformance import evidence
from gls_jax.conformance.languages import Language, text_probs
from gls_jax.conformance.session import Example, Outcome

__all__ = ["text_outcome"]


def text_outcome(
    check: str,
    language: Language,
    texts: Int[np.ndarray, "T length"],
    what: str,
    example: Callable[[int | None], Example],
) -> Outcome:
    """The outcome on texts that should be the target's.

    Args:
        check: its name.
        language: of the problem.
        texts: one for each trial.
        what: after which the texts were emitted, in words.
        example: the arguments of a trial.
    """
    num_texts, length = texts.shape
    size = language.num_categories
    numbers = texts @ size ** np.arange(length - 1, -1, -1)
    probs = text_probs(language, length)
    outcome = Outcome(check, language.name, num_texts, num_cells=int((probs > 0).sum()))
    is_impossible = probs[numbers] == 0
    if is_impossible.any():
        trial = int(is_impossible.argmax())
        outcome.failure = (
            f"{what}, emitted the text {texts[trial].tolist()} of target probability 0, "
            f"in {is_impossible.sum()} of {num_texts} trials"
        )
        outcome.example = example(trial)
        return outcome
    counts = np.bincount(numbers, minlength=len(probs))
    outcome.p_value = evidence.p_value(counts, probs)
    outcome.message = f"{what}, {_worst_text(counts, probs, size, length)}"
    outcome.example = example(None)
    return outcome


def _worst_text(counts: np.ndarray, probs: np.ndarray, size: int, length: int) -> str:
    """The text whose count is farthest from its expectation, in words."""
    total = counts.sum()
    worst = evidence.farthest(counts, probs)
    text = [worst // size**place % size for place in range(length - 1, -1, -1)]
    return (
        f"the text {text} had frequency {counts[worst] / total:.4f} in {total:,} trials, "
        f"target probability {probs[worst]:.4f}"
    )
