"""Checks of a scheme that proposes and verifies with the same noise."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from gls_jax.conformance import emitted, goodness_of_fit, hard_keys
from gls_jax.conformance.calling import Caller, VerifierError
from gls_jax.conformance.problem_set import LARGE, SMALL, ZERO_UNIFORM, Pair
from gls_jax.conformance.session import Example, Outcome, Session, Step
from gls_jax.conformance.shared_texts import TEXT_NAMES, check_texts
from gls_jax.conformance.shrinking import smallest

__all__ = ["PROBLEMS", "run"]

PROBLEMS: tuple[str, ...] = tuple(dict.fromkeys((*SMALL, ZERO_UNIFORM.name, *LARGE, *TEXT_NAMES)))
"""Names of the problems."""

_MOST_DRAFTS = 4
_LARGE_DRAFTS = 2
_LARGE_TRIALS = 1_000
_INVARIANCE_TRIALS = 5_000
_REPEATED_CALLS = 200


class _Trials:
    """Trials of one problem: a key each, the object's own drafts, and its token."""

    def __init__(self, session: Session, scheme: Any, pair: Pair, num_drafts: int, count: int):
        self.pair = pair
        self.num_drafts = num_drafts
        self.keys: Key[Array, " T"] = session.keys(count, "trials", pair.name, num_drafts)
        self.log_probs = emitted.logs(pair.p), emitted.logs(pair.q)
        self._drafts: np.ndarray | None = None

    def run(self, callers: _Callers, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Drafts `[T, K]` and tokens `[T]`, of as many trials as there is time for."""
        caller = callers.propose_and_verify(self.num_drafts)
        answers = caller.answers(self.keys, (), self.log_probs, seconds=seconds)
        expected = (self.num_drafts + 1,)
        if answers.shape[1:] != expected or not np.issubdtype(answers.dtype, np.integer):
            got = f"{answers.dtype}, {list(answers.shape[1:])} with the token behind the drafts"
            raise VerifierError(f"expected {self.num_drafts} drafts and one token, got {got}")
        size = len(self.pair.q)
        is_outside = ((answers < 0) | (answers >= size)).any(1)
        if is_outside.any():
            trial = int(is_outside.argmax())
            got = f"drafts {answers[trial, :-1].tolist()} and token {answers[trial, -1]}"
            raise VerifierError(f"expected tokens within 0..{size - 1}, got {got}", trial)
        self._drafts = answers[:, :-1]
        return answers[:, :-1], answers[:, -1]

    def reverse(self) -> None:
        """The last trial first."""
        self.keys = self.keys[::-1]

    def example(self, trial: int | None) -> Example:
        """The arguments of one trial, or those that all trials share."""
        example: dict[str, Any] = {"N": len(self.pair.q), "num_drafts": self.num_drafts}
        if trial is not None:
            example["key"] = emitted.described_key(self.keys[trial])
            if self._drafts is not None:
                example["drafts"] = self._drafts[trial].tolist()
        example.update(emitted.described_probs(p=self.pair.p, q=self.pair.q))
        return example


class _Callers:
    """How the object's functions are called, one for each number of drafts."""

    def __init__(self, session: Session, scheme: Any, caller: Caller):
        self._scheme = scheme
        self._caller = caller
        self._options = session.options
        self._both: dict[int, Caller] = {}
        self.verify = self._new(scheme.verify)
        self.verify_active = self._new(scheme.verify)  # with one argument more

    def propose_and_verify(self, num_drafts: int) -> Caller:
        """Of ``(key, log_p, log_q) -> i32[K + 1]``, the drafts and then the token."""
        if num_drafts not in self._both:
            self._both[num_drafts] = self._new(partial(_both, self._scheme, num_drafts))
        # The report says how the first of them is called.
        self._caller.calls = self._both[num_drafts].calls
        return self._both[num_drafts]

    def _new(self, function: Callable[..., Any]) -> Caller:
        options = self._options
        return Caller(function, noise=options.noise, seconds=options.time_limit)


def _both(scheme: Any, num_drafts: int, key: Any, log_p: Any, log_q: Any) -> Any:
    drafts = scheme.propose(key, log_p, num_drafts)
    token = scheme.verify(key, drafts, log_p, log_q)
    library = np if isinstance(drafts, (np.ndarray, list)) else jnp
    return library.append(library.asarray(drafts), library.asarray(token))


def run(session: Session, caller: Caller) -> None:
    """All checks of kind `shared`."""
    scheme, options = caller.verifier, session.options
    limit = options.max_drafts or getattr(scheme, "max_drafts", None) or _MOST_DRAFTS
    most = min(_MOST_DRAFTS, limit)
    pairs = [pair for pair in SMALL.values() if options.wants(pair.name)]
    steps: list[Step] = []
    # A scheme of whole paths has no verification of one token.
    if getattr(scheme, "verifies_tokens", True):
        callers = _Callers(session, scheme, caller)
        for num_drafts in sorted({1, most}):
            for pair in pairs:
                run_one = partial(_problem, session, scheme, callers, pair, num_drafts)
                steps.append((pair.name, run_one))
        for pair in pairs[:1]:
            steps.append((pair.name, partial(_repeated, session, scheme, callers, pair, most)))
            steps.append((pair.name, partial(_invariance, session, scheme, callers, pair, most)))
        if options.noise == "key" and options.wants(ZERO_UNIFORM.name):
            zero_uniform = partial(_zero_uniform, session, scheme, callers, most)
            steps.append((ZERO_UNIFORM.name, zero_uniform))
        for name in LARGE:
            if options.wants(name):
                steps.append((name, partial(_large, session, scheme, callers, name, most)))
    if hasattr(scheme, "verify_tree") and hasattr(scheme, "draft_key"):
        steps += check_texts(session, scheme, caller)
    session.run(steps)


def _problem(session: Session, scheme: Any, callers: _Callers, pair: Pair, num_drafts: int) -> None:
    """The emitted token, the drafts, and how often they meet."""
    trials = _Trials(session, scheme, pair, num_drafts, session.options.num_trials)
    with session.usable_answers(pair.name, trials.example) as usable:
        drafts, tokens = trials.run(callers, session.seconds_per_problem)
        usable.num_trials = len(tokens)
        session.outcomes.append(_distribution(session, scheme, callers, trials, tokens))
        session.outcomes += _drafts(session.options.drafts, trials, drafts)
        session.outcomes += _acceptance(session, scheme, trials, drafts, tokens)


def _distribution(
    session: Session, scheme: Any, callers: _Callers, trials: _Trials, tokens: np.ndarray
) -> Outcome:
    """The outcome on the emitted tokens, which can look for a smaller problem."""
    outcome = emitted.distribution(trials.pair, tokens, trials.example)
    if trials.num_drafts == 1 and trials.pair.name in SMALL:
        counts = trials.pair.cell_counts(tokens)
        outcome.one_draft_counts = (trials.pair.p, trials.pair.q, counts)

    def fails(smaller: Pair, count: int, alpha: float) -> Outcome | None:
        again = _Trials(session, scheme, smaller, count, len(tokens))
        _, found = again.run(callers, session.seconds_per_problem)
        other = emitted.distribution(smaller, found, again.example)
        return other if other.has_failed(alpha) else None

    def find_smaller(alpha: float) -> Outcome | None:
        return smallest(partial(fails, alpha=alpha), trials.pair, trials.num_drafts)

    outcome.find_smaller = find_smaller
    return outcome


def _drafts(claim: str | None, trials: _Trials, drafts: Int[np.ndarray, "T K"]) -> list[Outcome]:
    """The drafts against what the object promises of them."""
    if claim not in ("independent", "distinct"):
        return []
    pair, num_drafts = trials.pair, trials.num_drafts
    size = len(pair.p)
    # The draft's own distribution in the place of the target's.
    of_drafts = Pair(pair.name, pair.q, pair.p, pair.cells)
    each = range(num_drafts) if claim == "independent" else range(1)
    name = "distribution of the drafts"
    outcomes = [
        emitted.distribution(of_drafts, drafts[:, k], trials.example, check=name) for k in each
    ]
    if num_drafts == 1:
        return outcomes
    if claim == "independent":
        joint = np.outer(pair.p, pair.p).astype(np.float64).ravel()
        counts = np.bincount(drafts[:, 0] * size + drafts[:, 1], minlength=size**2)
        outcomes.append(
            Outcome(
                "drafts are independent",
                pair.name,
                len(drafts),
                p_value=goodness_of_fit.p_value(counts, joint),
                num_cells=int((joint > 0).sum()),
                message="the first two drafts depend on each other",
                example=trials.example(None),
            )
        )
    elif (pair.p > 0).sum() >= num_drafts:
        ordered = np.sort(drafts, 1)
        has_twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        outcome = Outcome("drafts are distinct", pair.name, len(drafts))
        if has_twice.any():
            trial = int(has_twice.argmax())
            outcome.failure = f"proposed {drafts[trial].tolist()}"
            outcome.example = trials.example(trial)
        outcomes.append(outcome)
    return outcomes


def _acceptance(session: Session, scheme: Any, trials: _Trials, drafts, tokens) -> list[Outcome]:
    """Against the claimed value, which an object with a method `acceptance` always has."""
    exact = session.options.acceptance or getattr(scheme, "acceptance", None)
    return emitted.acceptance(
        trials.pair,
        trials.num_drafts,
        emitted.num_accepted(drafts, tokens),
        len(tokens),
        exact,
        trials.example(None),
        is_independent=session.options.drafts == "independent",
    )


def _repeated(session: Session, scheme: Any, callers: _Callers, pair: Pair, most: int) -> None:
    """The same keys once more, and in another order among other neighbours."""
    is_compiled = callers.propose_and_verify(most).is_compiled
    count = session.options.num_trials if is_compiled else _REPEATED_CALLS
    trials = _Trials(session, scheme, pair, most, count)
    with session.usable_answers(pair.name, trials.example):

        def answers() -> np.ndarray:
            return np.column_stack(trials.run(callers, math.inf))

        session.outcomes += emitted.repeats(pair.name, trials, answers)


def _invariance(session: Session, scheme: Any, callers: _Callers, pair: Pair, most: int) -> None:
    """Conditional: same drafts, other `p`, same token. Strong: whatever the drafts."""
    claim = session.options.invariance or getattr(scheme, "invariance", "none")
    if claim == "none":
        return
    num_trials = min(_INVARIANCE_TRIALS, session.options.num_trials)
    trials = _Trials(session, scheme, pair, most, num_trials)
    log_p, log_q = trials.log_probs
    other_log_p = np.roll(log_p, 1)
    with session.usable_answers(pair.name, trials.example):
        drafts, tokens = trials.run(callers, math.inf)
        keys = trials.keys[: len(drafts)]

        def verify(other_drafts: np.ndarray, log_p: np.ndarray) -> np.ndarray:
            fixed = (log_p, log_q)
            return callers.verify.answers(keys, (other_drafts,), fixed, seconds=math.inf)

        cases = [("another draft distribution", verify(drafts, other_log_p))]
        if claim == "strong":
            other_drafts = ((drafts + 1) % len(pair.p)).astype(drafts.dtype)
            cases.append(("other drafts", verify(other_drafts, log_p)))
        if claim == "strong" and _takes_active(scheme.verify):
            first_active = np.arange(most) == 0
            fixed = (log_p, log_q, first_active)
            others = callers.verify_active.answers(keys, (drafts,), fixed, seconds=math.inf)
            cases.append(("drafts that are no longer active", others))
        for what, others in cases:
            differs = others != tokens
            outcome = Outcome(f"{claim} invariance", pair.name, len(tokens))
            if differs.any():
                trial = int(differs.argmax())
                outcome.failure = (
                    f"{what} changed the token from {tokens[trial]} to {others[trial]}, "
                    f"in {differs.sum()} of {len(tokens)} trials"
                )
                outcome.example = trials.example(trial)
            session.outcomes.append(outcome)


def _takes_active(verify: Callable[..., Any]) -> bool:
    """Whether it takes the drafts that may still be accepted, as schemes of this library do."""
    return "active" in inspect.signature(verify).parameters


def _zero_uniform(session: Session, scheme: Any, callers: _Callers, num_drafts: int) -> None:
    """Keys of which a uniform is exactly 0, and a draft that must never be emitted."""
    keys = hard_keys.keys()
    trials = _Trials(session, scheme, ZERO_UNIFORM, num_drafts, len(keys))
    trials.keys = keys
    with session.usable_answers(ZERO_UNIFORM.name, trials.example):
        _, tokens = trials.run(callers, session.seconds_per_problem)
        outcome = emitted.distribution(ZERO_UNIFORM, tokens, trials.example)
        session.outcomes.append(emitted.of_zero_uniforms(outcome))


def _large(session: Session, scheme: Any, callers: _Callers, name: str, most: int) -> None:
    """A problem of the size of a vocabulary."""
    size, make = LARGE[name]
    num_drafts = min(most, _LARGE_DRAFTS)
    if session.skips_size(name, size):
        return
    num_trials = min(_LARGE_TRIALS, session.options.num_trials)
    trials = _Trials(session, scheme, make(size), num_drafts, num_trials)
    with session.usable_answers(name, trials.example) as usable:
        _, tokens = trials.run(callers, session.seconds_per_large_problem)
        usable.num_trials = len(tokens)
        check = emitted.large_check(name)
        outcome = emitted.distribution(trials.pair, tokens, trials.example, check=check)
        session.outcomes.append(outcome)
