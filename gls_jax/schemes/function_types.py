"""The types of a scheme's functions, and the records that hold these functions.

A scheme's file writes plain functions and puts them into the records.
:class:`gls_jax.schemes.Scheme` holds the records, checks the users' input, and calls the functions,
with positional arguments that are checked already. :mod:`gls_jax.schemes.array_types` has the
shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    NodeLogProbs,
    RowLogProbs,
    Scalar,
    Token,
    Tokens,
    Vector,
)
from gls_jax.schemes.draft_tree import Path, Tree
from gls_jax.typing import Index, LogProbs

__all__ = [
    "AcceptanceCurve",
    "Accepted",
    "Bound",
    "EmittedTokenKernel",
    "ExactAcceptance",
    "InversionTrial",
    "Limit",
    "PathVerification",
    "Propose",
    "ProposeAmong",
    "Survival",
    "TokenVerification",
    "Trial",
    "Trials",
    "Verify",
    "VerifyTree",
]


class Propose(Protocol):
    """Draft K tokens."""

    def __call__(self, key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int, /) -> Drafts: ...


class ProposeAmong(Protocol):
    """Draft K tokens where `p` is given for some tokens only, in increasing order.

    The drafts are those of `Propose` on the whole vocabulary, with 0 for all other tokens.
    """

    def __call__(
        self, key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int, tokens: Tokens, /
    ) -> Drafts: ...


class Verify(Protocol):
    """The token that the target emits, given the drafts and which of them are active.

    Its distribution is exactly `q`. The target accepts draft `k` where it equals this token and is
    active.
    """

    def __call__(
        self,
        key: PRNGKeyArray,
        drafts: Drafts,
        log_p: DraftLogProbs,
        log_q: Vector,
        active: Active,
        /,
    ) -> Token: ...


class VerifyTree(Protocol):
    """The accepted path of a draft tree, for schemes that compare whole paths."""

    def __call__(
        self,
        key: PRNGKeyArray,
        position: Index,
        tree: Tree,
        log_p: NodeLogProbs,
        log_q: RowLogProbs,
        /,
    ) -> Path: ...


class AcceptanceCurve(Protocol):
    """Exact acceptance for several list lengths."""

    def __call__(
        self, log_p: DraftLogProbs, log_q: Vector, num_drafts: tuple[int, ...], /
    ) -> Acceptances: ...


class Bound(Protocol):
    """A lower bound on the acceptance. Called with arrays as users give them."""

    def __call__(self, log_p: LogProbs, log_q: LogProbs, num_drafts: int, /) -> Scalar: ...


class EmittedTokenKernel(Protocol):
    """How many of J active drafts equal the emitted token, given that this token is category 0.

    Entry `[J, J']` is the probability that J' of J drafts do; rows ``J = 0, ..., K`` sum to 1.
    """

    def __call__(self, log_p: Vector, log_q: Vector, num_drafts: int, /) -> Kernel: ...


class Survival(Protocol):
    """Probability that a round accepts more than d drafts of one chain, given the text, `[P, L]`.

    Row `t` is a round that begins at position `t` of the text; column `d` runs from 0 to ``L - 1``.
    Column 0 of both log-probabilities `[P, N]` is the token that follows in the text, and `length`
    is `L`.
    """

    def __call__(self, log_p: LogProbs, log_q: LogProbs, length: int, /) -> np.ndarray: ...


class Accepted(Protocol):
    """One trial: whether the target's token is among the first 1, 2, ..., K drafts."""

    def __call__(
        self, key: PRNGKeyArray, log_p: DraftLogProbs, log_q: Vector, num_drafts: int, /
    ) -> AcceptedByLength: ...


@runtime_checkable
class Trial(Protocol):
    """A trial of one pair of distributions that has been prepared; returns what `Accepted` does."""

    def __call__(self, key: PRNGKeyArray, /) -> AcceptedByLength: ...


class InversionTrial(Protocol):
    """Prepares the trials of one pair by inversion, see :mod:`gls_jax.exact.inversion`."""

    def __call__(self, log_p: DraftLogProbs, log_q: Vector, num_drafts: int, /) -> Trial: ...


class Limit(Protocol):
    """Why a function does not work for this many categories and drafts; None if it does."""

    def __call__(self, num_categories: int, num_drafts: int, /) -> str | None: ...


def _no_limit(num_categories: int, num_drafts: int) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class TokenVerification:
    """Verification of one position.

    Attributes:
        verify: the token to emit.
    """

    verify: Verify


@dataclasses.dataclass(frozen=True)
class PathVerification:
    """Verification of whole paths.

    Attributes:
        verify_tree: the accepted path and the token after it.
        survival: how far a chain is accepted given the text, for the planner; None if not known.
    """

    verify_tree: VerifyTree
    survival: Survival | None = None


@dataclasses.dataclass(frozen=True)
class ExactAcceptance:
    """The parts of the acceptance that are known without simulation.

    Attributes:
        curve: exact acceptance for several list lengths.
        limit: for how many categories and drafts `curve` works.
        bound: a lower bound, where one is known.
        kernel: accepted drafts given the emitted token, for the planner; None if not known.
        tails_are_bounds: whether the two treatments of truncated distributions, disjoint and merged
            tails, give a lower and an upper bound, see :mod:`gls_jax.studies.position_study`.
    """

    curve: AcceptanceCurve
    limit: Limit = _no_limit
    bound: Bound | None = None
    kernel: EmittedTokenKernel | None = None
    tails_are_bounds: bool = False


@dataclasses.dataclass(frozen=True)
class Trials:
    """Monte Carlo trials that count for every list length at once.

    Attributes:
        accepted: a trial with the noise of `propose` and `verify`.
        inversion: the same trial by inversion, in `O(K log N)`: equal in distribution, with other
            random numbers. None if the scheme has none.
        streaming: whether `accepted` runs in `O(K)` memory instead of holding the noise.
    """

    accepted: Accepted
    inversion: InversionTrial | None = None
    streaming: bool = False
