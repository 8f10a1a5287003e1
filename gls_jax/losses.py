"""Exact acceptance as a training loss: what a list scheme's drafter should be trained on.

Each position is one problem. Its loss and, where a derivative is asked for, its gradient are
computed together, a few positions at a time, and only the gradient is kept, by a custom
differentiation rule (`jax.custom_jvp`). Checkpointing the positions would bound the memory as well,
but sort and integrate everything a second time.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gls_jax import checks, schemes
from gls_jax.loops import varying_like

__all__ = ["acceptance"]

_LOGITS_PER_STEP = 2**18  # at most, in one step of the loop over positions; measured on XLA:CPU


def acceptance(
    draft_logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    scheme: str | schemes.Scheme,
    num_drafts: int,
) -> Float[Array, ...]:
    """``1 - scheme.acceptance(log_p, log_q, num_drafts)`` of every position, softmax inside.

    Use the scheme that you will decode with. `gls`, `gls_strong`, `poisson` and `gumbel_topk`
    verify without the draft probabilities. With `gls` the emitted token depends on the drafter
    through the drafts alone (conditional invariance), with the other three not at all (strong
    invariance); `gls` and `gls_strong` have the same loss. `gumbel_topk` accepts most. `poisson` is
    the cheap and smooth proxy for all four: its acceptance is never below the list matching bound,
    and 1 where the distributions agree. Schemes with rejection tests need the draft probabilities:
    the loss of `single` is the total variation distance, and `spectr` extends it to K drafts.

    Value and gradient for 256 positions of 49,152 tokens, K = 4, against those of a KL loss (two
    CPU cores, jax 0.10.2 and 0.12.0.1): `poisson` 6 to 10 times as long, `gls` 50 to 65,
    `gumbel_topk` 660 to 700; temporaries 70, 93 and 178 MB, of which the gradient is 50. Call it
    under `jit`.

    The loss is differentiable in both logits. If the target is fixed,
    `jax.lax.stop_gradient(target_logits)` halves the memory. Three things to know:

    * A token whose probability is below `e^-80` counts as impossible and gets no gradient, and so
      does a masked one (logit `-inf`). Keep the drafter's probabilities above that while training,
      for instance by mixing in a little of the uniform distribution:
      `jnp.logaddexp(jax.nn.log_softmax(draft_logits), jnp.log(1e-6 / N))`.
    * Where tokens tie in `q / p` the loss has a kink, as `|x|` has at 0; the gradient there is a
      value between the one-sided derivatives. Where the two distributions are equal the gradient is
      0, except for `naive` and `weighted_importance`, whose loss is smallest at another draft
      distribution.
    * For more than 512 tokens, `gumbel_topk` uses an estimate that lies between a lower and an
      upper bound, see :func:`gls_jax.schemes.gumbel_topk.acceptance_interval`. The gradient is that
      of the estimate.

    Args:
        draft_logits: `[..., N]`, of any float type; a masked token is `-inf`.
        target_logits: of the same shape.
        scheme: a registered name or a :class:`gls_jax.schemes.Scheme` with an exact acceptance at
            `N`.
        num_drafts: `K`, static.

    Returns:
        `f[...]`, in float32, or float64 if one of the logits is. Gradients have the type of their
        logits. Beside the inputs, memory holds their gradients and the intermediate values of a few
        positions. Second derivatives are right, but keep those of all positions.

    Raises:
        ValueError: shapes that differ, integers, an unknown scheme, one that verifies whole paths,
            `num_drafts` out of range, more tokens or drafts than the scheme's exact acceptance
            supports, logits that are split over an explicit axis of a mesh; and where values are
            known, NaN, `inf`, nothing but `-inf`, or what looks like probabilities.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import losses
    >>> target = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> loss = lambda draft: losses.acceptance(draft, target, scheme="gls", num_drafts=4)
    >>> draft = jnp.zeros((2, 3))
    >>> [round(float(x), 2) for x in loss(draft)]
    [0.02, 0.05]
    >>> slope = jax.jit(jax.grad(lambda draft: loss(draft).mean()))
    >>> for _ in range(20):
    ...     draft = draft - 5 * slope(draft)
    >>> bool(loss(draft).max() < 0.01)
    True
    """
    scheme = scheme if isinstance(scheme, schemes.Scheme) else schemes.get(scheme)
    scheme.check_token_level("acceptance")
    num_drafts = scheme.check_num_drafts(num_drafts)
    draft, target = (
        checks.logits(draft_logits, "draft_logits"),
        checks.logits(target_logits, "target_logits"),
    )
    if draft.shape != target.shape:
        raise ValueError(
            f"draft_logits and target_logits: expected equal shapes [..., N], got {list(draft.shape)} and "
            f"{list(target.shape)}; drafts from distributions of their own are not supported"
        )
    for logits, name in ((draft, "draft_logits"), (target, "target_logits")):
        _not_split(logits, name)
    rows = tuple(logits.reshape(-1, draft.shape[-1]) for logits in (draft, target))
    # Inside `jax.shard_map` both must vary over its axes: a slope in replicated logits would be
    # summed twice.
    rows = varying_like(rows, rows)
    return _by_position(lambda pair: _loss(*pair, scheme, num_drafts), *rows).reshape(
        draft.shape[:-1]
    )


def _not_split(logits: Float[Array, ...], name: str) -> None:
    """JAX runs no loop over an axis that is split over an explicit mesh axis, and says so without a
    way around.
    """
    if any(part is not None for part in jax.typeof(logits).sharding.spec):
        raise ValueError(
            f"{name}: expected logits that are not split over an explicit mesh axis, got "
            f"{jax.typeof(logits)}; compute the loss of each part inside jax.shard_map, or all inside "
            f"jax.sharding.auto_axes"
        )


def _formula(
    draft: Float[Array, " N"], target: Float[Array, " N"], scheme: schemes.Scheme, num_drafts: int
):
    """The loss of one position."""
    dtype = jnp.float64 if jnp.float64 in (draft.dtype, target.dtype) else jnp.float32
    log_p, log_q = (jax.nn.log_softmax(logits.astype(dtype)) for logits in (draft, target))
    return 1 - scheme.acceptance(log_p, log_q, num_drafts)


_loss = jax.custom_jvp(_formula, nondiff_argnums=(2, 3))


def _loss_and_slope(scheme: schemes.Scheme, num_drafts: int, logits, tangents):
    moved = tuple(n for n, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero))
    loss, slopes = jax.value_and_grad(_formula, argnums=moved)(*logits, scheme, num_drafts)
    return loss, sum(
        _dot(slope, tangents[n], loss.dtype) for n, slope in zip(moved, slopes, strict=True)
    )


_loss.defjvp(_loss_and_slope, symbolic_zeros=True)


def _dot(slope: Float[Array, " N"], tangent: Float[Array, " N"], dtype) -> Float[Array, ""]:
    return jnp.sum(slope.astype(dtype) * tangent.astype(dtype))


def _by_position(function: Callable, draft: Float[Array, "R N"], target: Float[Array, "R N"]):
    """`vmap(function)`, some positions at a time: a divisor of their number, so that one program
    serves all.
    """
    count, size = draft.shape
    step = max(
        n for n in range(1, max(1, min(count, _LOGITS_PER_STEP // size)) + 1) if count % n == 0
    )
    return jax.lax.map(
        function, (draft, target), batch_size=step if step > 1 else None
    )  # `vmap` over one costs time
