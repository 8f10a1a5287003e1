"""The decoder: a Llama block written for one layer, its weights stacked on a leading axis and scanned.

Weights lie as `[in, out]`: on XLA:CPU products with a few tokens then run a fifth faster than with the `[out, in]` of
checkpoints, and with one token as fast. The cache is a plain pytree beside the model, never inside it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gls_jax.models.config import Config

_MASKED = -1e30  # finite: a row that sees nothing stays a number (a mean over all slots) instead of NaN


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
        keys: `[L, B, S, Hkv, D]`, layers first; rotated.
        values: `[L, B, S, Hkv, D]`.
        length: `i32[B]`, slots filled in each row. Lower it to forget the newest tokens: what lies in slots from
            `length` on does not matter as long as it is finite.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


class Transformer(nnx.Module):
    """Llama-family decoder: RMSNorm, RoPE (half-split), grouped-query attention, SwiGLU, tied or own output head.

    Under `jax.jit` use it as plain trees: `graph, params = nnx.split(model)` outside, `nnx.merge(graph, params)(...)`
    inside.

    Args:
        config: sizes and constants.
        dtype: of weights, activations and cache. Norms, softmax and logits are float32 whatever it is.
        rngs: source of the random initial weights.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gls_jax.models import Config, Transformer
    >>> config = Config(vocab_size=32, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, num_kv_heads=1)
    >>> model = Transformer(config, rngs=nnx.Rngs(0))
    >>> logits, cache = model(jnp.array([[1, 2, 3]]), cache=model.init_cache(batch=1, length=8))
    >>> logits.shape, cache.keys.shape, cache.length
    ((1, 3, 32), (2, 1, 8, 1, 4), Array([3], dtype=int32))
    """

    def __init__(self, config: Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = _normal(rngs, (config.vocab_size, config.hidden_size), dtype)
        stacked = nnx.split_rngs(splits=config.num_layers)(nnx.vmap(lambda rngs: Block(config, dtype=dtype, rngs=rngs)))
        self.blocks = stacked(rngs)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        if not config.tie_embeddings:
            self.head = _normal(rngs, (config.vocab_size, config.hidden_size), dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits of the next token after each of `tokens`.

        With a cache, the T tokens take slots `length .. length + T - 1` of their row and attention runs over all S
        slots under the mask. What does not fit into S slots is not stored (`length` then exceeds S).

        Args:
            tokens: `i32[B, T]`. An id outside the vocabulary makes its row NaN.
            positions: `i32[B, T]` for RoPE; None counts on from `cache.length` (from 0 without a cache).
            mask: `bool[B, T, S]`, True where a token may look (`S = T` without a cache). None is causal by slot.
            cache: earlier keys and values, or None.

        Returns:
            `f32[B, T, V]` logits, and the cache with the T tokens added (None without a cache).

        Raises:
            ValueError: shapes that do not fit together.
        """
        tokens = jnp.asarray(tokens)
        positions, mask = (None if x is None else jnp.asarray(x) for x in (positions, mask))
        _check(tokens, positions, mask, cache)
        batch, count = tokens.shape
        start = jnp.zeros((batch,), jnp.int32) if cache is None else cache.length
        slots = start[:, None] + jnp.arange(count, dtype=jnp.int32)
        rotation = _rotation(self.config, slots if positions is None else positions)
        visible = _visible(slots, mask, cache)
        past = None if cache is None else (cache.keys, cache.values)
        graph, weights = nnx.split(self.blocks)

        def step(x, layer):
            weights, past = layer
            return nnx.merge(graph, weights)(x, rotation, visible, past)

        x = self.embedding[...].at[tokens].get(mode="fill", fill_value=jnp.nan)
        x, new = jax.lax.scan(step, x, (weights, past))
        head = self.embedding if self.config.tie_embeddings else self.head
        logits = jnp.einsum("btm,vm->btv", self.norm(x), head[...], preferred_element_type=jnp.float32)
        return logits, None if cache is None else _append(cache, new, slots)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Empty cache of `length` slots for each of `batch` rows, in the dtype of the weights."""
        config = self.config
        shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
        dtype = self.embedding[...].dtype
        # Two buffers: one array used twice could not be donated.
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32))


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on the normalised stream and added back."""

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(self, x, rotation, visible, past):
        """Stream `[B, T, M]` and the layer's `past` to the stream and, with a past, the T new keys and values."""
        attended, new = self.attention(self.attention_norm(x), rotation, visible, past)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), new


