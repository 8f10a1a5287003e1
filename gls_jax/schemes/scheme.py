"""The interface of a draft-selection scheme: its functions in typed records, and input validation.

A scheme answers three questions about one position. *Propose*: which K tokens does the drafter put
up? *Verify*: which token does the target emit? *Acceptance*: how often is that token among the
drafts, exactly? One property makes it lossless: the emitted token has distribution exactly `q`,
provided the drafts came from `propose` with the same key.

Over several positions there is a fourth, :meth:`Scheme.verify_tree`: which path of a tree of drafts
does the target accept, and which token follows it? A scheme that verifies tokens answers it by
walking down from the root. `block` and `traversal` compare whole paths and answer only this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.schemes import protocols
from gls_jax.schemes.draft_tree import Path, Tree, walk
from gls_jax.typing import Index, LogProbs, Numbers

__all__ = ["ExactAcceptance", "PathVerification", "Scheme", "TokenVerification", "Trials"]


def _no_limit(num_categories: int, num_drafts: int) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class TokenVerification:
    """Verification of one position.

    Attributes:
        verify: the token to emit.
        limit: why `verify` cannot serve so many categories and drafts, or None.
    """

    verify: protocols.Verify
    limit: protocols.Limit = _no_limit


@dataclasses.dataclass(frozen=True)
class PathVerification:
    """Verification of whole paths.

    Attributes:
        verify_tree: the accepted path and the token after it.
        survival: how far a chain is accepted given the text, for the planner; None if not known.
    """

    verify_tree: protocols.VerifyTree
    survival: protocols.Survival | None = None


@dataclasses.dataclass(frozen=True)
class ExactAcceptance:
    """What is known about the acceptance without simulation.

    Attributes:
        curve: exact acceptance for several list lengths.
        limit: why `curve` cannot serve so many categories and drafts, or None.
        bound: a lower bound, where one is known.
        kernel: accepted drafts given the emitted token, for the planner; None if not known.
        tails_bracket: whether reading truncated distributions with disjoint and with merged tails
            brackets the truth, see :mod:`gls_jax.studies.position_study`.
    """

    curve: protocols.AcceptanceCurve
    limit: protocols.Limit = _no_limit
    bound: protocols.Bound | None = None
    kernel: protocols.EmittedTokenKernel | None = None
    tails_bracket: bool = False


@dataclasses.dataclass(frozen=True)
class Trials:
    """Monte Carlo trials that serve every list length at once.

    Attributes:
        accepted: a trial with the noise of `propose` and `verify`.
        inversion: the same trial by inversion, in `O(K log N)`: equal in distribution, with other
            random numbers. None if the scheme has none.
        streaming: whether `accepted` runs in `O(K)` memory instead of holding the noise.
    """

    accepted: protocols.Accepted
    inversion: protocols.InversionTrial | None = None
    streaming: bool = False


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One draft-selection scheme: mathematics for one position, lifted by `vmap`.

    Attributes:
        name: name in the registry.
        invariance: what the emitted token does not depend on. `"none"`; `"conditional"`: given the
            drafts, not on the draft distributions; `"strong"`: not on the drafts either, it is a
            function of the key and the target distribution alone (for `gls_strong` of `K` too).
        max_drafts: largest `K`, or None.
        needs_draft_probs: whether verification reads `log_p`.
        diverse: whether each draft may have a distribution of its own, `log_p` of shape `[K, N]`.
        ranked: whether the list holds the ranks of ONE race, so that the drafts at one tree node
            take ranks 0, 1, ...; otherwise draft k has a stream of its own.
        propose_fn: the list of drafts.
        verification: of tokens, or of whole paths.
        exact: exact acceptance; None for schemes that verify whole paths.
        trials: trials for every list length at once; None where they are put together from `propose`
            and `verify`.
    """

    name: str
    invariance: Literal["none", "conditional", "strong"]
    max_drafts: int | None
    needs_draft_probs: bool
    diverse: bool
    ranked: bool
    propose_fn: protocols.Propose = dataclasses.field(repr=False)
    verification: TokenVerification | PathVerification = dataclasses.field(repr=False)
    exact: ExactAcceptance | None = dataclasses.field(default=None, repr=False)
    trials: Trials | None = dataclasses.field(default=None, repr=False)

    @property
    def verifies_tokens(self) -> bool:
        """Whether it verifies one position at a time, and not whole paths."""
        return isinstance(self.verification, TokenVerification)

    def verify_limit(self, num_categories: int, num_drafts: int) -> str | None:
        """Why `verify` cannot serve so many categories and drafts, or None where it can."""
        if isinstance(self.verification, PathVerification):
            return None
        return self.verification.limit(num_categories, num_drafts)

    def acceptance_limit(self, num_categories: int, num_drafts: int) -> str | None:
        """Why there is no exact acceptance for so many categories and drafts, or None."""
        return _exact_of(self, "acceptance").limit(num_categories, num_drafts)

    def propose(self, key: PRNGKeyArray, log_p: LogProbs, num_drafts: int) -> Int[Array, " K"]:
        """Draft `num_drafts` tokens; the first K do not change when more are drafted.

        Args:
            key: one typed key, the position's.
            log_p: draft log-probabilities `[N]`, or `[K, N]` for a scheme with `diverse`.
            num_drafts: `K`, static.

        Returns:
            `i32[K]`.

        Raises:
            ValueError: `num_drafts` out of range, shapes that do not fit, a key that is not one
                typed threefry key, or what :func:`gls_jax.check_log_probs` raises.
        """
        checks.key(key)
        num_drafts = self.check_num_drafts(num_drafts)
        laws = checks.draft_distributions(
            log_p, num_drafts, diverse=self.diverse, owner=f"scheme '{self.name}'"
        )
        checks.values(log_p, "log_p")
        return _compiled(self.propose_fn, (key, laws), (num_drafts,))

    def verify(
        self,
        key: PRNGKeyArray,
        drafts: Numbers,
        log_p: LogProbs,
        log_q: LogProbs,
        active: Numbers | None = None,
    ) -> Int[Array, ""]:
        """The token to emit. Its law is exactly `q` when `drafts` came from `propose` with this
        key.

        Args:
            key: the key that proposed: for a scheme with shared randomness that is the coupling,
                and a scheme without takes its own noise from a fold that no proposal uses.
            drafts: `i32[K]`.
            log_p: as in `propose`.
            log_q: target log-probabilities `[N]`.
            active: `bool[K]`, the drafts still in play (None: all). It may depend on earlier
                positions only.

        Returns:
            `i32[]`. The target accepts draft `k` where it equals this token and `active[k]`.

        Raises:
            ValueError: shapes that do not fit, too many drafts or items, what
                :func:`gls_jax.check_log_probs` raises, drafts outside the vocabulary or, where the
                scheme needs the draft law, impossible under it (values are looked at where they are
                not traced).
        """
        self.check_token_level("verify")
        checks.key(key)
        drafts = checks.integers(drafts, "drafts", "[K]")
        num_drafts = self.check_num_drafts(drafts.shape[0])
        log_p, log_q = self._problem(log_p, log_q, num_drafts)
        checks.tokens(drafts, log_q.shape[0], "drafts")
        active = (
            jnp.ones(num_drafts, bool)
            if active is None
            else checks.flags(active, "active", num_drafts)
        )
        if self.needs_draft_probs:
            checks.possible_tokens(drafts, log_p, active, races.LIGHTEST, "drafts")
        _refuse(self.verify_limit(log_q.shape[0], num_drafts))
        return _compiled(_verify_of(self, "verify"), (key, drafts, log_p, log_q, active), ())

    def acceptance(self, log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> Float[Array, ""]:
        """Exact probability that the emitted token is among the drafts.

        Args:
            log_p: `[N]`, or `[K, N]` for a scheme with `diverse`.
            log_q: `[N]`.
            num_drafts: `K`, static.

        Returns:
            `f[]` in the inputs' float type (at least float32); `jit`, `vmap`, and `grad` away from
            ties.

        Raises:
            ValueError: `num_drafts` out of range, shapes that do not fit, what
                :func:`gls_jax.check_log_probs` raises, or more items or drafts than the exact value
                can be had for.
        """
        return self.acceptance_curve(log_p, log_q, (num_drafts,))[0]

    def acceptance_curve(
        self, log_p: LogProbs, log_q: LogProbs, num_drafts: Sequence[int]
    ) -> Float[Array, " C"]:
        """Exact acceptance for several K in one pass, `f[len(num_drafts)]` (diverse: first K rows)."""
        self.check_token_level("acceptance")
        counts = tuple(self.check_num_drafts(k) for k in checks.counts(num_drafts, "num_drafts"))
        log_p, log_q = self._problem(log_p, log_q, max(counts))
        _refuse(self.acceptance_limit(log_q.shape[0], max(counts)))
        return jnp.clip(
            _compiled(_exact_of(self, "acceptance").curve, (log_p, log_q), (counts,)), 0, 1
        )

    def accepted(
        self, key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, num_drafts: int
    ) -> Bool[Array, " K"]:
        """One trial for every list length at once: whether the target accepts any of the first 1,
        2, ... K drafts.
        """
        checks.key(key)
        log_p, log_q, num_drafts = self._trial_inputs(log_p, log_q, num_drafts)
        if self.trials is not None:
            return _compiled(self.trials.accepted, (key, log_p, log_q), (num_drafts,))
        verify = _verify_of(self, "accepted")
        drafts = self.propose_fn(key, log_p, num_drafts)

        def hit(k: int):
            laws = log_p if log_p.ndim == 1 else log_p[:k]
            return jnp.any(drafts[:k] == verify(key, drafts[:k], laws, log_q, jnp.ones(k, bool)))

        return jnp.stack([hit(k) for k in range(1, num_drafts + 1)])

    def inversion_trial(self, log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> protocols.Trial:
        """Trials of one pair without clocks, where the scheme knows how: in law those of
        :meth:`accepted`.

        Returns:
            A function of a key. What it needs to know of the pair is computed here, once for all
            trials.

        Raises:
            ValueError: what `accepted` raises, or a scheme that has no trials by inversion.

        >>> import jax, jax.numpy as jnp
        >>> from gls_jax import schemes
        >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
        >>> trial = schemes.get("gls").inversion_trial(log_p, log_q, 4)
        >>> trial(jax.random.key(0)).shape
        (4,)
        """
        log_p, log_q, num_drafts = self._trial_inputs(log_p, log_q, num_drafts)
        if self.trials is None or self.trials.inversion is None:
            raise ValueError(
                f"scheme '{self.name}' has no trials by inversion; expected method='noise', or another scheme"
            )
        return self.trials.inversion(log_p, log_q, num_drafts)

    def _trial_inputs(self, log_p, log_q, num_drafts: int) -> tuple[jax.Array, jax.Array, int]:
        self.check_token_level("accepted")
        num_drafts = self.check_num_drafts(num_drafts)
        log_p, log_q = self._problem(log_p, log_q, num_drafts)
        _refuse(self.verify_limit(log_q.shape[0], num_drafts))
        return log_p, log_q, num_drafts

    def verify_tree(
        self,
        key: PRNGKeyArray,
        position: Index,
        tree: Tree,
        log_p: LogProbs | None,
        log_q: LogProbs,
    ) -> Path:
        """The accepted path of a tree of drafts, and the token to emit after it.

        What is emitted, path and token, has the law of the target, provided each node's token came
        from `propose` under :meth:`draft_key`, in the node's draft index, at the law of its context. Which
        nodes there are may depend on the tokens of their ancestors, but on no others: pruning a
        tree by the tokens it drafted biases every scheme that is not strongly invariant.

        Args:
            key: key of the request.
            position: absolute position of the first token that the tree proposes, and so of the
                round.
            tree: the drafts, :class:`gls_jax.schemes.Tree`, `n` nodes.
            log_p: `[n, N]`, the law each node was drawn from, the same for siblings unless the
                scheme is `diverse`; None for a scheme that does not need it.
            log_q: `[n + 1, N]`, the target's law at the root and after each node.

        Returns:
            :class:`gls_jax.schemes.Path`.

        Raises:
            ValueError: shapes that do not fit, longer lists than the scheme takes, tokens
                outside the vocabulary, what is not a tree or, at nodes that are alive, what
                :func:`gls_jax.check_log_probs` raises.

        >>> import jax, jax.numpy as jnp
        >>> from gls_jax import schemes
        >>> gls, key = schemes.get("gls"), jax.random.key(0)
        >>> laws = jnp.log(jnp.full((7, 5), 0.2))
        >>> drafts = jnp.stack(
        ...     [gls.propose(gls.draft_key(key, 0, t, 0), laws[0], 2) for t in range(3)], axis=1
        ... )
        >>> path = gls.verify_tree(
        ...     key, 0, schemes.chains(drafts), laws[1:], laws
        ... )  # p = q: a whole chain is accepted
        >>> int(path.length), path.nodes.shape
        (3, (3,))
        """
        checks.key(key)
        if not isinstance(tree, Tree):
            raise ValueError(f"tree: expected a gls_jax.schemes.Tree, got {type(tree).__name__}")
        tree.check()
        self.check_num_drafts(tree.list_size)
        size = tree.tokens.shape[0]
        given_p, given_q = log_p, log_q
        log_q = checks.distribution_rows(log_q, size + 1, "log_q")
        checks.alive_rows(given_q, tree.alive, "log_q", root=True)
        if size == 0:
            token = _compiled(_without_drafts, (key, position, log_q[0]), (self, tree.list_size))
            return Path(jnp.zeros(tree.depth, jnp.int32) - 1, jnp.zeros((), jnp.int32), token)
        if log_p is None and self.needs_draft_probs:
            raise ValueError(
                f"log_p: scheme '{self.name}' needs the law each node was drawn from, got None"
            )
        log_p = log_q[1:] if log_p is None else checks.distribution_rows(log_p, size, "log_p")
        log_p, log_q = checks.same_categories(log_p, log_q)
        if given_p is not None:
            checks.alive_rows(given_p, tree.alive, "log_p")
        checks.index(position, "position", last=2**32 - 2 - tree.depth)
        checks.alive_tokens(tree.tokens, tree.alive, log_q.shape[1], "tree.tokens")
        if self.needs_draft_probs:
            checks.possible_tokens(tree.tokens, log_p, tree.alive, races.LIGHTEST, "tree.tokens")
            if not self.diverse:
                checks.siblings_share_distribution(
                    log_p, tree.parents, tree.alive, f"scheme '{self.name}'"
                )
        if isinstance(self.verification, PathVerification):
            return _compiled(self.verification.verify_tree, (key, position, tree, log_p, log_q), ())
        _refuse(self.verify_limit(log_q.shape[1], tree.list_size))
        return _compiled(_walk, (key, position, tree, log_p, log_q), (self,))

    def draft_key(
        self, key: PRNGKeyArray, start: Index, position: Index, context: Index
    ) -> PRNGKeyArray:
        """Key under which the drafts of one context are proposed.

        A token-level scheme looks at one context a position, and at no clock behind the token that
        it emits: clocks belong to the position alone, whatever the branch and however often it is
        drafted, and the text does not depend on the rounds. A scheme that looks at whole paths
        compares branches and has seen the clocks of all of them: it needs fresh ones for every
        context and every round.

        Args:
            key: key of the request.
            start: position at which the round begins.
            position: absolute position of the drafted token.
            context: where in the tree it is drafted, as in ``Tree.parents``.
        """
        checks.index(start, "start")
        checks.index(context, "context")
        if self.verifies_tokens:
            return races.position_key(key, position)
        return races.position_key(
            races.position_key(races.position_key(key, start), position), context
        )

    def check_token_level(self, name: str) -> None:
        """Raise `ValueError` where the scheme has no `name` of a single position."""
        _verify_of(self, name)

    def check_num_drafts(self, num_drafts: int) -> int:
        """`num_drafts` as an int within 1..max_drafts, or a `ValueError`."""
        num_drafts = checks.count(num_drafts, "num_drafts")
        if self.max_drafts is not None and num_drafts > self.max_drafts:
            raise ValueError(
                f"num_drafts: scheme '{self.name}' takes at most {self.max_drafts}, got {num_drafts}"
            )
        return num_drafts

    def _problem(self, log_p, log_q, num_drafts: int) -> tuple[jax.Array, jax.Array]:
        return checks.list_problem(
            log_p, log_q, num_drafts, diverse=self.diverse, owner=f"scheme '{self.name}'"
        )


def _verify_of(scheme: Scheme, name: str) -> protocols.Verify:
    """The `verify` of a scheme that verifies tokens; `name` says what needs it."""
    if isinstance(scheme.verification, PathVerification):
        raise ValueError(
            f"scheme '{scheme.name}' verifies whole paths and has no {name} of one position; "
            "expected verify_tree, or a token-level scheme"
        )
    return scheme.verification.verify


def _exact_of(scheme: Scheme, name: str) -> ExactAcceptance:
    _verify_of(scheme, name)
    if scheme.exact is None:
        raise ValueError(f"scheme '{scheme.name}': expected an exact acceptance, got none")
    return scheme.exact


def _without_drafts(key, position, log_q, scheme: Scheme, list_size: int) -> Int[Array, ""]:
    """Plain generation: what is emitted below the last draft."""
    if not scheme.verifies_tokens:  # nothing to look at: a draft of one's own law
        return scheme.propose_fn(scheme.draft_key(key, position, position, 0), log_q, 1)[0]
    nobody = jnp.zeros(list_size, jnp.int32)
    laws = jnp.tile(log_q, (list_size, 1)) if scheme.diverse else log_q
    return _verify_of(scheme, "verify_tree")(
        races.position_key(key, position), nobody, laws, log_q, nobody > 0
    )


def _walk(key, position, tree, log_p, log_q, scheme: Scheme) -> Path:
    verify_token = _verify_of(scheme, "verify_tree")

    def verify(key, drafts, laws, log_q, active):
        return verify_token(key, drafts, laws if scheme.diverse else laws[0], log_q, active)

    return walk(verify, key, position, tree, log_p, log_q)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


@partial(jax.jit, static_argnames=("function", "static"))
def _compiled(function: Callable, arrays: tuple, static: tuple):
    """`function(*arrays, *static)`, compiled once a shape also for callers outside `jit`."""
    return function(*arrays, *static)
