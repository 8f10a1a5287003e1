"""The decoder: one block for all families, its weights stacked on a leading axis and scanned.

Weights lie as `[in, out]`: on XLA:CPU products with a few tokens then run a fifth faster than with
the `[out, in]` of checkpoints, and with one token as fast. The cache is a plain pytree beside the
model, never inside it.
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
from gls_jax.models.layers import Attention, FeedForward, KeysValues, RMSNorm, normal, soft_cap


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far: the protocol of
    :class:`gls_jax.decoding.LanguageModel`.

    Attributes:
        keys: `[L, B, S, Hkv, D]`, layers first; rotated.
        values: `[L, B, S, Hkv, D]`.
        positions: `i32[1, B, S]`, of the tokens in the slots: drafts of a tree share positions,
            never slots.
        length: `i32[B]`, slots filled in each row. Lower it to forget the newest tokens: what lies
            in slots from `length` on does not matter as long as it is finite.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    length: jax.Array


class Transformer(nnx.Module):
    """Decoder of all families: RMSNorm, RoPE (half-split), grouped-query attention, gated
    feed-forward.

    What else a family has (biases, norms of queries and keys, norms behind each part, soft-caps,
    local layers with a sliding window and a rotary base of their own) is in its `Config`. Windows
    compare positions; the cache keeps all.

    Under `jax.jit` use it as plain trees: `graph, params = nnx.split(model)` outside,
    `nnx.merge(graph, params)(...)` inside.

    Args:
        config: sizes and constants.
        dtype: of weights, activations and cache. Norms, softmax and logits are float32 whatever it
            is.
        rngs: source of the random initial weights.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gls_jax.models import Config, Transformer
    >>> config = Config(
    ...     vocab_size=32,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     num_kv_heads=1,
    ... )
    >>> model = Transformer(config, rngs=nnx.Rngs(0))
    >>> logits, cache = model(jnp.array([[1, 2, 3]]), cache=model.init_cache(batch=1, length=8))
    >>> logits.shape, cache.keys.shape, cache.length
    ((1, 3, 32), (2, 1, 8, 1, 4), Array([3], dtype=int32))
    """

    config: Config
    embedding: nnx.Param[Array]
    blocks: Block
    norm: RMSNorm
    head: nnx.Param[Array]

    def __init__(self, config: Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = normal(rngs, (config.vocab_size, config.hidden_size), dtype)
        stacked = nnx.split_rngs(splits=config.num_layers)(
            nnx.vmap(lambda rngs: Block(config, dtype=dtype, rngs=rngs))
        )
        self.blocks = stacked(rngs)
        self.norm = RMSNorm(config.hidden_size, config, dtype=dtype)
        if not config.tie_embeddings:
            self.head = normal(rngs, (config.vocab_size, config.hidden_size), dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits of the next token after each of `tokens`.

        With a cache, the T tokens take slots `length .. length + T - 1` of their row and attention
        runs over all S slots under the mask. What does not fit into S slots is not stored (`length`
        then exceeds S).

        Args:
            tokens: `i32[B, T]`. An id outside the vocabulary makes its row NaN.
            positions: `i32[B, T]` for RoPE and windows; None counts on from `cache.length` (from 0
                without a cache).
            mask: `bool[B, T, S]`, True where a token may look (`S = T` without a cache). None is
                causal by slot.
            cache: earlier keys and values, or None.

        Returns:
            `f32[B, T, V]` logits, and the cache with the T tokens added (None without a cache).

        Raises:
            ValueError: shapes that do not fit together.
        """
        tokens = jnp.asarray(tokens)
        positions, mask = (None if x is None else jnp.asarray(x) for x in (positions, mask))
        _check(tokens, positions, mask, cache)
        config = self.config
        start = jnp.zeros(tokens.shape[:1], jnp.int32) if cache is None else cache.length
        slots = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = slots if positions is None else positions
        tables = _tables(config, positions, _visible(slots, mask, cache), cache)
        local = jnp.asarray(config.local_layers or (False,) * config.num_layers, jnp.int32)
        past = None if cache is None else (cache.keys, cache.values)
        graph, weights = nnx.split(self.blocks)

        def step(x, layer):
            weights, local, past = layer
            rotation, visible = jax.tree.map(lambda table: table[local], tables)
            return nnx.merge(graph, weights)(x, rotation, visible, past)

        x = self.embedding[...].at[tokens].get(mode="fill", fill_value=jnp.nan)
        if config.scale_embeddings:
            x = x * jnp.asarray(config.hidden_size**0.5, x.dtype)
        x, new = jax.lax.scan(step, x, (weights, local, past))
        head = self.embedding if config.tie_embeddings else self.head
        logits = jnp.einsum(
            "btm,vm->btv", self.norm(x), head[...], preferred_element_type=jnp.float32
        )
        return soft_cap(logits, config.logit_softcap), None if cache is None else _append(
            cache, new, positions, slots
        )

    def init_cache(self, batch: int, length: int) -> Cache:
        """Empty cache of `length` slots for each of `batch` rows, in the dtype of the weights."""
        return init_cache(self.config, self.embedding[...].dtype, batch, length)


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on the normalised stream and added back."""

    attention_norm: RMSNorm
    attention: Attention
    feed_forward_norm: RMSNorm
    feed_forward: FeedForward
    post_norms: bool
    attention_post_norm: RMSNorm
    feed_forward_post_norm: RMSNorm

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config, dtype=dtype)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.attention_post_norm = RMSNorm(config.hidden_size, config, dtype=dtype)
            self.feed_forward_post_norm = RMSNorm(config.hidden_size, config, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "b t m"],
        rotation: tuple[Float[Array, "b t 1 half"], Float[Array, "b t 1 half"]],
        visible: Bool[Array, "b t all"],
        past: KeysValues | None,
    ) -> tuple[Float[Array, "b t m"], KeysValues | None]:
        """Stream `[B, T, M]` and the layer's `past` to the stream and, with a past, the T new keys
        and values.
        """
        attended, new = self.attention(self.attention_norm(x), rotation, visible, past)
        x = x + (self.attention_post_norm(attended) if self.post_norms else attended)
        fed = self.feed_forward(self.feed_forward_norm(x))
        return x + (self.feed_forward_post_norm(fed) if self.post_norms else fed), new


def init_cache(config: Config, dtype: DTypeLike, batch: int, length: int) -> Cache:
    """Empty cache of `length` slots for each of `batch` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    positions, filled = jnp.zeros((1, batch, length), jnp.int32), jnp.zeros((batch,), jnp.int32)
    # Two buffers: one array used twice could not be donated.
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), positions, filled)


