"""The interface of a draft-selection scheme, and its door.

A scheme answers three questions about one position. *Propose*: which K tokens does the drafter put up? *Verify*: which
token does the target emit? *Acceptance*: how often is that token among the drafts, exactly? What makes it a scheme and
not a bias: the emitted token has law exactly `q`, provided the drafts came from `propose` with the same key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks

__all__ = ["Scheme"]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One draft-selection scheme: mathematics for one position, lifted by `vmap`.

    Attributes:
        name: name in the registry.
        invariance: what the emitted token does not depend on. `"none"`; `"conditional"`: given the drafts, not on the
            draft laws; `"strong"`: not on the drafts either, it is a function of key and target law alone.
        max_drafts: largest `K`, or None.
        needs_draft_law: whether `verify` looks at `log_p`.
        diverse: whether each draft may have a law of its own, `log_p` of shape `[K, N]`.
        summary: what it does, in one line.
        propose_fn, verify_fn, acceptance_fn: the mathematics, behind the door of the methods below.
        hits_fn: a trial for every K at once; None where it must be put together from `propose` and `verify`.
        streaming: whether `hits_fn` passes over the items with `O(K)` memory instead of holding the clocks.
        bound: lower bound on the acceptance `(log_p, log_q, num_drafts) -> f[]`, where one is known.
    """

    name: str
    invariance: Literal["none", "conditional", "strong"]
    max_drafts: int | None
    needs_draft_law: bool
    diverse: bool
    summary: str
    propose_fn: Callable = dataclasses.field(repr=False)
    verify_fn: Callable = dataclasses.field(repr=False)
    acceptance_fn: Callable = dataclasses.field(repr=False)
    hits_fn: Callable | None = dataclasses.field(default=None, repr=False)
    streaming: bool = False
    bound: Callable | None = dataclasses.field(default=None, repr=False)

    def propose(self, key: PRNGKeyArray, log_p, num_drafts: int) -> Int[Array, " K"]:
        """Draft `num_drafts` tokens; the first K do not change when more are drafted.

        Args:
            key: one typed key, the position's.
            log_p: draft log-probabilities `[N]`, or `[K, N]` for a scheme with `diverse`.
            num_drafts: `K`, static.

        Returns:
            `i32[K]`.

        Raises:
            ValueError: `num_drafts` out of range, shapes that do not fit, a key that is not one typed threefry key.
        """
        checks.key(key)
        num_drafts = self.check_num_drafts(num_drafts)
        return _compiled(self.propose_fn, (key, self._draft_laws(log_p, num_drafts)), (num_drafts,))

    def verify(self, key: PRNGKeyArray, drafts, log_p, log_q, active=None) -> Int[Array, ""]:
        """The token to emit. Its law is exactly `q` when `drafts` came from `propose` with this key.

        Args:
            key: the key that proposed: for a scheme with shared randomness that is the coupling, and a scheme without
                takes its own noise from a fold that no proposal uses.
            drafts: `i32[K]`.
            log_p: as in `propose`.
            log_q: target log-probabilities `[N]`.
            active: `bool[K]`, the drafts still in play (None: all). It may depend on earlier positions only.

        Returns:
            `i32[]`. The target accepts draft `k` where it equals this token and `active[k]`.

        Raises:
            ValueError: shapes that do not fit, too many drafts.
        """
        checks.key(key)
        drafts = jnp.asarray(drafts)
        if drafts.ndim != 1 or not jnp.issubdtype(drafts.dtype, jnp.integer):
            raise ValueError(
                f"drafts: expected integers of shape [K], got {drafts.dtype} of shape {list(drafts.shape)}"
            )
        num_drafts = self.check_num_drafts(drafts.shape[0])
        log_p, log_q = self._draft_laws(log_p, num_drafts), checks.law(log_q, "log_q")
        log_p, log_q = checks.same_items(log_p, log_q)
        checks.tokens(drafts, log_q.shape[0], "drafts")
        active = jnp.ones(num_drafts, bool) if active is None else jnp.asarray(active)
        if active.shape != drafts.shape or active.dtype != jnp.bool_:
            raise ValueError(
                f"active: expected bool of shape [{num_drafts}], got {active.dtype} of shape {list(active.shape)}"
            )
        return _compiled(self.verify_fn, (key, drafts, log_p, log_q, active), ())

    def acceptance(self, log_p, log_q, num_drafts: int) -> Float[Array, ""]:
        """Exact probability that the emitted token is among the drafts.

        Args:
            log_p: `[N]`, or `[K, N]` for a scheme with `diverse`.
            log_q: `[N]`.
            num_drafts: `K`, static.

        Returns:
            `f[]` in the inputs' float type (at least float32); `jit`, `vmap`, and `grad` away from ties.

        Raises:
            ValueError: `num_drafts` out of range, shapes that do not fit.
        """
        return self.acceptance_curve(log_p, log_q, (num_drafts,))[0]

    def acceptance_curve(self, log_p, log_q, num_drafts: Sequence[int]) -> Float[Array, " C"]:
        """Exact acceptance for several K in one pass, `f[len(num_drafts)]` (diverse: first K rows)."""
        counts = tuple(self.check_num_drafts(k) for k in checks.counts(num_drafts, "num_drafts"))
        log_p, log_q = self._draft_laws(log_p, max(counts)), checks.law(log_q, "log_q")
        log_p, log_q = checks.same_items(log_p, log_q)
        return jnp.clip(_compiled(self.acceptance_fn, (log_p, log_q), (counts,)), 0, 1)

    def hits(self, key: PRNGKeyArray, log_p, log_q, num_drafts: int) -> Bool[Array, " K"]:
        """One trial for every list length at once: whether the target accepts any of the first 1, 2, ... K drafts."""
        checks.key(key)
        num_drafts = self.check_num_drafts(num_drafts)
        log_p, log_q = self._draft_laws(log_p, num_drafts), checks.law(log_q, "log_q")
        log_p, log_q = checks.same_items(log_p, log_q)
        if self.hits_fn is not None:
            return _compiled(self.hits_fn, (key, log_p, log_q), (num_drafts,))
        drafts = self.propose_fn(key, log_p, num_drafts)

        def hit(k: int):
            laws = log_p if log_p.ndim == 1 else log_p[:k]
            return jnp.any(drafts[:k] == self.verify_fn(key, drafts[:k], laws, log_q, jnp.ones(k, bool)))

        return jnp.stack([hit(k) for k in range(1, num_drafts + 1)])

    def check_num_drafts(self, num_drafts: int) -> int:
        """`num_drafts` as an int within 1..max_drafts, or a `ValueError`."""
        num_drafts = checks.count(num_drafts, "num_drafts")
        if self.max_drafts is not None and num_drafts > self.max_drafts:
            raise ValueError(f"num_drafts: scheme '{self.name}' takes at most {self.max_drafts}, got {num_drafts}")
        return num_drafts

    def _draft_laws(self, log_p, num_drafts: int) -> jax.Array:
        return checks.draft_laws(log_p, num_drafts, diverse=self.diverse, owner=f"scheme '{self.name}'")


@partial(jax.jit, static_argnames=("function", "static"))
def _compiled(function: Callable, arrays: tuple, static: tuple):
    """`function(*arrays, *static)`, compiled once a shape also for callers outside `jit`."""
    return function(*arrays, *static)
