"""Checks of the batched rejection sampler of a serving engine."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Array, Int, Key

from gls_jax.conformance import emitted, evidence
from gls_jax.conformance.calling import Caller, VerifierError, seeds_of
from gls_jax.conformance.languages import (
    LANGUAGES,
    LENGTH,
    Language,
    complete,
    large_language,
    text_probs,
)
from gls_jax.conformance.problem_set import LARGE
from gls_jax.conformance.session import Example, Outcome, Session

__all__ = ["run"]

# Drafts of four neighbours; one without drafts, and one that has the longest chain.
_LENGTHS = (3, 0, 1, 2)
_GROUPS = 128  # of such four, in one call
_LARGE_CALLS = 300


class _Calls:
    """Calls of one problem, each with many requests of ragged lengths."""

    def __init__(self, session: Session, language: Language, num_calls: int, num_groups: int):
        self.language = language
        self.num_drafts = np.tile(np.array(_LENGTHS, np.int32), num_groups)
        self.keys: Key[Array, " C"] = session.keys(num_calls, "verify", language.name)
        shape = (num_calls, len(self.num_drafts))
        self._completion = session.uniforms((*shape, LENGTH + 1), "completion", language.name)
        uniforms = session.uniforms((*shape, LENGTH + 1), "drafts", language.name)
        # Every request drafts the longest chain, of which it uses the beginning.
        self.chains = np.full((*shape, LENGTH), -1, np.int32)
        previous = np.full(shape, -1)
        self.bonus = language.target_tokens(0, previous, uniforms[..., LENGTH])
        for position in range(LENGTH):
            drafts = language.draft_tokens(position, previous, uniforms[..., position])
            self.chains[..., position] = drafts
            previous = drafts
            # The bonus token follows the last draft of the request.
            bonus = language.target_tokens(position + 1, previous, uniforms[..., LENGTH])
            self.bonus = np.where(self.num_drafts == position + 1, bonus, self.bonus)
        self.chains[:, np.arange(LENGTH) >= self.num_drafts[:, None]] = -1

    def arguments(self, call: int) -> tuple[np.ndarray, ...]:
        """The arguments after the key."""
        chains = self.chains[call]
        is_draft = chains >= 0
        previous = np.pad(chains, ((0, 0), (1, 0)), constant_values=-1)[:, :LENGTH]
        draft_rows, target_rows = [
            np.stack([rows(t, previous[:, t]) for t in range(LENGTH)], 1)[is_draft]
            for rows in (self.language.draft_rows, self.language.target_rows)
        ]
        bonus = self.bonus[call].astype(np.int32)
        return chains[is_draft], self.num_drafts, draft_rows, target_rows, bonus

    def emitted(self, caller: Caller, seconds: float) -> Int[np.ndarray, "C B W"]:
        """What each request emitted, after a look at its form."""
        answers = caller.batches(self.keys, self.arguments, seconds=seconds)
        self._check_form(answers)
        return answers[..., : LENGTH + 1]

    def texts(self, answers: np.ndarray, request: int, length: int) -> Int[np.ndarray, "C length"]:
        """Texts of one request of every call, completed by the target."""
        uniforms = self._completion[: len(answers), request, :length]
        return complete(self.language, answers[:, request], length, uniforms)

    def example(self, call: int, request: int | None = None) -> Example:
        """One request of a call, or the first four."""
        last = len(_LENGTHS) if request is None else request + 1
        first = 0 if request is None else request
        arrays = self.arguments(call)
        ends = np.cumsum(self.num_drafts)
        rows = slice(ends[first] - self.num_drafts[first], ends[last - 1])
        return {
            "seed of the key": seeds_of(self.keys[call : call + 1])[0],
            "draft_tokens": arrays[0][rows].tolist(),
            "num_draft_tokens": self.num_drafts[first:last].tolist(),
            "draft_probs": arrays[2][rows].tolist(),
            "target_probs": arrays[3][rows].tolist(),
            "bonus_tokens": arrays[4][first:last].tolist(),
        }

    def _check_form(self, answers: np.ndarray) -> None:
        """Accepted drafts, one more token, then -1; the bonus token where all are accepted."""
        num_requests, least = len(self.num_drafts), LENGTH + 1
        shape = list(answers.shape[1:])
        is_table = answers.ndim == 3 and shape[0] == num_requests and shape[1] >= least
        if not is_table or not np.issubdtype(answers.dtype, np.integer):
            expected = f"expected integers of shape [{num_requests}, {least}] or wider"
            raise VerifierError(f"{expected}, got {answers.dtype} of shape {shape}")
        lengths = (answers >= 0).sum(-1)
        places = np.arange(answers.shape[2])
        last = np.take_along_axis(answers, np.maximum(lengths - 1, 0)[..., None], -1)[..., 0]
        chains, bonus = self.chains[: len(answers)], self.bonus[: len(answers)]
        accepted = places[:LENGTH] < lengths[..., None] - 1
        is_padding = places >= lengths[..., None]
        faults = {
            "expected at least one token": lengths < 1,
            "expected at most its drafts and one token": lengths > self.num_drafts + 1,
            "expected tokens first, and then only -1": (
                (answers != -1) & is_padding | (answers < 0) & ~is_padding
            ).any(-1),
            f"expected tokens within 0..{self.language.num_categories - 1}": (
                answers >= self.language.num_categories
            ).any(-1),
            "expected its own drafts before the last token": (
                accepted & (answers[..., :LENGTH] != chains)
            ).any(-1),
            "expected its bonus token after all drafts": (
                (lengths == self.num_drafts + 1) & (last != bonus)
            ),
        }
        for message, is_faulty in faults.items():
            if is_faulty.any():
                call, request = (int(i) for i in np.argwhere(is_faulty)[0])
                got = answers[call, request].tolist()
                bonus_token = self.bonus[call, request]
                drafts = self.chains[call, request][: self.num_drafts[request]].tolist()
                raise VerifierError(
                    f"{message}, got {got} for drafts {drafts} and bonus token {bonus_token}",
                    call,
                )


def run(session: Session, caller: Caller) -> None:
    """All checks of kind `ragged`."""
    options = session.options
    num_requests = _GROUPS * len(_LENGTHS)
    num_calls = max(1, options.num_trials // num_requests)
    for name, language in LANGUAGES.items():
        if options.wants(name):
            calls = _Calls(session, language, num_calls, _GROUPS)
            session.step(name, partial(_check, session, caller, calls))
    for name in LARGE:
        if options.wants(name):
            language, _ = large_language(name)
            calls = _Calls(session, language, min(_LARGE_CALLS, num_calls), 1)
            session.step(name, partial(_check_large, session, caller, calls))


def _check(session: Session, caller: Caller, calls: _Calls) -> None:
    answers = calls.emitted(caller, session.share)
    for request, length in enumerate(_LENGTHS):
        if length:
            session.outcomes.append(_text_outcome(calls, answers, request, length + 1))


def _text_outcome(calls: _Calls, answers: np.ndarray, first: int, length: int) -> Outcome:
    """Texts of the requests with as many drafts, completed, against the target's texts."""
    language = calls.language
    requests = range(first, answers.shape[1], len(_LENGTHS))
    texts = np.concatenate([calls.texts(answers, request, length) for request in requests])
    probs = text_probs(language, length)
    numbers = texts @ language.num_categories ** np.arange(length - 1, -1, -1)
    counts = np.bincount(numbers, minlength=len(probs))
    p_value = evidence.p_value(counts, probs)
    return Outcome(
        emitted.DISTRIBUTION,
        language.name,
        len(texts),
        p_value=p_value,
        num_cells=int((probs > 0).sum()),
        message=f"texts of {length} tokens after {length - 1} drafts differ from the target's",
        example=calls.example(0, first),
    )


def _check_large(session: Session, caller: Caller, calls: _Calls) -> None:
    answers = calls.emitted(caller, session.share)
    _, pair = large_language(calls.language.name)
    first_tokens = answers[:, np.array(_LENGTHS) > 0, 0].ravel()
    example = partial(calls.example, request=2)
    session.outcomes.append(emitted.distribution(pair, first_tokens, lambda _: example(0)))
