"""Checks of a verifier of one token, which did not draw its drafts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax.conformance import emitted, hard_keys, same_key
from gls_jax.conformance.calling import Caller
from gls_jax.conformance.problem_set import LARGE, SMALL, ZERO_UNIFORM, Pair, draws
from gls_jax.conformance.session import Example, Outcome, Session
from gls_jax.conformance.shrinking import smallest

__all__ = ["PROBLEMS", "run"]

PROBLEMS: tuple[str, ...] = tuple(dict.fromkeys((*SMALL, ZERO_UNIFORM.name, *LARGE)))
"""Names of the problems."""

_MOST_DRAFTS = 4  # of a problem, unless the verifier takes fewer
_LARGE_DRAFTS = 2  # at the size of a vocabulary
_LARGE_TRIALS = 2_000
_REPEATED_CALLS = 200  # where each is a call of its own


class _Trials:
    """Trials of one problem with K drafts, and a key for each verification.

    The drafts are the kit's own, from noise that no verifier sees, unless others are given.
    """

    def __init__(self, session: Session, pair: Pair, num_drafts: int, num_trials: int):
        self.pair = pair
        self.num_drafts = num_drafts
        self.rows = _draft_rows(pair, num_drafts, session.options.diverse)
        uniforms = session.uniforms((num_trials, num_drafts), "drafts", pair.name, num_drafts)
        columns = [draws(uniforms[:, k], row) for k, row in enumerate(self.rows)]
        self.drafts: Int[np.ndarray, "T K"] = np.stack(columns, 1)
        self.keys: Key[Array, " T"] = session.keys(num_trials, "verify", pair.name, num_drafts)

    def tokens(self, caller: Caller, seconds: float) -> Int[np.ndarray, " T"]:
        """The verifier's tokens, of as many trials as there is time for."""
        fixed = (self.rows, self.pair.q)
        answers = caller.answers(self.keys, (self.drafts,), fixed, seconds=seconds)
        return emitted.checked_tokens(answers, len(self.pair.q))

    def keep(self, num_trials: int) -> None:
        """Only the first trials."""
        self.keys, self.drafts = self.keys[:num_trials], self.drafts[:num_trials]

    def reverse(self) -> None:
        """The last trial first."""
        self.keys, self.drafts = self.keys[::-1], self.drafts[::-1]

    def example(self, trial: int | None) -> Example:
        """The arguments of one trial, or those that all trials share."""
        example: dict[str, Any] = {"N": len(self.pair.q), "K": self.num_drafts}
        if trial is not None:
            example["key"] = emitted.described_key(self.keys[trial])
            example["drafts"] = self.drafts[trial].tolist()
        example.update(emitted.described_probs(draft_probs=self.rows, target_probs=self.pair.q))
        return example


def _draft_rows(pair: Pair, num_drafts: int, diverse: bool) -> Float[np.ndarray, "K N"]:
    """The distribution of each draft: the same, or the same weights on other tokens."""
    shifts = range(num_drafts) if diverse else [0] * num_drafts
    return np.stack([np.roll(pair.p, shift) for shift in shifts])


def run(session: Session, caller: Caller) -> None:
    """All checks of kind `token`."""
    options = session.options
    most = min(_MOST_DRAFTS, options.max_drafts or _MOST_DRAFTS)
    counts = sorted({1, most})
    pairs = [pair for pair in SMALL.values() if options.wants(pair.name)]
    steps = [
        (pair.name, partial(_problem, session, caller, pair, num_drafts))
        for num_drafts in counts
        for pair in pairs
    ]
    for pair in pairs[:1]:
        steps.append((pair.name, partial(_repeated, session, caller, pair, most)))
        if not options.separate_keys:
            for num_drafts in counts:
                for way in same_key.ways(options.noise):
                    step = partial(_from_same_key, session, caller, pair, num_drafts, way)
                    steps.append((pair.name, step))
    if options.noise == "key" and options.wants(ZERO_UNIFORM.name):
        steps.append((ZERO_UNIFORM.name, partial(_zero_uniform, session, caller, most)))
    for name in LARGE:
        if options.wants(name):
            steps.append((name, partial(_large, session, caller, name, most)))
    session.run(steps)


