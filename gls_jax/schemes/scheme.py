"""The interface of a draft-selection scheme.

A scheme answers three questions about one position. *Propose*: which K tokens does the drafter
propose? *Verify*: which token does the target emit? *Acceptance*: how often is that token among the
drafts, exactly? Every scheme is lossless: the emitted token has distribution exactly `q`, provided
the drafts came from `propose` with the same key.

Over several positions there is a fourth question, :meth:`Scheme.verify_tree`: which path of a tree
of drafts does the target accept, and which token follows it? A scheme that verifies tokens answers
it by walking down from the root. `block` and `traversal` compare whole paths and answer it only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races, work_shape
from gls_jax.schemes.draft_tree import ROOT, Path, Tree
from gls_jax.schemes.function_types import (
    ExactAcceptance,
    PathVerification,
    Propose,
    ProposeAmong,
    TokenVerification,
    Trial,
    Trials,
)
from gls_jax.schemes.tree_checks import checked_tree_problem
from gls_jax.schemes.tree_walk import token_without_drafts, walk
from gls_jax.typing import Index, LogProbs, Numbers

__all__ = ["Scheme"]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One draft-selection scheme: mathematics for one position, lifted by `vmap`.

    Attributes:
        name: name in the registry.
        invariance: `"none"`; `"conditional"`: given the drafts, the emitted token does not depend
            on the draft distributions; `"strong"`: it is a function of the key and the target
            distribution alone (for `gls_strong` of `K` too).
        max_drafts: largest `K`, or None.
        needs_draft_probs: whether verification reads `log_p`.
        diverse: whether drafts may have different distributions, `log_p` of shape `[K, N]`.
        ranked: whether the list holds the ranks of one race, so that the drafts after one tree node
            take ranks 0, 1, ...; otherwise draft k is the winner of stream k.
        propose_fn: ``(key, log_p, num_drafts) -> drafts i32[K]``.
        propose_among_fn: the same where `p` is given for some tokens only,
            ``(key, log_p, num_drafts, tokens) -> drafts i32[K]``; None if there is no faster way
            than to fill in the others.
        verification: of tokens, ``verify(key, drafts, log_p, log_q, active) -> token i32[]``; or of
            whole paths, ``verify_tree(key, position, tree, log_p, log_q) -> Path``.
        exact: ``curve(log_p, log_q, num_drafts: tuple) -> acceptances f[C]`` and other exact
            values; None for schemes that verify whole paths.
        trials: ``accepted(key, log_p, log_q, num_drafts) -> bool[K]``, one trial for every list
            length; None where `propose` and `verify` are called for each length.
        samples_drafts: whether each draft is a sample of `p`; otherwise `propose` chooses the
            drafts without noise and ignores its key.
    """

    name: str
    invariance: Literal["none", "conditional", "strong"]
    max_drafts: int | None
    needs_draft_probs: bool
    diverse: bool
    ranked: bool
    propose_fn: Propose = dataclasses.field(repr=False)
    verification: TokenVerification | PathVerification = dataclasses.field(repr=False)
    exact: ExactAcceptance | None = dataclasses.field(default=None, repr=False)
    trials: Trials | None = dataclasses.field(default=None, repr=False)
    samples_drafts: bool = True
    propose_among_fn: ProposeAmong | None = dataclasses.field(default=None, repr=False)

    @property
    def verifies_tokens(self) -> bool:
        """Whether it verifies one position at a time, and not whole paths."""
        return isinstance(self.verification, TokenVerification)

    def acceptance_limit(self, num_categories: int, num_drafts: int) -> str | None:
        """Why this many categories and drafts have no exact acceptance; None if they have one."""
        return self._exact_acceptance().limit(num_categories, num_drafts)

    def propose(self, key: PRNGKeyArray, log_p: LogProbs, num_drafts: int) -> Int[Array, " K"]:
        """Draft `num_drafts` tokens; the first K do not change when more are drafted.

        Args:
            key: one typed key, the position's.
            log_p: draft log-probabilities `[N]`, or `[K, N]` for a scheme with `diverse=True`.
            num_drafts: `K`, static.

        Returns:
            `i32[K]`.

        Raises:
            ValueError: `num_drafts` out of range, shapes that do not fit, a key that is not one
                typed threefry key, or what :func:`gls_jax.check_log_probs` raises.
        """
        checks.key(key)
        num_drafts = self.check_num_drafts(num_drafts)
        owner = f"scheme '{self.name}'"
        log_probs = checks.draft_distributions(log_p, num_drafts, diverse=self.diverse, owner=owner)
        checks.values(log_p, "log_p")
        return work_shape.compiled(self.propose_fn, (key, log_probs), (num_drafts,))

    def verify(
        self,
        key: PRNGKeyArray,
        drafts: Numbers,
        log_p: LogProbs,
        log_q: LogProbs,
        active: Numbers | None = None,
    ) -> Int[Array, ""]:
        """The token to emit, distributed exactly as `q` if `propose` drafted with the same key.

        Args:
            key: the key that proposed. Private noise comes from a fold that no proposal uses.
            drafts: `i32[K]`.
            log_p: as in `propose`.
            log_q: target log-probabilities `[N]`.
            active: `bool[K]`, the drafts that may still be accepted (None: all). It may depend on
                earlier positions only.

        Returns:
            `i32[]`. The target accepts draft `k` where it equals this token and `active[k]`.

        Raises:
            ValueError: shapes that do not fit, too many drafts, what
                :func:`gls_jax.check_log_probs` raises, drafts outside the vocabulary or, where the
                scheme needs the draft probabilities, impossible drafts (values are checked where
                they are not traced).
        """
        verification = self._token_verification("verify")
        checks.key(key)
        drafts = checks.integers(drafts, "drafts", "[K]")
        num_drafts = self.check_num_drafts(drafts.shape[0])
        log_p, log_q = self._problem(log_p, log_q, num_drafts)
        checks.tokens(drafts, log_q.shape[0], "drafts")
        if active is None:
            active = jnp.ones(num_drafts, bool)
        else:
            active = checks.flags(active, "active", num_drafts)
        if self.needs_draft_probs:
            checks.possible_tokens(drafts, log_p, active, races.LIGHTEST, "drafts")
        return work_shape.compiled(verification.verify, (key, drafts, log_p, log_q, active), ())

    def acceptance(self, log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> Float[Array, ""]:
        """Exact probability that the emitted token is among the drafts.

        Args:
            log_p: `[N]`, or `[K, N]` for a scheme with `diverse=True`.
            log_q: `[N]`.
            num_drafts: `K`, static.

        Returns:
            `f[]` in the inputs' float type (at least float32); `jit`, `vmap`, and `grad` away from
            ties.

        Raises:
            ValueError: `num_drafts` out of range, shapes that do not fit, what
                :func:`gls_jax.check_log_probs` raises, or more categories or drafts than the exact
                value can be computed for.
        """
        return self.acceptance_curve(log_p, log_q, (num_drafts,))[0]

    def acceptance_curve(
        self, log_p: LogProbs, log_q: LogProbs, num_drafts: Sequence[int]
    ) -> Float[Array, " C"]:
        """:meth:`acceptance` for several K in one pass; for `[K, N]`, K uses the first K rows."""
        exact = self._exact_acceptance()
        lengths = tuple(self.check_num_drafts(k) for k in checks.counts(num_drafts, "num_drafts"))
        log_p, log_q = self._problem(log_p, log_q, max(lengths))
        _raise_if(exact.limit(log_q.shape[0], max(lengths)))
        curve = work_shape.compiled(exact.curve, (log_p, log_q), (lengths,))
        return jnp.clip(curve, 0, 1)

    def accepted(
        self, key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, num_drafts: int
    ) -> Bool[Array, " K"]:
        """One trial: whether any of the first 1, 2, ..., K drafts is accepted."""
        checks.key(key)
        verification = self._token_verification("accepted")
        log_p, log_q, num_drafts = self._trial_inputs(log_p, log_q, num_drafts)
        if self.trials is not None:
            return work_shape.compiled(self.trials.accepted, (key, log_p, log_q), (num_drafts,))
        drafts = self.propose_fn(key, log_p, num_drafts)

        def any_accepted(k: int):
            first_log_p = log_p if log_p.ndim == 1 else log_p[:k]
            active = jnp.ones(k, bool)
            token = verification.verify(key, drafts[:k], first_log_p, log_q, active)
            return jnp.any(drafts[:k] == token)

        return jnp.stack([any_accepted(k) for k in range(1, num_drafts + 1)])

    def inversion_trial(self, log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> Trial:
        """Trials of one pair by inversion: distributed as :meth:`accepted`, without its noise.

        Returns:
            A function of a key. The data that all trials of the pair share are computed once, here.

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
                f"scheme '{self.name}' has no trials by inversion; "
                "expected method='noise', or another scheme"
            )
        return self.trials.inversion(log_p, log_q, num_drafts)

    def verify_tree(
        self,
        key: PRNGKeyArray,
        position: Index,
        tree: Tree,
        log_p: LogProbs | None,
        log_q: LogProbs,
    ) -> Path:
        """The accepted path of a tree of drafts, and the token to emit after it.

        The emitted path and token are distributed as the target's text, provided each node's
        token came from `propose` under :meth:`draft_key`, at the node's draft index. Which
        nodes there are may depend on the tokens of their ancestors, but on no others: pruning a
        tree by the tokens it drafted biases every scheme that is not strongly invariant.

        Args:
            key: key of the request.
            position: absolute position of the first token that the tree proposes.
            tree: the drafts, :class:`gls_jax.schemes.Tree`, `n` nodes.
            log_p: `[n, N]`, the distribution each node was drafted from, the same for siblings
                unless the scheme is `diverse`; None for a scheme that does not need it.
            log_q: `[n + 1, N]`, target log-probabilities at the root and after each node.

        Returns:
            :class:`gls_jax.schemes.Path`.

        Raises:
            ValueError: shapes that do not fit, longer lists than the scheme takes, tokens
                outside the vocabulary, what is not a tree or, at nodes that are alive, what
                :func:`gls_jax.check_log_probs` raises.

        >>> import jax, jax.numpy as jnp
        >>> from gls_jax import schemes
        >>> gls, key = schemes.get("gls"), jax.random.key(0)
        >>> log_p = jnp.log(jnp.full((7, 5), 0.2))  # p = q: a whole chain is accepted
        >>> keys = [gls.draft_key(key, 0, t, 0) for t in range(3)]
        >>> drafts = jnp.stack([gls.propose(k, log_p[0], 2) for k in keys], axis=1)
        >>> path = gls.verify_tree(key, 0, schemes.chains(drafts), log_p[1:], log_p)
        >>> int(path.length), path.nodes.shape
        (3, (3,))
        """
        log_p, log_q = checked_tree_problem(self, key, position, tree, log_p, log_q)
        if tree.tokens.shape[0] == 0:
            root = (key, position, log_q[ROOT])
            token = work_shape.compiled(token_without_drafts, root, (self, tree.list_size))
            return Path(jnp.zeros(tree.depth, jnp.int32) - 1, jnp.zeros((), jnp.int32), token)
        arrays = (key, position, tree, log_p, log_q)
        if isinstance(self.verification, PathVerification):
            return work_shape.compiled(self.verification.verify_tree, arrays, ())
        return work_shape.compiled(walk, arrays, (self.verification.verify, self.diverse))

    def draft_key(
        self, key: PRNGKeyArray, start: Index, position: Index, parent: Index
    ) -> PRNGKeyArray:
        """Key under which the drafts after one tree node are proposed.

        A token-level scheme verifies one list per position, and the emitted token tells nothing
        about later noise. Its noise belongs to the position alone, and the text does not depend on
        the rounds. A scheme that verifies whole paths has compared branches and used the noise of
        all of them: it needs fresh noise after every node and in every round.

        Args:
            key: key of the request.
            start: position at which the round begins.
            position: absolute position of the drafted token.
            parent: row of the node it is drafted after, as in ``Tree.parents``.
        """
        checks.index(start, "start")
        checks.index(parent, "parent")
        if self.verifies_tokens:
            return races.position_key(key, position)
        round_key = races.position_key(key, start)
        return races.position_key(races.position_key(round_key, position), parent)

    def check_token_level(self, name: str) -> None:
        """Raise `ValueError` where the scheme has no `name` of a single position."""
        self._token_verification(name)

    def check_num_drafts(self, num_drafts: int) -> int:
        """`num_drafts` as an int within 1..max_drafts, or a `ValueError`."""
        num_drafts = checks.count(num_drafts, "num_drafts")
        if self.max_drafts is not None and num_drafts > self.max_drafts:
            at_most = f"scheme '{self.name}' takes at most {self.max_drafts}"
            raise ValueError(f"num_drafts: {at_most}, got {num_drafts}")
        return num_drafts

    def _problem(self, log_p, log_q, num_drafts: int) -> tuple[jax.Array, jax.Array]:
        owner = f"scheme '{self.name}'"
        return checks.list_problem(log_p, log_q, num_drafts, diverse=self.diverse, owner=owner)

    def _trial_inputs(self, log_p, log_q, num_drafts: int) -> tuple[jax.Array, jax.Array, int]:
        self.check_token_level("accepted")
        num_drafts = self.check_num_drafts(num_drafts)
        log_p, log_q = self._problem(log_p, log_q, num_drafts)
        return log_p, log_q, num_drafts

    def _token_verification(self, name: str) -> TokenVerification:
        """The verification of one position; `name` is the method that needs it."""
        if isinstance(self.verification, PathVerification):
            raise ValueError(
                f"scheme '{self.name}' verifies whole paths and has no {name} of one position; "
                "expected verify_tree, or a token-level scheme"
            )
        return self.verification

    def _exact_acceptance(self) -> ExactAcceptance:
        self.check_token_level("acceptance")
        if self.exact is None:
            raise ValueError(f"scheme '{self.name}': expected an exact acceptance, got none")
        return self.exact


def _raise_if(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)