def _tables(
    config: Config,
    positions: Int[Array, "b t"],
    visible: Bool[Array, "b t all"],
    cache: Cache | None,
):
    """Rotation `(cos, sin)` and what is visible, each stacked: for global layers, then for local
    ones if there are any.

    One entry serves all layers of its kind: the scan over layers picks it by the layer's own index.
    """
    rotations = [_rotation(config, config.rope_theta, config.rope_factors, positions)]
    masks = [visible]
    if config.local_layers and config.window:
        theta = config.local_rope_theta
        rotations += [rotations[0] if theta is None else _rotation(config, theta, None, positions)]
        keys = positions if cache is None else jnp.concatenate([cache.positions[0], positions], 1)
        masks += [visible & (positions[:, :, None] - keys[:, None, :] < config.window)]
    return jax.tree.map(lambda *table: jnp.stack(table), *rotations), jnp.stack(masks)


def _rotation(
    config: Config, theta: float, factors: tuple[float, ...] | None, positions: Int[Array, "b t"]
) -> tuple[Float[Array, "b t 1 half"], ...]:
    frequencies = theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if factors is not None:
        frequencies = frequencies / np.asarray(factors)
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def _visible(
    slots: Int[Array, "b t"], mask: Bool[Array, "b t s"] | None, cache: Cache | None
) -> Bool[Array, "b t all"]:
    """What each token sees among the S cached slots followed by the T new tokens, as `attend` lays
    them out.
    """
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


def _append(
    cache: Cache,
    new: tuple[jax.Array, jax.Array],
    positions: Int[Array, "b t"],
    slots: Int[Array, "b t"],
) -> Cache:
    """All layers' new keys and values written at once: in place when the cache is donated or
    carried by a loop.
    """
    rows = jnp.arange(slots.shape[0])[:, None]
    keys, values, places = (
        old.at[:, rows, slots].set(fresh, mode="drop")
        for old, fresh in zip(cache[:3], (*new, positions[None].astype(jnp.int32)), strict=True)
    )
    return Cache(keys, values, places, cache.length + slots.shape[1])


def _check(tokens, positions, mask, cache) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or 0 in tokens.shape:
        raise ValueError(
            f"tokens: expected integers of shape [B, T], got {tokens.dtype} {list(tokens.shape)}"
        )
    if positions is not None and positions.shape != tokens.shape:
        raise ValueError(
            f"positions: expected shape {list(tokens.shape)}, got {list(positions.shape)}"
        )
    size = tokens.shape[1] if cache is None else cache.keys.shape[2]
    if cache is not None and cache.length.shape != tokens.shape[:1]:
        raise ValueError(f"cache: expected {tokens.shape[0]} rows, got {cache.length.shape[0]}")
    if tokens.shape[1] > size:
        raise ValueError(
            f"cache: expected at least {tokens.shape[1]} slots for the new tokens, got {size}"
        )
    if mask is not None and (mask.shape != (*tokens.shape, size) or mask.dtype != jnp.bool_):
        expected = [*tokens.shape, size]
        raise ValueError(
            f"mask: expected bool of shape {expected}, got {mask.dtype} {list(mask.shape)}"
        )
