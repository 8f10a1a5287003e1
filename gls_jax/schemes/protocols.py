"""Types of the functions that make a scheme: what each is called with, and what it returns.

In the shapes `K` is the number of drafts, `N` of tokens, `C` of list lengths, `n` of drafted tree
nodes and `c = n + 1` of tree nodes with the root. `*k` is `K` where each draft has a distribution of
its own, and nothing where all drafts share one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax.schemes.draft_tree import Path, Tree
from gls_jax.typing import Index, LogProbs

__all__ = [
    "AcceptanceCurve",
    "Accepted",
    "Bound",
    "EmittedTokenKernel",
    "InversionTrial",
    "Limit",
    "Propose",
    "Survival",
    "Trial",
    "Verify",
    "VerifyTree",
]


class Propose(Protocol):
    """The list of K draft tokens."""

    def __call__(
        self, key: PRNGKeyArray, log_p: Float[Array, "*k N"], num_drafts: int, /
    ) -> Int[Array, " K"]: ...


class Verify(Protocol):
    """The token that the target emits, given the list and which of its drafts are active."""

    def __call__(
        self,
        key: PRNGKeyArray,
        drafts: Int[Array, " K"],
        log_p: Float[Array, "*k N"],
        log_q: Float[Array, " N"],
        active: Bool[Array, " K"],
        /,
    ) -> Int[Array, ""]: ...


class VerifyTree(Protocol):
    """The accepted path of a draft tree, for schemes that compare whole paths."""

    def __call__(
        self,
        key: PRNGKeyArray,
        position: Index,
        tree: Tree,
        log_p: Float[Array, "n N"],
        log_q: Float[Array, "c N"],
        /,
    ) -> Path: ...


class AcceptanceCurve(Protocol):
    """Exact acceptance for several list lengths."""

    def __call__(
        self, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...], /
    ) -> Float[Array, " C"]: ...


class Bound(Protocol):
    """A lower bound on the acceptance. Called with arrays as users give them."""

    def __call__(
        self, log_p: LogProbs, log_q: LogProbs, num_drafts: int, /
    ) -> Float[Array, ""]: ...


class EmittedTokenKernel(Protocol):
    """How many of J active drafts equal the emitted token, given that this token is category 0.

    Entry `[J, J']` is the probability that J' of J drafts do; rows `J = 0, ..., K` sum to 1.
    """

    def __call__(
        self, log_p: Float[Array, " N"], log_q: Float[Array, " N"], num_drafts: int, /
    ) -> Float[Array, "J J"]: ...


class Survival(Protocol):
    """Probability that a round accepts more than d drafts of one chain, given the text `[P, L]`.

    For schemes that verify whole paths. Column 0 of both distributions `[P, N]` is the token that
    follows in the text; `length` is `L`.
    """

    def __call__(self, log_p: LogProbs, log_q: LogProbs, length: int, /) -> np.ndarray: ...


class Accepted(Protocol):
    """One trial: whether the target's token is among the first 1, 2, ..., K drafts."""

    def __call__(
        self,
        key: PRNGKeyArray,
        log_p: Float[Array, "*k N"],
        log_q: Float[Array, " N"],
        num_drafts: int,
        /,
    ) -> Bool[Array, " K"]: ...


class Trial(Protocol):
    """A trial of one pair of distributions, prepared beforehand."""

    def __call__(self, key: PRNGKeyArray, /) -> Bool[Array, " K"]: ...


class InversionTrial(Protocol):
    """Prepares the trials of one pair by inversion, see :mod:`gls_jax.exact.inversion`."""

    def __call__(
        self, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int, /
    ) -> Trial: ...


class Limit(Protocol):
    """Why a function cannot serve so many categories and drafts, or None where it can."""

    def __call__(self, num_categories: int, num_drafts: int, /) -> str | None: ...
