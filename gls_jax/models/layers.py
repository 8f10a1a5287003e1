"""Parts of a block: attention, feed-forward, linear maps, RMSNorm and rotary positions (RoPE)."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from gls_jax import work_shape
from gls_jax.models.config import Config

__all__ = [
    "Attention",
    "FeedForward",
    "KeysValues",
    "Linear",
    "Projections",
    "RMSNorm",
    "Rotation",
    "attend",
    "attend_with_past",
    "normal",
    "rms_normalised",
    "rotate",
    "soft_cap",
]

KeysValues: TypeAlias = tuple[Float[Array, "b hkv d _"], Float[Array, "b hkv _ d"]]
"""Keys and values of consecutive cache slots or tokens.

Each has the layout in which its product with the queries or weights is a plain matrix product,
which on a CPU takes two thirds of the time of `[B, S, Hkv, D]`.
"""

Rotation: TypeAlias = tuple[Float[Array, "b t 1 half"], Float[Array, "b t 1 half"]]
"""Cosines and sines of the rotary angles, the same for all heads."""


class Projections(NamedTuple):
    """What attention needs of T tokens. Queries and keys are rotated; queries are scaled too."""

    query: Float[Array, "b t hq d"]
    key: Float[Array, "b t hkv d"]
    value: Float[Array, "b t hkv d"]


# On a CPU, products of up to 4 rows are left as they are; more are filled up to the next of these.
_UNPADDED_ROWS = 4
_PADDED_ROWS = (8, 16, 32)
# Score of what a token does not see. Finite, so that a token that sees nothing gets the mean of all
# values instead of NaN.
_MASKED_SCORE = -1e30


class Attention(nnx.Module):
    """The weights of grouped-query attention; :func:`attend_with_past` is the attention itself."""

    head_dim: int
    scale: float
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: RMSNorm
    key_norm: RMSNorm
    qk_norm: bool

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.head_dim = config.head_dim
        self.scale = config.query_scale
        self.qk_norm = config.qk_norm
        hidden_size = config.hidden_size
        has_bias = config.qkv_bias
        query_size = config.num_heads * config.head_dim
        key_size = config.num_kv_heads * config.head_dim
        self.query = Linear(hidden_size, query_size, bias=has_bias, dtype=dtype, rngs=rngs)
        self.key = Linear(hidden_size, key_size, bias=has_bias, dtype=dtype, rngs=rngs)
        self.value = Linear(hidden_size, key_size, bias=has_bias, dtype=dtype, rngs=rngs)
        self.output = Linear(query_size, hidden_size, dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, config, dtype=dtype)
            self.key_norm = RMSNorm(config.head_dim, config, dtype=dtype)

    def project(self, x: Float[Array, "b t m"], rotation: Rotation) -> Projections:
        """Queries, keys and values of T tokens."""
        by_head = (*x.shape[:2], -1, self.head_dim)
        query = self.query(x).reshape(by_head)
        key = self.key(x).reshape(by_head)
        value = self.value(x).reshape(by_head)
        if self.qk_norm:
            query = self.query_norm(query)
            key = self.key_norm(key)
        # Keys are cached rotated, so each is rotated once.
        return Projections(rotate(query, rotation) * self.scale, rotate(key, rotation), value)


class FeedForward(nnx.Module):
    """Gated linear unit: down(activation(gate(x)) * up(x))."""

    activation: str
    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.activation = config.activation
        self.gate = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.up = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.down = Linear(config.intermediate_size, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        """`[B, T, M]` to `[B, T, M]`."""
        # JAX's gelu is the tanh approximation by default, as Gemma's.
        activation = jax.nn.silu if self.activation == "silu" else jax.nn.gelu
        return self.down(activation(self.gate(x)) * self.up(x))


class Linear(nnx.Module):
    """`x @ weight.T + bias` with `weight` of shape `[out, in]`, as checkpoints have it."""

    weight: nnx.Param[Array]
    bias: nnx.Param[Array] | None

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.weight = normal(rngs, (outputs, inputs), dtype)
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, x: Float[Array, "*b inputs"]) -> Float[Array, "*b outputs"]:
        """`[B, T, in]` to `[B, T, out]`."""
        product = matrix_product(x, self.weight[...]).astype(x.dtype)
        return product if self.bias is None else product + self.bias[...]


def matrix_product(
    x: Float[Array, "*b inputs"], weight: Float[Array, "outputs inputs"]
) -> Float[Array, "*b outputs"]:
    """`x @ weight.T`, in float32 where the types of `x` and `weight` are smaller."""
    dtype = jnp.promote_types(jnp.result_type(x, weight), jnp.float32)
    if work_shape.current().is_wide:
        return jnp.matmul(x, weight.T, preferred_element_type=dtype)
    rows = x.reshape(-1, x.shape[-1])
    num_rows = rows.shape[0]
    # With few rows XLA:CPU takes about half as long for `weight @ rows.T` as for `rows @ weight.T`,
    # but longer for 5 rows than for 8. In bfloat16 one row takes several times as long as two.
    size = num_rows
    if num_rows > _UNPADDED_ROWS:
        size = next((size for size in _PADDED_ROWS if size >= num_rows), num_rows)
    elif weight.dtype == jnp.bfloat16:
        size = max(num_rows, 2)
    rows = jnp.pad(rows, ((0, size - num_rows), (0, 0)))
    # Without the barriers XLA would turn one product into the other.
    columns = jax.lax.optimization_barrier(rows.T)
    product = jnp.matmul(weight, columns, preferred_element_type=dtype)
    product = jax.lax.optimization_barrier(product).T[:num_rows]
    return product.reshape(*x.shape[:-1], weight.shape[0])


class RMSNorm(nnx.Module):
    """`x / rms(x) * (offset + weight)` over the last axis, in float32."""

    epsilon: float
    offset: float
    weight: nnx.Param[Array]

    def __init__(self, size: int, config: Config, *, dtype: DTypeLike) -> None:
        self.epsilon = config.norm_eps
        self.offset = config.norm_offset
        self.weight = nnx.Param(jnp.full((size,), 1 - config.norm_offset, dtype))

    def __call__(self, x: Float[Array, "*b size"]) -> Float[Array, "*b size"]:
        """Any shape `[..., size]`, in the dtype of `x`."""
        # The product is in float32 too: a bfloat16 weight around zero plus one would lose bits.
        factor = self.offset + self.weight[...].astype(jnp.float32)
        return (rms_normalised(x, self.epsilon) * factor).astype(x.dtype)


def rms_normalised(x: Float[Array, "*b size"], epsilon: float) -> Float[Array, "*b size"]:
    """`x / rms(x)` over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), -1, keepdims=True)
    return wide * jax.lax.rsqrt(mean_square + epsilon)


