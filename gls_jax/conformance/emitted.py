"""Outcomes from emitted tokens: one check on one problem each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from gls_jax import bounds
from gls_jax.conformance import goodness_of_fit
from gls_jax.conformance.calling import VerifierError
from gls_jax.conformance.languages import Language, text_probs
from gls_jax.conformance.problem_set import Pair
from gls_jax.conformance.same_key import Way
from gls_jax.conformance.session import Example, Outcome

__all__ = [
    "DISTRIBUTION",
    "ZERO_NOISE",
    "Reversible",
    "acceptance",
    "as_claimed",
    "at_most_optimum",
    "checked_tokens",
    "described_key",
    "described_probs",
    "distribution",
    "large_check",
    "logs",
    "num_accepted",
    "of_zero_uniforms",
    "repeats",
    "shared_noise",
    "text_distribution",
]

DISTRIBUTION = "emitted distribution"
ZERO_NOISE = "noise of exactly 0"
_ROUNDING = 1e-5  # of an exact acceptance in float32
_MOST_SHOWN = 64  # categories of a distribution that is printed


def large_check(problem: str) -> str:
    """What is checked on a problem of the size of a vocabulary."""
    return ZERO_NOISE if problem == "zero noise" else DISTRIBUTION


def logs(probs: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Log-probabilities in float32, `-inf` where the probability is zero."""
    with np.errstate(divide="ignore"):
        return np.log(probs).astype(np.float32)


def described_key(key: PRNGKeyArray) -> str:
    """How to make a key again."""
    first, second = np.asarray(jax.random.key_data(key)).tolist()
    return f"jax.random.wrap_key_data(np.array([{first}, {second}], np.uint32))"


def described_probs(**arrays: Float[np.ndarray, "*rows N"]) -> Example:
    """Distributions as lists of six digits; long ones are described."""
    example = {}
    for name, array in arrays.items():
        if array.shape[-1] > _MOST_SHOWN:
            example[name] = f"f32{list(array.shape)} of gls_jax.conformance.problem_set.LARGE"
        else:
            example[name] = np.vectorize(lambda x: float(f"{x:.6g}"), otypes=[float])(
                array
            ).tolist()
    return example


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
    example: Callable[[int | None], Example],
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
        p_value=goodness_of_fit.p_value(counts, probs),
        num_cells=int((probs > 0).sum()),
        message=_worst_cell(pair, counts),
        example=example(None),
    )


def _worst_cell(pair: Pair, counts: Int[np.ndarray, " C"]) -> str:
    """The cell whose count is farthest from its expectation, in words."""
    probs, total = pair.cell_probs(), counts.sum()
    cell = goodness_of_fit.farthest(counts, probs)
    tokens = np.flatnonzero(pair.cells == cell)
    which = f"token {tokens[0]} was" if len(tokens) == 1 else f"{len(tokens)} tokens were"
    return (
        f"{which} emitted with frequency {counts[cell] / total:.4f} in {total:,} trials, target "
        f"probability {probs[cell]:.4g}"
    )


