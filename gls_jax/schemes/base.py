"""The interface of a draft-selection scheme, and its door.

A scheme answers three questions about one position. *Propose*: which K tokens does the drafter put
up? *Verify*: which token does the target emit? *Acceptance*: how often is that token among the
drafts, exactly? What makes it a scheme and not a bias: the emitted token has law exactly `q`,
provided the drafts came from `propose` with the same key.

Over several positions there is one more, :meth:`Scheme.verify_tree`: which path of a whole tree of
drafts does the target accept, and which token follows it? A scheme that answers the three questions
answers this one by walking down from the root; `block` and `traversal` look at whole paths and
answer only this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.schemes.tree import Path, Tree, walk
from gls_jax.typing import Index, LogProbs, Numbers

__all__ = ["Scheme"]

# `K` drafts, `N` tokens, `C` lengths of lists; `*k` is `K`, or nothing where all drafts have one
# law.
Propose: TypeAlias = Callable[[PRNGKeyArray, Float[Array, "*k N"], int], Int[Array, " K"]]
Verify: TypeAlias = Callable[
    [PRNGKeyArray, Int[Array, " K"], Float[Array, "*k N"], Float[Array, " N"], Bool[Array, " K"]],
    Int[Array, ""],
]
VerifyTree: TypeAlias = Callable[
    [PRNGKeyArray, Index, Tree, Float[Array, "n N"], Float[Array, "c N"]], Path
]
Acceptance: TypeAlias = Callable[
    [Float[Array, "*k N"], Float[Array, " N"], tuple[int, ...]], Float[Array, " C"]
]
Hits: TypeAlias = Callable[
    [PRNGKeyArray, Float[Array, "*k N"], Float[Array, " N"], int], Bool[Array, " K"]
]
Trial: TypeAlias = Callable[[PRNGKeyArray], Bool[Array, " K"]]
Simulator: TypeAlias = Callable[[Float[Array, "*k N"], Float[Array, " N"], int], Trial]
Bound: TypeAlias = Callable[
    [LogProbs, LogProbs, int], Float[Array, ""]
]  # called as it is, with any array
Limit: TypeAlias = Callable[[int, int], str | None]


def _no_limit(num_items: int, num_drafts: int) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One draft-selection scheme: mathematics for one position, lifted by `vmap`.

    Attributes:
        name: name in the registry.
        invariance: what the emitted token does not depend on. `"none"`; `"conditional"`: given the
            drafts, not on the draft laws; `"strong"`: not on the drafts either, it is a function of
            key and target law alone (for `gls_strong` of `K` too).
        max_drafts: largest `K`, or None.
        needs_draft_law: whether `verify` looks at `log_p`.
        diverse: whether each draft may have a law of its own, `log_p` of shape `[K, N]`.
        summary: what it does, in one line.
        propose_fn, verify_fn, acceptance_fn: the mathematics, behind the door of the methods below.
        verify_tree_fn: of schemes that look at whole paths; they have neither `verify_fn` nor
            `acceptance_fn`.
        ranked: whether the list is the ranks of ONE race, so that drafts at one context take ranks
            0, 1, ...; else draft k is a stream of its own.
        verify_limit, acceptance_limit: why `verify` or the exact acceptance is not to be had for so
            many items and drafts, `(num_items, num_drafts) -> str`, or None.
        hits_fn: a trial for every K at once; None where it must be put together from `propose` and
            `verify`.
        simulator_fn: the same trial without clocks, `(log_p, log_q, num_drafts) -> (key ->
            bool[K])`: what is prepared once a pair, and a trial in `O(K log N)`, see
            :mod:`gls_jax.simulation`. Equal law, other random numbers.
        streaming: whether `hits_fn` passes over the items with `O(K)` memory instead of holding the
            clocks.
        bound: lower bound on the acceptance `(log_p, log_q, num_drafts) -> f[]`, where one is
            known.
    """

    name: str
    invariance: Literal["none", "conditional", "strong"]
    max_drafts: int | None
    needs_draft_law: bool
    diverse: bool
    summary: str
    propose_fn: Propose = dataclasses.field(repr=False)
    verify_fn: Verify | None = dataclasses.field(default=None, repr=False)
    acceptance_fn: Acceptance | None = dataclasses.field(default=None, repr=False)
    verify_tree_fn: VerifyTree | None = dataclasses.field(default=None, repr=False)
    ranked: bool = False
    verify_limit: Limit = dataclasses.field(default=_no_limit, repr=False)
    acceptance_limit: Limit = dataclasses.field(default=_no_limit, repr=False)
    hits_fn: Hits | None = dataclasses.field(default=None, repr=False)
    simulator_fn: Simulator | None = dataclasses.field(default=None, repr=False)
    streaming: bool = False
    bound: Bound | None = dataclasses.field(default=None, repr=False)

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
        laws = checks.draft_laws(
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
        if self.needs_draft_law:
            checks.possible_tokens(drafts, log_p, active, races.LIGHTEST, "drafts")
        _refuse(self.verify_limit(log_q.shape[0], num_drafts))
        return _compiled(self.verify_fn, (key, drafts, log_p, log_q, active), ())

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
        return jnp.clip(_compiled(self.acceptance_fn, (log_p, log_q), (counts,)), 0, 1)

    def hits(
        self, key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, num_drafts: int
    ) -> Bool[Array, " K"]:
        """One trial for every list length at once: whether the target accepts any of the first 1,
        2, ... K drafts.
        """
        checks.key(key)
        log_p, log_q, num_drafts = self._trial_inputs(log_p, log_q, num_drafts)
        if self.hits_fn is not None:
            return _compiled(self.hits_fn, (key, log_p, log_q), (num_drafts,))
        verify_fn, drafts = self.verify_fn, self.propose_fn(key, log_p, num_drafts)
        assert verify_fn is not None  # a token-level scheme

        def hit(k: int):
            laws = log_p if log_p.ndim == 1 else log_p[:k]
            return jnp.any(drafts[:k] == verify_fn(key, drafts[:k], laws, log_q, jnp.ones(k, bool)))

        return jnp.stack([hit(k) for k in range(1, num_drafts + 1)])

    def simulator(self, log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> Trial:
        """Trials of one pair without clocks, where the scheme knows how: in law those of
        :meth:`hits`.

        Returns:
            A function of a key. What it needs to know of the pair is computed here, once for all
            trials.

        Raises:
            ValueError: what `hits` raises, or a scheme that needs its clocks.

        >>> import jax, jax.numpy as jnp
        >>> from gls_jax import schemes
        >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
        >>> trial = schemes.get("gls").simulator(log_p, log_q, 4)
        >>> trial(jax.random.key(0)).shape
        (4,)
        """
        log_p, log_q, num_drafts = self._trial_inputs(log_p, log_q, num_drafts)
        if self.simulator_fn is None:
            raise ValueError(
                f"scheme '{self.name}' has no trials without clocks; expected one of those with simulator_fn"
            )
        return self.simulator_fn(log_p, log_q, num_drafts)

    def _trial_inputs(self, log_p, log_q, num_drafts: int) -> tuple[jax.Array, jax.Array, int]:
        self.check_token_level("hits")
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
        from `propose` under :meth:`draft_key`, in the node's slot, at the law of its context. Which
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
            ValueError: shapes that do not fit, more slots than the scheme takes drafts, tokens
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
        self.check_num_drafts(tree.num_slots)
        size = tree.tokens.shape[0]
        given_p, given_q = log_p, log_q
        log_q = checks.laws(log_q, size + 1, "log_q")
        checks.alive_rows(given_q, tree.alive, "log_q", root=True)
        if size == 0:
            token = _compiled(_without_drafts, (key, position, log_q[0]), (self, tree.num_slots))
            return Path(jnp.zeros(tree.depth, jnp.int32) - 1, jnp.zeros((), jnp.int32), token)
        if log_p is None and self.needs_draft_law:
            raise ValueError(
                f"log_p: scheme '{self.name}' needs the law each node was drawn from, got None"
            )
        log_p = log_q[1:] if log_p is None else checks.laws(log_p, size, "log_p")
        log_p, log_q = checks.same_items(log_p, log_q)
        if given_p is not None:
            checks.alive_rows(given_p, tree.alive, "log_p")
        checks.index(position, "position", last=2**32 - 2 - tree.depth)
        checks.alive_tokens(tree.tokens, tree.alive, log_q.shape[1], "tree.tokens")
        if self.needs_draft_law:
            checks.possible_tokens(tree.tokens, log_p, tree.alive, races.LIGHTEST, "tree.tokens")
            if not self.diverse:
                checks.one_law_each(log_p, tree.parents, tree.alive, f"scheme '{self.name}'")
        if self.verify_tree_fn is not None:
            return _compiled(self.verify_tree_fn, (key, position, tree, log_p, log_q), ())
        _refuse(self.verify_limit(log_q.shape[1], tree.num_slots))
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
        if self.verify_tree_fn is None:
            return races.position_key(key, position)
        return races.position_key(
            races.position_key(races.position_key(key, start), position), context
        )

    def check_token_level(self, name: str) -> None:
        """Raise `ValueError` where the scheme has no `name` of a single position."""
        if self.verify_fn is None:
            raise ValueError(
                f"scheme '{self.name}' verifies whole paths and has no {name} of one position; expected verify_tree, "
                f"or a token-level scheme"
            )

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


def _without_drafts(key, position, log_q, scheme: Scheme, num_slots: int) -> Int[Array, ""]:
    """Plain generation: what is emitted below the last draft."""
    if scheme.verify_fn is None:  # nothing to look at: a draft of one's own law
        return scheme.propose_fn(scheme.draft_key(key, position, position, 0), log_q, 1)[0]
    nobody = jnp.zeros(num_slots, jnp.int32)
    laws = jnp.tile(log_q, (num_slots, 1)) if scheme.diverse else log_q
    return scheme.verify_fn(races.position_key(key, position), nobody, laws, log_q, nobody > 0)


def _walk(key, position, tree, log_p, log_q, scheme: Scheme) -> Path:
    verify_fn = scheme.verify_fn
    assert verify_fn is not None  # `verify_tree` has seen to the others

    def verify(key, drafts, laws, log_q, active):
        return verify_fn(key, drafts, laws if scheme.diverse else laws[0], log_q, active)

    return walk(verify, key, position, tree, log_p, log_q)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


@partial(jax.jit, static_argnames=("function", "static"))
def _compiled(function: Callable, arrays: tuple, static: tuple):
    """`function(*arrays, *static)`, compiled once a shape also for callers outside `jit`."""
    return function(*arrays, *static)
