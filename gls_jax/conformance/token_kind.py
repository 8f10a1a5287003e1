"""Checks of a verifier of one token, which did not draw its drafts."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Array, Int, Key

from gls_jax.conformance import emitted
from gls_jax.conformance.calling import Caller, seeds_of
from gls_jax.conformance.problem_set import LARGE, SMALL, Pair, draws
from gls_jax.conformance.session import Example, Session

__all__ = ["run"]

_MOST_DRAFTS = 4  # of a problem, unless the verifier takes fewer
_LARGE_DRAFTS = 2  # at the size of a vocabulary
_LARGE_TRIALS = 2_000


class _Trials:
    """Trials of one problem with K drafts: the kit's drafts, and a key for each verification."""

    def __init__(self, session: Session, pair: Pair, num_drafts: int, num_trials: int):
        self.pair = pair
        self.rows = np.tile(pair.p, (num_drafts, 1))
        uniforms = session.uniforms((num_trials, num_drafts), "drafts", pair.name, num_drafts)
        self.drafts: Int[np.ndarray, "T K"] = draws(uniforms, pair.p)
        self.keys: Key[Array, " T"] = session.keys(num_trials, "verify", pair.name, num_drafts)

    def tokens(self, caller: Caller, seconds: float) -> Int[np.ndarray, " T"]:
        """The verifier's tokens, of as many trials as there is time for."""
        fixed = (self.rows, self.pair.q)
        answers = caller.answers(self.keys, (self.drafts,), fixed, seconds=seconds)
        return emitted.checked_tokens(answers, len(self.pair.q))

    def example(self, trial: int) -> Example:
        """The arguments of one trial."""
        return {
            "seed of the key": seeds_of(self.keys[trial : trial + 1])[0],
            "drafts": self.drafts[trial].tolist(),
            "draft_probs": self.rows.tolist(),
            "target_probs": self.pair.q.tolist(),
        }


def run(session: Session, caller: Caller) -> None:
    """All checks of kind `token`."""
    options = session.options
    most = min(_MOST_DRAFTS, options.max_drafts or _MOST_DRAFTS)
    cases = [
        (pair, num_drafts, options.num_trials)
        for num_drafts in sorted({1, most})
        for pair in SMALL.values()
        if options.wants(pair.name)
    ]
    for name, make in LARGE.items():
        if options.wants(name):
            cases.append((make(), min(most, _LARGE_DRAFTS), _LARGE_TRIALS))
    for number, (pair, num_drafts, num_trials) in enumerate(cases):
        session.progress("problems", number, len(cases))
        trials = _Trials(session, pair, num_drafts, min(num_trials, options.num_trials))
        session.attempt(pair.name, partial(_check, session, caller, trials), trials.example)


def _check(session: Session, caller: Caller, trials: _Trials) -> None:
    tokens = trials.tokens(caller, session.share)
    drafts = trials.drafts[: len(tokens)]
    session.outcomes.append(emitted.distribution(trials.pair, tokens, trials.example))
    exact = session.options.acceptance
    session.outcomes += emitted.acceptance(trials.pair, drafts, tokens, exact)