def _problem(session: Session, caller: Caller, pair: Pair, num_drafts: int) -> None:
    """The distribution of the emitted token, and how often it is a draft."""
    trials = _Trials(session, pair, num_drafts, session.options.num_trials)
    with session.usable_answers(pair.name, trials.example) as usable:
        tokens = trials.tokens(caller, session.seconds_per_problem)
        usable.num_trials = len(tokens)
        check = emitted.DISTRIBUTION
        session.outcomes.append(_distribution(session, caller, trials, tokens, check))
        # Neither the optimum nor a claim is for drafts of different distributions.
        if not session.options.diverse:
            count = emitted.num_accepted(trials.drafts[: len(tokens)], tokens)
            exact, example = session.options.acceptance, trials.example(None)
            session.outcomes += emitted.acceptance(
                pair, num_drafts, count, len(tokens), exact, example
            )


def _distribution(
    session: Session, caller: Caller, trials: _Trials, tokens: np.ndarray, check: str
) -> Outcome:
    """The outcome on the emitted tokens, which can look for a smaller problem."""
    pair, num_drafts = trials.pair, trials.num_drafts
    outcome = emitted.distribution(pair, tokens, trials.example, check=check)
    if num_drafts == 1 and pair.name in SMALL:
        outcome.one_draft_counts = (pair.p, pair.q, pair.cell_counts(tokens))

    def fails(smaller: Pair, count: int, alpha: float) -> Outcome | None:
        again = _Trials(session, smaller, count, min(session.options.num_trials, len(tokens)))
        found = again.tokens(caller, session.seconds_per_problem)
        other = emitted.distribution(smaller, found, again.example, check=check)
        return other if other.has_failed(alpha) else None

    if not session.options.diverse:
        outcome.find_smaller = lambda alpha: smallest(partial(fails, alpha=alpha), pair, num_drafts)
    return outcome


def _repeated(session: Session, caller: Caller, pair: Pair, num_drafts: int) -> None:
    """The same keys once more, and in another order among other neighbours."""
    trials = _Trials(session, pair, num_drafts, session.options.num_trials)
    if not caller.is_compiled:
        trials.keep(_REPEATED_CALLS)
    with session.usable_answers(pair.name, trials.example):
        answers = partial(trials.tokens, caller, math.inf)
        session.outcomes += emitted.repeats(pair.name, trials, answers)


def _from_same_key(session: Session, caller: Caller, pair: Pair, num_drafts: int, way) -> None:
    """Drafts from the key of the verifier."""
    trials = _Trials(session, pair, num_drafts, session.options.num_trials)
    noise = session.options.noise
    if not caller.is_compiled:
        trials.keep(session.num_side_trials)
    trials.drafts = same_key.drafts_of(way, trials.keys, noise, trials.rows)
    with session.usable_answers(pair.name, trials.example):
        tokens = trials.tokens(caller, session.seconds_per_problem)
        outcome = emitted.distribution(pair, tokens, trials.example)
        session.outcomes.append(emitted.shared_noise(outcome, way, trials.example(None)))


def _zero_uniform(session: Session, caller: Caller, num_drafts: int) -> None:
    """Keys of which a uniform is exactly 0, and a draft that must never be emitted."""
    keys = hard_keys.keys()
    trials = _Trials(session, ZERO_UNIFORM, num_drafts, len(keys))
    trials.keys = keys
    with session.usable_answers(ZERO_UNIFORM.name, trials.example):
        tokens = trials.tokens(caller, session.seconds_per_problem)
        outcome = emitted.distribution(ZERO_UNIFORM, tokens, trials.example)
        session.outcomes.append(emitted.of_zero_uniforms(outcome))


def _large(session: Session, caller: Caller, name: str, most: int) -> None:
    """A problem of the size of a vocabulary."""
    size, make = LARGE[name]
    if session.skips_size(name, size):
        return
    num_trials = min(_LARGE_TRIALS, session.options.num_trials)
    trials = _Trials(session, make(size), min(most, _LARGE_DRAFTS), num_trials)
    check = emitted.large_check(name)
    with session.usable_answers(name, trials.example) as usable:
        tokens = trials.tokens(caller, session.seconds_per_large_problem)
        usable.num_trials = len(tokens)
        session.outcomes.append(_distribution(session, caller, trials, tokens, check))
