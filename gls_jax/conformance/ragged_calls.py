"""The calls of a batched rejection sampler: many requests of ragged lengths, and their answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int, Key

from gls_jax.conformance import emitted, same_key
from gls_jax.conformance.calling import Caller, VerifierError
from gls_jax.conformance.languages import LONGEST_CHAIN, Language, complete
from gls_jax.conformance.problem_set import first_arrivals
from gls_jax.conformance.session import Example, Session

__all__ = ["GROUP", "LENGTHS", "WITH_DRAFTS", "Calls"]

LENGTHS = (3, 0, 1, 2)
"""Drafts of the four requests of a group: one has none, and one the longest chain."""

GROUP = len(LENGTHS)
"""Requests of a group."""

WITH_DRAFTS = (2, 3, 0)
"""Requests of a group with one, two and three drafts."""


class Calls:
    """Calls of one problem, each with groups of four requests.

    Attributes:
        num_drafts: `i32[B]`, of each request.
        chains: `i32[C, B, LONGEST_CHAIN]`, the drafts, then -1.
        bonus: `i32[C, B]`, the bonus tokens.
        keys: one for each call.
    """

    def __init__(
        self,
        session: Session,
        language: Language,
        num_calls: int,
        num_groups: int,
        *,
        way: same_key.Way | None = None,
        keys: Key[Array, " C"] | None = None,
    ):
        self.language: Language = language
        self.num_drafts: Int[np.ndarray, " B"] = np.tile(np.array(LENGTHS, np.int32), num_groups)
        if keys is None:
            keys = session.keys(num_calls, "verify", language.name)
        self.keys: Key[Array, " C"] = keys
        shape = (len(keys), len(self.num_drafts))
        self._completion = session.uniforms(
            (*shape, LONGEST_CHAIN + 1), "completion", language.name
        )
        self._uniforms = session.uniforms((*shape, LONGEST_CHAIN + 1), "drafts", language.name)
        self._shared = None
        if way is not None:
            num_rows, size = int(self.num_drafts.sum()), language.num_categories
            noise = session.options.noise
            self._shared = same_key.noise_of(way, keys, noise, num_rows, size)
        self.chains: Int[np.ndarray, "C B L"] = np.full((*shape, LONGEST_CHAIN), -1, np.int32)
        self.bonus: Int[np.ndarray, "C B"] = np.zeros(shape, np.int32)
        self._draft()
        self._is_changed: Bool[np.ndarray, " B"] | None = None

    def _draft(self) -> None:
        """Chains of drafts, and the bonus token that follows the last one."""
        shape = self._uniforms.shape[:2]
        previous = np.full(shape, -1)
        last_uniforms = self._uniforms[..., LONGEST_CHAIN]
        self.bonus = self.language.target_tokens(0, previous, last_uniforms)
        for position in range(LONGEST_CHAIN):
            has_draft = self.num_drafts > position
            drafts = self._drafts(position, previous)
            self.chains[..., position] = np.where(has_draft, drafts, -1)
            previous = drafts
            bonus = self.language.target_tokens(position + 1, previous, last_uniforms)
            self.bonus = np.where(self.num_drafts == position + 1, bonus, self.bonus)

    def _drafts(self, position: int, previous: np.ndarray) -> Int[np.ndarray, "C B"]:
        """The next draft of every chain, from the kit's noise or from that of the key."""
        language = self.language
        if self._shared is None:
            return language.draft_tokens(position, previous, self._uniforms[..., position])
        # Requests without a draft here draw from somebody else's row, and nobody reads it.
        starts = np.cumsum(self.num_drafts) - self.num_drafts
        rows = np.minimum(starts + position, self._shared.shape[1] - 1)
        noise = self._shared[:, rows]
        if noise.ndim == 2:
            return language.draft_tokens(position, previous, noise)
        return first_arrivals(noise, language.draft_rows(position, previous))

    def change(self, is_changed: Bool[np.ndarray, " B"] | None) -> None:
        """From now on some requests have other tokens and distributions, of the same shapes."""
        self._is_changed = is_changed

    def reverse(self) -> None:
        """The last call first."""
        self.keys, self.chains, self.bonus = self.keys[::-1], self.chains[::-1], self.bonus[::-1]
        self._completion = self._completion[::-1]

    def arguments(self, call: int) -> tuple[np.ndarray, ...]:
        """The arguments after the key."""
        chains = self.chains[call]
        is_draft = chains >= 0
        previous = np.pad(chains, ((0, 0), (1, 0)), constant_values=-1)[:, :LONGEST_CHAIN]
        if self.language.is_one_distribution:
            # Views: a row for every draft would take long to write.
            shape = (int(is_draft.sum()), self.language.num_categories)
            draft_rows = np.broadcast_to(self.language.p[0, 0], shape)
            target_rows = np.broadcast_to(self.language.q[0, 0], shape)
        else:
            draft_rows, target_rows = (
                np.stack([rows(t, previous[:, t]) for t in range(LONGEST_CHAIN)], 1)[is_draft]
                for rows in (self.language.draft_rows, self.language.target_rows)
            )
        drafts, bonus = chains[is_draft], self.bonus[call].astype(np.int32)
        if self._is_changed is not None:
            # The next token in place of each one, and distributions shifted likewise.
            size = self.language.num_categories
            shift = self._is_changed.astype(np.int32)
            row_shift = np.repeat(shift, self.num_drafts)
            drafts = (drafts + row_shift) % size
            bonus = (bonus + shift) % size
            is_row_changed = row_shift[:, None] == 1
            draft_rows = np.where(is_row_changed, np.roll(draft_rows, 1, -1), draft_rows)
            target_rows = np.where(is_row_changed, np.roll(target_rows, 1, -1), target_rows)
        return drafts, self.num_drafts, draft_rows, target_rows, bonus

    def answers(self, caller: Caller, seconds: float) -> Int[np.ndarray, "C B W"]:
        """What each request emitted, `W = LONGEST_CHAIN + 1`, after a look at its form."""
        answers = caller.batches(self.keys, self.arguments, seconds=seconds)
        if self._is_changed is None:
            self._check_form(answers)
        return answers[:, :, : LONGEST_CHAIN + 1]

    def texts(self, answers: np.ndarray, request: int, length: int) -> Int[np.ndarray, "C length"]:
        """Texts of one request of every call, completed by the target."""
        uniforms = self._completion[: len(answers), request, :length]
        return complete(self.language, answers[:, request], length, uniforms)

    def example(self, call: int | None, request: int | None = None) -> Example:
        """The arguments for one request of a call, or for its first four."""
        first, last = (0, len(LENGTHS)) if request is None else (request, request + 1)
        drafts, _, draft_rows, target_rows, bonus = self.arguments(call or 0)
        ends = np.cumsum(self.num_drafts)
        rows = slice(ends[first] - self.num_drafts[first], ends[last - 1])
        example: dict[str, Any] = {"N": self.language.num_categories}
        if call is not None:
            example["key"] = emitted.described_key(self.keys[call])
        example["draft_tokens"] = drafts[rows].tolist()
        example["num_draft_tokens"] = self.num_drafts[first:last].tolist()
        example["bonus_tokens"] = bonus[first:last].tolist()
        if len(draft_rows[rows]):
            example.update(
                emitted.described_probs(
                    draft_probs=draft_rows[rows], target_probs=target_rows[rows]
                )
            )
        return example

    def _check_form(self, answers: np.ndarray) -> None:
        """Accepted drafts, one more token, then -1; the bonus token where all are accepted."""
        num_requests, least = len(self.num_drafts), LONGEST_CHAIN + 1
        shape = list(answers.shape[1:])
        is_table = answers.ndim == 3 and shape[0] == num_requests and shape[1] >= least
        if not is_table or not np.issubdtype(answers.dtype, np.integer):
            expected = f"expected integers of shape [{num_requests}, {least}] or wider"
            raise VerifierError(f"{expected}, got {answers.dtype} of shape {shape}")
        lengths = (answers >= 0).sum(-1)
        places = np.arange(answers.shape[2])
        last_place = np.maximum(lengths - 1, 0)[..., None]
        last = np.take_along_axis(answers, last_place, -1)[..., 0]
        chains, bonus = self.chains[: len(answers)], self.bonus[: len(answers)]
        is_accepted = places[:LONGEST_CHAIN] < lengths[..., None] - 1
        is_padding = places >= lengths[..., None]
        faults = {
            "expected at least one token": lengths < 1,
            "expected at most its drafts and one token": lengths > self.num_drafts + 1,
            "expected tokens first, and then only -1": (
                ((answers != -1) & is_padding) | ((answers < 0) & ~is_padding)
            ).any(-1),
            f"expected tokens within 0..{self.language.num_categories - 1}": (
                answers >= self.language.num_categories
            ).any(-1),
            "expected its own drafts before the last token": (
                is_accepted & (answers[..., :LONGEST_CHAIN] != chains)
            ).any(-1),
            "expected its bonus token after all drafts": (
                (lengths == self.num_drafts + 1) & (last != bonus)
            ),
        }
        for message, is_faulty in faults.items():
            if is_faulty.any():
                call, request = (int(i) for i in np.argwhere(is_faulty)[0])
                got = answers[call, request].tolist()
                drafts = chains[call, request][: self.num_drafts[request]].tolist()
                told = f"got {got} for drafts {drafts} and bonus token {bonus[call, request]}"
                raise VerifierError(f"request {request}: {message}, {told}", call)