def text_distribution(
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
    outcome.p_value = goodness_of_fit.p_value(counts, probs)
    outcome.message = f"{what}, {_worst_text(counts, probs, size, length)}"
    outcome.example = example(None)
    return outcome


def _worst_text(counts: np.ndarray, probs: np.ndarray, size: int, length: int) -> str:
    """The text whose count is farthest from its expectation, in words."""
    total = counts.sum()
    worst = goodness_of_fit.farthest(counts, probs)
    text = [worst // size**place % size for place in range(length - 1, -1, -1)]
    return (
        f"the text {text} had frequency {counts[worst] / total:.4f} in {total:,} trials, "
        f"target probability {probs[worst]:.4f}"
    )


def num_accepted(drafts: Int[np.ndarray, "T K"], tokens: Int[np.ndarray, " T"]) -> int:
    """In how many trials a draft was emitted."""
    return int((drafts == tokens[:, None]).any(1).sum())


def at_most_optimum(pair: Pair, num_drafts: int, count: int, num_trials: int) -> Outcome:
    """The acceptance of independent drafts, which were accepted in `count` trials."""
    rate = count / num_trials
    log_p, log_q = jnp.asarray(logs(pair.p)), jnp.asarray(logs(pair.q))
    optimum = float(bounds.optimum_iid(log_p, log_q, num_drafts))
    return Outcome(
        "acceptance at most the optimum",
        pair.name,
        num_trials,
        detail=f"accepted {rate:.4f}, optimum {optimum:.4f} for {num_drafts} drafts",
        p_value=goodness_of_fit.rate_p_value(count, num_trials, 0, min(optimum + _ROUNDING, 1)),
        message=f"accepted {rate:.4f}, more than any lossless verifier can ({optimum:.4f})",
        consequence_of=DISTRIBUTION,
    )


def as_claimed(
    pair: Pair, num_drafts: int, count: int, num_trials: int, exact: Callable[..., float]
) -> Outcome:
    """The acceptance against the exact value that is claimed."""
    rate = count / num_trials
    log_p, log_q = jnp.asarray(logs(pair.p)), jnp.asarray(logs(pair.q))
    try:
        value = float(exact(log_p, log_q, num_drafts))
    except Exception as error:
        raise VerifierError(f"its acceptance raised {type(error).__name__}: {error}") from error
    if not -_ROUNDING <= value <= 1 + _ROUNDING:
        raise VerifierError(f"expected an acceptance within 0..1, got {value}")
    lowest, highest = max(value - _ROUNDING, 0), min(value + _ROUNDING, 1)
    return Outcome(
        "acceptance as claimed",
        pair.name,
        num_trials,
        detail=f"accepted {rate:.4f}, claimed {value:.4f} for {num_drafts} drafts",
        p_value=goodness_of_fit.rate_p_value(count, num_trials, lowest, highest),
        num_cells=2,
        message=f"accepted {rate:.4f}, claimed {value:.4f}, {num_drafts} drafts",
    )


def acceptance(
    pair: Pair,
    num_drafts: int,
    count: int,
    num_trials: int,
    exact: Callable[..., float] | None,
    example: Example,
    *,
    is_independent: bool = True,
) -> list[Outcome]:
    """Both: the optimum is that of independent drafts, and there may be no claim."""
    outcomes = []
    if is_independent:
        outcomes.append(at_most_optimum(pair, num_drafts, count, num_trials))
    if exact is not None:
        outcomes.append(as_claimed(pair, num_drafts, count, num_trials, exact))
    for outcome in outcomes:
        outcome.example = example
    return outcomes


class Reversible(Protocol):
    """Trials that can be put into the opposite order."""

    def reverse(self) -> None:
        """The last trial first."""
        ...

    def example(self, trial: int | None, /) -> Example:
        """The arguments of one trial."""
        ...


def repeats(
    problem: str, trials: Reversible, answers: Callable[[], Shaped[np.ndarray, "T ..."]]
) -> list[Outcome]:
    """Whether the same trials have the same answers: again, and in the opposite order.

    Args:
        problem: its name.
        trials: of the problem.
        answers: the verifier's answers to all of them, whatever time that takes.
    """
    first, second = answers(), answers()
    trials.reverse()
    backwards = answers()[::-1]
    trials.reverse()
    outcomes = []
    for check, others, what in (
        ("same key, same answer", second, "the same arguments once more"),
        ("other calls do not matter", backwards, "the same arguments, in another order of calls,"),
    ):
        differs = (first != others).reshape(len(first), -1).any(1)
        outcome = Outcome(check, problem, len(first))
        if differs.any():
            trial = int(differs.argmax())
            outcome.failure = (
                f"{what} gave {others[trial].tolist()} after {first[trial].tolist()}, "
                f"in {differs.sum()} of {len(first)} trials"
            )
            outcome.example = trials.example(trial)
        outcomes.append(outcome)
    return outcomes


def of_zero_uniforms(outcome: Outcome) -> Outcome:
    """The outcome on chosen keys, of which only what is impossible counts."""
    outcome.check = ZERO_NOISE
    outcome.p_value = outcome.num_cells = None
    if outcome.failure is not None:
        outcome.failure += ", where jax.random.uniform of this key, or of one split from it, is 0"
    return outcome


def shared_noise(outcome: Outcome, way: Way, example: Example) -> Outcome:
    """The outcome on drafts from the verifier's own key, under a name of its own."""
    outcome.check = "noise shared with the proposal"
    told = outcome.failure or outcome.message
    advice = (
        f"biased where drafts come from {way.name} of the verifier's key: {told}. Draw from a key "
        "that no drafter uses; if no drafter ever sees this key, say separate_keys=True "
        "(--separate-keys)"
    )
    outcome.failure = advice if outcome.failure is not None else None
    outcome.message = advice
    outcome.example = example
    outcome.find_smaller = None
    outcome.consequence_of = DISTRIBUTION
    if not way.is_finding:
        outcome.check = f"noise shared with {way.name.split('(')[0]}"
        outcome.is_note_only = True
    return outcome
