"""Exact acceptance as a training loss for the drafter of a list scheme.

Each position is one problem. Its loss and, where a derivative is needed, its gradient are computed
together, a few positions at a time, and only the gradient is kept. A custom differentiation rule
(`jax.custom_jvp`) does this. Checkpointing the positions would bound the memory as well, but it
would sort and integrate everything a second time.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gls_jax import checks, schemes, work_shape
from gls_jax.loops import map_in_batches, varying_like

__all__ = ["acceptance"]


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
    the loss of `single` is the total variation distance, and `spectr` extends it to K drafts. The
    loss of `topk` has no gradient for the drafter: its list changes only where two tokens tie.

    Cost of value and gradient for 256 positions of 49,152 tokens, K = 4, compared with a KL loss
    (two CPU cores): `poisson` takes 6 to 11 times as long and `gls` 50 to 65 times, with jax 0.10.2
    and 0.12.0.1; `gumbel_topk` 490 times, with jax 0.10.2. Their temporaries are 69, 92 and 121 MB
    with jax 0.10.2, including 50 MB for the gradient. Call it under `jit`.

    The loss is differentiable in both logits. If the target is fixed,
    `jax.lax.stop_gradient(target_logits)` halves the memory. Three things to know:

    * A token whose probability is below `e^-80` counts as impossible and gets no gradient, and so
      does a masked one (logit `-inf`). Keep the drafter's probabilities above that while training,
      for instance by mixing in a little of the uniform distribution:
      `jnp.logaddexp(jax.nn.log_softmax(draft_logits), jnp.log(1e-6 / N))`.
    * Where tokens tie in `q / p` the loss has a kink, as `|x|` has at 0; the gradient there is a
      value between the one-sided derivatives. Where the two distributions are equal, the gradient
      is 0, except for `naive` and `weighted_importance`: their loss is smallest at another draft
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
        logits. In addition to the inputs, memory holds their gradients and the intermediate values
        of a few positions. Second derivatives are correct, but store the intermediate values of all
        positions.

    Raises:
        ValueError: shapes that differ, integers, an unknown scheme, one that verifies whole paths,
            `num_drafts` out of range, more tokens or drafts than the scheme's exact acceptance
            supports, logits that are split over an explicit axis of a mesh; and where values are
            known, NaN, `inf`, nothing but `-inf`, or values that look like probabilities.

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
    draft = checks.logits(draft_logits, "draft_logits")
    target = checks.logits(target_logits, "target_logits")
    if draft.shape != target.shape:
        raise ValueError(
            "draft_logits and target_logits: expected equal shapes [..., N], "
            f"got {list(draft.shape)} and {list(target.shape)}; "
            "drafts from distributions of their own are not supported"
        )
    _check_not_split(draft, "draft_logits")
    _check_not_split(target, "target_logits")
    num_tokens = draft.shape[-1]
    rows = (draft.reshape(-1, num_tokens), target.reshape(-1, num_tokens))
    # Inside `jax.shard_map` both must vary over its axes: a gradient in replicated logits would be
    # summed twice.
    rows = varying_like(rows, rows)
    losses = _over_positions(lambda pair: _loss(*pair, scheme, num_drafts), rows)
    return losses.reshape(draft.shape[:-1])


def _check_not_split(logits: Float[Array, ...], name: str) -> None:
    """Refuse logits split over an explicit mesh axis: JAX runs no loop over such an axis.

    JAX's own error names no way around it.
    """
    logits_type = jax.typeof(logits)
    if any(part is not None for part in logits_type.sharding.spec):
        raise ValueError(
            f"{name}: expected logits that are not split over an explicit mesh axis, got "
            f"{logits_type}; compute the loss of each part inside jax.shard_map, or all inside "
            "jax.sharding.auto_axes"
        )


def _formula(
    draft,
    target,
    scheme: schemes.Scheme,
    num_drafts: int,
) -> Float[Array, ""]:
    """The loss of one position, from logits `[N]`."""
    dtype = jnp.float64 if jnp.float64 in (draft.dtype, target.dtype) else jnp.float32
    log_p = jax.nn.log_softmax(draft.astype(dtype))
    log_q = jax.nn.log_softmax(target.astype(dtype))
    return 1 - scheme.acceptance(log_p, log_q, num_drafts)


_loss = jax.custom_jvp(_formula, nondiff_argnums=(2, 3))


def _loss_and_derivative(scheme: schemes.Scheme, num_drafts: int, logits, tangents):
    """Loss and directional derivative, from gradients in those logits only that have a tangent."""
    arguments = tuple(i for i in range(2) if not isinstance(tangents[i], SymbolicZero))
    loss_and_gradient = jax.value_and_grad(_formula, argnums=arguments)
    loss, gradients = loss_and_gradient(*logits, scheme, num_drafts)
    products = []
    for i, gradient in zip(arguments, gradients, strict=True):
        tangent = tangents[i].astype(loss.dtype)
        products.append(jnp.sum(gradient.astype(loss.dtype) * tangent))
    return loss, sum(products)


_loss.defjvp(_loss_and_derivative, symbolic_zeros=True)


def _over_positions(
    function: Callable,
    rows: tuple[jax.Array, jax.Array],
) -> Float[Array, " R"]:
    """`vmap(function)` over the positions `[R, N]`, a few at a time."""
    num_positions, num_tokens = rows[0].shape
    most = max(1, min(num_positions, work_shape.current().positions_at_once(num_tokens)))
    # A divisor of the number of positions, so that all steps run one program.
    batch_size = max(n for n in range(1, most + 1) if num_positions % n == 0)
    if batch_size < most // 2:
        # No good divisor. That steps are few matters more on an accelerator than a copy of rows.
        batch_size = most
    return map_in_batches(function, rows, batch_size)