class Attention(nnx.Module):
    """Grouped-query attention over the cached slots followed by the new tokens."""

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, queries, dtype=dtype, rngs=rngs)
        self.key = Linear(config.hidden_size, keys, dtype=dtype, rngs=rngs)
        self.value = Linear(config.hidden_size, keys, dtype=dtype, rngs=rngs)
        self.output = Linear(queries, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x, rotation, visible, past):
        """`[B, T, M]` to `[B, T, M]`, and with a past the T new keys and values `[B, T, Hkv, D]`."""
        heads = (*x.shape[:2], -1, self.head_dim)
        query = rotate(self.query(x).reshape(heads), *rotation)
        key = rotate(self.key(x).reshape(heads), *rotation)
        value = self.value(x).reshape(heads)
        seen = [(key, value)] if past is None else [past, (key, value)]
        attended = self.output(attend(query, seen, visible).reshape(*x.shape[:2], -1))
        return attended, None if past is None else (key, value)


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.up = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.down = Linear(config.intermediate_size, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        """`[B, T, M]` to `[B, T, M]`."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Linear(nnx.Module):
    """`x @ weight` with `weight` of shape `[in, out]`."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = _normal(rngs, (inputs, outputs), dtype)

    def __call__(self, x):
        """`[B, T, in]` to `[B, T, out]`."""
        return x @ self.weight[...]


class RMSNorm(nnx.Module):
    """`x / rms(x) * weight`, the mean square in float32."""

    def __init__(self, size: int, epsilon: float, *, dtype: DTypeLike):
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x):
        """`[B, T, M]` to `[B, T, M]`, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * self.weight[...]


def rotate(
    x: Float[Array, "b t h d"], cos: Float[Array, "b t 1 half"], sin: Float[Array, "b t 1 half"]
) -> Float[Array, "b t h d"]:
    """RoPE in the half-split convention: coordinate i turns with coordinate i + d/2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def attend(
    query: Float[Array, "b t hq d"],
    seen: list[tuple[Float[Array, "b _ hkv d"], Float[Array, "b _ hkv d"]]],
    visible: Bool[Array, "b t s"],
) -> Float[Array, "b t hq d"]:
    """Softmax attention over several runs of keys and values; query head h reads key-value head `h // (hq / hkv)`.

    The cached run and the new one are joined as scores, which are small, and never as keys: that would copy the cache.
    """
    batch, count, heads, size = query.shape
    shared = seen[0][0].shape[2]
    # Tokens and the heads of a group form ONE axis: XLA:CPU runs this batched product twice as fast as with two.
    grouped = query.reshape(batch, count, shared, -1, size).transpose(0, 2, 1, 3, 4).reshape(batch, shared, -1, size)
    grouped = grouped * size**-0.5
    scores = jnp.concatenate(
        [jnp.einsum("bhxd,bshd->bhxs", grouped, keys, preferred_element_type=jnp.float32) for keys, _ in seen], -1
    )
    by_token = scores.reshape(batch, shared, count, -1, scores.shape[-1])
    by_token = jnp.where(visible[:, None, :, None, :], by_token, _MASKED)
    weights = jax.nn.softmax(by_token, -1).reshape(scores.shape)
    splits = np.cumsum([keys.shape[1] for keys, _ in seen])[:-1]
    mixed = sum(
        jnp.einsum("bhxs,bshd->bhxd", part.astype(values.dtype), values)
        for part, (_, values) in zip(jnp.split(weights, splits, -1), seen, strict=True)
    )
    return mixed.reshape(batch, shared, count, -1, size).transpose(0, 2, 1, 3, 4).reshape(batch, count, heads, size)


def _rotation(config: Config, positions: Int[Array, "b t"]) -> tuple[Float[Array, "b t 1 half"], ...]:
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if config.rope_factors is not None:
        frequencies = frequencies / np.asarray(config.rope_factors)
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def _visible(
    slots: Int[Array, "b t"], mask: Bool[Array, "b t s"] | None, cache: Cache | None
) -> Bool[Array, "b t all"]:
    """What each token sees among the S cached slots followed by the T new tokens, as `attend` lays them out."""
    batch, count = slots.shape
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((count, count), bool)), (batch, count, count))
    if cache is None:
        return causal if mask is None else mask
    size = cache.keys.shape[2]
    old = jnp.broadcast_to(jnp.arange(size) < cache.length[:, None, None], (batch, count, size))
    if mask is None:
        return jnp.concatenate([old, causal], -1)
    columns = jnp.broadcast_to(slots[:, None, :], (batch, count, count))
    new = jnp.take_along_axis(mask, columns, -1, mode="fill", fill_value=False)
    return jnp.concatenate([old & mask, new], -1)


def _append(cache: Cache, new: tuple[jax.Array, jax.Array], slots: Int[Array, "b t"]) -> Cache:
    """All layers' new keys and values written at once: in place when the cache is donated."""
    rows = jnp.arange(slots.shape[0])[:, None]
    keys, values = (
        old.at[:, rows, slots].set(fresh, mode="drop")
        for old, fresh in zip((cache.keys, cache.values), new, strict=True)
    )
    return Cache(keys, values, cache.length + slots.shape[1])


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: DTypeLike) -> nnx.Param:
    return nnx.Param(jax.nn.initializers.normal(0.02)(rngs.params(), shape, dtype))


def _check(tokens, positions, mask, cache) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or 0 in tokens.shape:
        raise ValueError(f"tokens: expected integers of shape [B, T], got {tokens.dtype} {list(tokens.shape)}")
    if positions is not None and positions.shape != tokens.shape:
        raise ValueError(f"positions: expected shape {list(tokens.shape)}, got {list(positions.shape)}")
    size = tokens.shape[1] if cache is None else cache.keys.shape[2]
    if cache is not None and cache.length.shape != tokens.shape[:1]:
        raise ValueError(f"cache: expected {tokens.shape[0]} rows, got {cache.length.shape[0]}")
    if tokens.shape[1] > size:
        raise ValueError(f"cache: expected at least {tokens.shape[1]} slots for the new tokens, got {size}")
    if mask is not None and (mask.shape != (*tokens.shape, size) or mask.dtype != jnp.bool_):
        expected = [*tokens.shape, size]
        raise ValueError(f"mask: expected bool of shape {expected}, got {mask.dtype} {list(mask.shape)}")
