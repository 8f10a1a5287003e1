"""What a drafter is trained on, at one position: losses over its reduced vocabulary.

The drafter has probabilities `p` for R tokens, the target `q` for all. What the target gives to the
*others* is never accepted, so the others count as one token with ``p = 0``. That is exact for the
acceptance of every scheme here, because no formula depends on how mass that cannot be drafted is
divided.

* `kl`: cross-entropy on the R tokens, ``-sum q log p``.
* `tv`: ``1 - sum min(p, q)``, one minus the acceptance of a single draft.
* `lk`: both, mixed by how well the drafter is doing (the hybrid of LK losses, Samarin et al.
  2602.23881): ``w kl + (1 - w) tv`` with ``w = exp(-3 acceptance)``.
* `list:SCHEME:K`: one minus the exact acceptance of K drafts, :mod:`gls_jax.losses`. It is computed
  at some random positions of a batch, because it costs more. For `gumbel_topk` it is not exact: the
  acceptance is a mean over the target's tokens, and each position takes one random token instead.
  The expected loss is nearly the same, see
  :func:`gls_jax.schemes.gumbel_topk.sampled_acceptance`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from gls_jax import losses, schemes
from gls_jax.schemes import gumbel_topk

__all__ = ["Objective", "overlap", "parse_objective"]

_KINDS = ("kl", "tv", "lk")
# How fast the hybrid turns from KL to total variation.
_LK_RATE = 3.0
# Positions of a batch at which the acceptance of a list is computed.
_LIST_POSITIONS = 128
# The least log-probability of a draft in a list loss, which gives impossible tokens no gradient.
_LEAST_LOG_P = -60.0


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss by its name.

    Attributes:
        kind: `kl`, `tv`, `lk` or `list`.
        scheme, num_drafts: of a list.
    """

    kind: str
    scheme: str = ""
    num_drafts: int = 0

    def mean(
        self,
        key: PRNGKeyArray,
        log_p: Float[Array, "n r"],
        log_q: Float[Array, "n r"],
        counts: Bool[Array, " n"],
    ) -> Float[Array, ""]:
        """Mean loss over the positions that count.

        Args:
            key: of a list loss. It selects the positions and, for gumbel_topk, their tokens.
            log_p: of the drafter, normalised over R tokens.
            log_q: of the target at these tokens, not normalised over them.
            counts: which positions count; without any the mean is 0.
        """
        if self.kind == "list":
            return self._list_mean(key, log_p, log_q, counts)
        weights = counts / jnp.maximum(jnp.sum(counts), 1)
        accepted = overlap(log_p, log_q)
        cross_entropy = -jnp.sum(jnp.exp(log_q) * log_p, axis=-1)
        if self.kind == "kl":
            return jnp.sum(weights * cross_entropy)
        if self.kind == "tv":
            return jnp.sum(weights * (1 - accepted))
        acceptance = jax.lax.stop_gradient(jnp.sum(weights * accepted))
        weight = jnp.exp(-_LK_RATE * acceptance)
        mixed = weight * cross_entropy + (1 - weight) * (1 - accepted)
        return jnp.sum(weights * mixed)

    def _list_mean(self, key, log_p, log_q, counts):
        num_positions = min(_LIST_POSITIONS, len(counts))
        order_key, token_key = jax.random.split(key)
        # Positions that count come first, in random order.
        order = jnp.argsort(jax.random.uniform(order_key, counts.shape) + ~counts)[:num_positions]
        log_p, log_q, counts = log_p[order], log_q[order], counts[order]
        log_others = jnp.log(jnp.maximum(1 - jnp.sum(jnp.exp(log_q), -1, keepdims=True), 1e-9))
        target = jax.lax.stop_gradient(jnp.concatenate([log_q, log_others], axis=-1))
        draft = jnp.maximum(log_p, _LEAST_LOG_P)
        draft = jnp.pad(draft, ((0, 0), (0, 1)), constant_values=-jnp.inf)
        if self.scheme == "gumbel_topk":
            # The exact acceptance would take most of the time of a training step.
            uniforms = jax.random.uniform(token_key, (num_positions,), draft.dtype)
            accepted = jax.vmap(gumbel_topk.sampled_acceptance, (0, 0, 0, None))(
                uniforms, draft, jax.nn.log_softmax(target), self.num_drafts
            )
            loss = 1 - accepted
        else:
            loss = losses.acceptance(draft, target, scheme=self.scheme, num_drafts=self.num_drafts)
        return jnp.sum(counts * loss) / jnp.maximum(jnp.sum(counts), 1)


def overlap(log_p: Float[Array, "*n r"], log_q: Float[Array, "*n r"]) -> Float[Array, "*n"]:
    """The acceptance of a single draft, ``sum min(p, q) = 1 - TV``."""
    return jnp.sum(jnp.exp(jnp.minimum(log_p, log_q)), axis=-1)


def parse_objective(name: str) -> Objective:
    """The loss of a name such as `kl` or `list:gls:8`.

    Raises:
        ValueError: another name, or a list of a scheme without an exact acceptance.

    >>> from gls_jax.models.drafter.objectives import parse_objective
    >>> parse_objective("list:gls:8").num_drafts
    8
    """
    if name in _KINDS:
        return Objective(name)
    kind, *parts = name.split(":")
    if kind != "list" or len(parts) != 2 or not parts[1].isdecimal():
        raise ValueError(
            f"loss: expected one of {', '.join(_KINDS)}, or list:SCHEME:K such as list:gls:8, "
            f"got {name!r}"
        )
    scheme = schemes.get(parts[0])
    scheme.check_token_level("acceptance")
    return Objective(kind, scheme.name, scheme.check_num_drafts(int(parts[1])))
