"""What is said about the tokens that a verifier emitted on one problem."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gls_jax import bounds
from gls_jax.conformance import evidence
from gls_jax.conformance.calling import VerifierError
from gls_jax.conformance.problem_set import Pair
from gls_jax.conformance.session import Example, Outcome

__all__ = ["acceptance", "checked_tokens", "distribution", "logs"]

DISTRIBUTION = "emitted distribution"
_ROUNDING = 1e-5  # of an exact acceptance in float32


def logs(probs: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Log-probabilities in float32, `-inf` where the probability is zero."""
    with np.errstate(divide="ignore"):
        return np.log(probs).astype(np.float32)


def checked_tokens(answers: np.ndarray, num_categories: int) -> Int[np.ndarray, " T"]:
    """Answers of trials as tokens, or a :class:`VerifierError`."""
    if answers.ndim != 1 or not np.issubdtype(answers.dtype, np.integer):
        got = f"{answers.dtype} of shape {list(answers.shape[1:])}"
        raise VerifierError(f"expected one token, an integer of shape [], got {got}")
    is_outside = (answers < 0) | (answers >= num_categories)
    if is_outside.any():
        trial = int(is_outside.argmax())
        expected = f"expected a token within 0..{num_categories - 1}"
        raise VerifierError(f"{expected}, got {answers[trial]}", trial)
    return answers


def distribution(
    pair: Pair,
    tokens: Int[np.ndarray, " T"],
    example: Callable[[int], Example],
    *,
    check: str = DISTRIBUTION,
) -> Outcome:
    """The emitted tokens against the target distribution."""
    is_impossible = pair.q[tokens] == 0
    if is_impossible.any():
        trial = int(is_impossible.argmax())
        failure = (
            f"emitted token {tokens[trial]} of target probability 0, "
            f"in {is_impossible.sum()} of {len(tokens)} trials"
        )
        return Outcome(check, pair.name, len(tokens), failure=failure, example=example(trial))
    counts, probs = pair.cell_counts(tokens), pair.cell_probs()
    return Outcome(
        check,
        pair.name,
        len(tokens),
        p_value=evidence.p_value(counts, probs),
        num_cells=int((probs > 0).sum()),
        message=worst_cell(pair, counts),
    )


def worst_cell(pair: Pair, counts: Int[np.ndarray, " C"]) -> str:
    """The cell whose count is farthest from its expectation, in standard deviations."""
    probs, total = pair.cell_probs(), counts.sum()
    deviations = (counts - total * probs) / np.sqrt(total * probs * (1 - probs) + 1e-9)
    cell = int(np.abs(deviations).argmax())
    tokens = np.flatnonzero(pair.cells == cell)
    which = f"token {tokens[0]}"
    if len(tokens) > 1:
        which = f"tokens {tokens[0]} to {tokens[-1]}"
    return (
        f"{which}: emitted with frequency {counts[cell] / total:.4f}, target probability "
        f"{probs[cell]:.4f}, {total} trials, p-value below the limit"
    )


def acceptance(
    pair: Pair,
    drafts: Int[np.ndarray, "T K"],
    tokens: Int[np.ndarray, " T"],
    exact: Callable[..., float] | None,
) -> list[Outcome]:
    """How often a draft was emitted: against a claimed value, and never above the optimum."""
    num_trials, num_drafts = drafts.shape
    count = int((drafts == tokens[:, None]).any(1).sum())
    rate = count / num_trials
    log_p, log_q = jnp.asarray(logs(pair.p)), jnp.asarray(logs(pair.q))
    optimum = float(bounds.optimum_iid(log_p, log_q, num_drafts))
    outcomes = [
        Outcome(
            "acceptance at most the optimum",
            pair.name,
            num_trials,
            detail=f"accepted {rate:.4f}, optimum {optimum:.4f} for {num_drafts} drafts",
            p_value=evidence.rate_p_value(count, num_trials, 0, optimum + _ROUNDING),
            num_cells=2,
            message=f"accepted {rate:.4f}, more than any lossless verifier can ({optimum:.4f})",
        )
    ]
    if exact is not None:
        value = float(exact(log_p, log_q, num_drafts))
        lowest, highest = max(value - _ROUNDING, 0), min(value + _ROUNDING, 1)
        outcomes.append(
            Outcome(
                "acceptance as claimed",
                pair.name,
                num_trials,
                detail=f"accepted {rate:.4f}, claimed {value:.4f} for {num_drafts} drafts",
                p_value=evidence.rate_p_value(count, num_trials, lowest, highest),
                num_cells=2,
                message=f"accepted {rate:.4f}, claimed {value:.4f}, {num_drafts} drafts",
            )
        )
    return outcomes