def rotate(x: Float[Array, "b t h d"], rotation: Rotation) -> Float[Array, "b t h d"]:
    """RoPE in the half-split convention: coordinate i is rotated with coordinate i + D / 2."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, -1).astype(x.dtype)


def attend_with_past(
    projections: Projections,
    visible: Bool[Array, "b t all"],
    past: KeysValues | None,
    *,
    softcap: float | None,
) -> tuple[Float[Array, "b t heads"], KeysValues | None]:
    """Attention over the cached slots and the new tokens; without a past over the tokens alone.

    Returns:
        Mean values of all heads side by side and, with a past, the T new keys and values.
    """
    query, key, value = projections
    new = (key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))
    segments = [new] if past is None else [past, new]
    mean_values = attend(query, segments, visible, softcap=softcap)
    mean_values = mean_values.reshape(*mean_values.shape[:2], -1)
    return mean_values, None if past is None else new


def attend(
    query: Float[Array, "b t hq d"],
    segments: list[KeysValues],
    visible: Bool[Array, "b t s"],
    *,
    softcap: float | None = None,
) -> Float[Array, "b t hq d"]:
    """Softmax attention over segments of keys and values.

    The cached segment and the new one are joined as scores, which are small. Joining the keys would
    copy the cache.

    Args:
        query: scaled and rotated; query head h reads key-value head `h // (Hq / Hkv)`.
        segments: keys and values, S slots or tokens in all.
        visible: whether a token sees each of the S, in the order of the segments.
        softcap: of the scores, see `soft_cap`.

    Returns:
        Weighted means of the values, `[B, T, Hq, D]`.
    """
    batch, num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = segments[0][0].shape[1]
    # The tokens and the query heads of a group form ONE axis, `[B, Hkv, T * group, D]`: XLA:CPU
    # runs this batched product twice as fast as one with two axes.
    grouped = query.reshape(batch, num_tokens, num_kv_heads, -1, head_dim)
    grouped = grouped.transpose(0, 2, 1, 3, 4).reshape(batch, num_kv_heads, -1, head_dim)
    segment_scores = [
        jnp.einsum("bhxd,bhds->bhxs", grouped, keys, preferred_element_type=jnp.float32)
        for keys, _ in segments
    ]
    scores = jnp.concatenate(segment_scores, -1)
    # The mask differs between tokens but not between heads, so the joint axis is split for it.
    by_token = soft_cap(scores, softcap)
    by_token = by_token.reshape(batch, num_kv_heads, num_tokens, -1, scores.shape[-1])
    by_token = jnp.where(visible[:, None, :, None, :], by_token, _MASKED_SCORE)
    weights = jax.nn.softmax(by_token, -1).reshape(scores.shape)
    # Back to segments, for the values are not joined either.
    segment_ends = np.cumsum([keys.shape[-1] for keys, _ in segments])
    segment_weights = jnp.split(weights, segment_ends[:-1], -1)
    segment_sums = [
        jnp.einsum(
            "bhxs,bhsd->bhxd", part.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        for part, (_, values) in zip(segment_weights, segments, strict=True)
    ]
    mean_values = sum(segment_sums[1:], segment_sums[0]).astype(query.dtype)
    mean_values = mean_values.reshape(batch, num_kv_heads, num_tokens, -1, head_dim)
    return mean_values.transpose(0, 2, 1, 3, 4).reshape(batch, num_tokens, num_heads, head_dim)


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(x / cap)`, or `x` without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: DTypeLike) -> nnx.Param[Array]:
    """Random initial weights."""
    initializer = jax.nn.initializers.normal(0.02)
    return nnx.Param(initializer(rngs.params(), shape, dtype))
