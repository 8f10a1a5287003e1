"""The decoder: one block for all families, its weights stacked on a leading axis and scanned.

Matrices are `[in, out]`: on XLA:CPU, products with a few tokens then run a fifth faster than with
the `[out, in]` of checkpoints, and products with one token as fast. So is the output head, and with
it the embedding, whose columns are the tokens. The cache is a plain pytree, separate from the
model.

Attention reads the filled part of the cache, up to the next of a few sizes: the time of a call
depends on the text, not on the size of the cache.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gls_jax.models.config import Config
from gls_jax.models.layers import (
    Attention,
    FeedForward,
    KeysValues,
    RMSNorm,
    Rotation,
    normal,
    rms_normalised,
    soft_cap,
)
from gls_jax.typing import Index

__all__ = ["Block", "Cache", "Transformer", "init_cache"]

# The fewest slots that attention covers: fewer would hardly take less time.
_LEAST_ATTENDED = 256


class Cache(NamedTuple):
    """Keys and values of earlier tokens, as :class:`gls_jax.decoding.LanguageModel` requires.

    Attributes:
        keys: `[L, B, Hkv, D, S]`, layers first; rotated.
        values: `[L, B, Hkv, S, D]`.
        positions: `i32[1, B, S]`, position of the token in each slot. Nodes of a draft tree may
            share a position, but each has a separate slot.
        length: `i32[B]`, filled slots of each row. Lower it to discard the newest tokens: contents
            of slots from `length` on do not matter as long as they are finite.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    length: jax.Array

    @property
    def slot_axes(self) -> dict[str, int]:
        """The axis of the cache slots, where it is not 2."""
        return {"keys": 4, "values": 3}


class Transformer(nnx.Module):
    """Decoder of all families: RMSNorm, RoPE, grouped-query attention, gated feed-forward.

    `Config` says what else a family has: biases, norms of queries and keys, norms after each part,
    soft-caps, and local layers with a sliding window and another rotary base. A window
    limits positions, not slots; the cache keeps all tokens.

    Under `jax.jit` use it as plain trees: `graph, params = nnx.split(model)` outside,
    `nnx.merge(graph, params)(...)` inside.

    Args:
        config: sizes and constants.
        dtype: type of weights, activations and cache. Norms, softmax and logits are always float32.
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
    ((1, 3, 32), (2, 1, 1, 4, 8), Array([3], dtype=int32))
    """

    config: Config
    embedding: nnx.Param[Array]
    blocks: Block
    norm: RMSNorm
    head: nnx.Param[Array]

    def __init__(self, config: Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = normal(rngs, (config.hidden_size, config.vocab_size), dtype)
        # One call makes all blocks: every parameter has the layers as its first axis.
        layer_rngs = nnx.split_rngs(splits=config.num_layers)
        make_block = nnx.vmap(lambda rngs: Block(config, dtype=dtype, rngs=rngs))
        self.blocks = layer_rngs(make_block)(rngs)
        self.norm = RMSNorm(config.hidden_size, config, dtype=dtype)
        if not config.tie_embeddings:
            self.head = normal(rngs, (config.hidden_size, config.vocab_size), dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits of the next token after each of `tokens`.

        With a cache, the T tokens take cache slots `length .. length + T - 1` of their row, and
        attention covers all S slots under the mask. Tokens beyond the S slots are not stored
        (`length` then exceeds S).

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
        hidden, _, cache = self.hidden(tokens, positions, mask, cache)
        return self.logits(hidden), cache

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
        feature_layers: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array, Cache | None]:
        """The residual stream after each of `tokens`, without the output head.

        Args:
            tokens, positions, mask, cache: of `__call__`.
            feature_layers: indices of the layers whose outputs are the features, static.

        Returns:
            `[B, T, M]`, the output of the last layer, for `logits`; the outputs of the feature
            layers side by side, `[B, T, F M]`, each divided by its root mean square; and the cache.
        """
        tokens = jnp.asarray(tokens)
        positions = None if positions is None else jnp.asarray(positions)
        mask = None if mask is None else jnp.asarray(mask)
        _check_shapes(tokens, positions, mask, cache)
        config = self.config
        # The next free cache slots. Slots and positions differ only for nodes of a draft tree.
        start = jnp.zeros(tokens.shape[:1], jnp.int32) if cache is None else cache.length
        slots = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        if positions is None:
            positions = slots
        # NaN for unknown tokens: JAX would otherwise clamp the index and continue.
        x = self.embedding[...].T.at[tokens].get(mode="fill", fill_value=jnp.nan)
        if config.scale_embeddings:
            # Rounded to the activations' type first, as in Gemma's own code.
            x = x * jnp.asarray(config.hidden_size**0.5, x.dtype)

        def run(num_slots: int):
            return self._run_layers(x, positions, slots, mask, cache, num_slots, feature_layers)

        if cache is None:
            x, features, _ = run(0)
            return x, features, None
        # Attention covers the smallest size that holds the filled slots of every row.
        sizes = _attended_sizes(cache.keys.shape[-1])
        index = jnp.sum(jnp.asarray(sizes[:-1], jnp.int32) < jnp.max(cache.length))
        x, features, new = jax.lax.switch(index, [partial(run, size) for size in sizes])
        return x, features, _append(cache, new, positions, slots)

    def logits(self, hidden: Float[Array, "b t m"]) -> Float[Array, "b t v"]:
        """The output head: logits `f32[B, T, V]` from the output of the last layer."""
        head = self.embedding if self.config.tie_embeddings else self.head
        logits = jnp.einsum(
            "btm,mv->btv", self.norm(hidden), head[...], preferred_element_type=jnp.float32
        )
        return soft_cap(logits, self.config.logit_softcap)

    def _run_layers(
        self,
        x: Float[Array, "b t m"],
        positions: Int[Array, "b t"],
        slots: Int[Array, "b t"],
        mask: Bool[Array, "b t s"] | None,
        cache: Cache | None,
        num_slots: int,
        feature_layers: tuple[int, ...],
    ):
        """All layers, whose attention covers the first `num_slots` slots of the cache.

        Returns:
            The last layer's output, the features, and the new keys and values of all layers.
        """
        config = self.config
        # Rotations and masks of the two kinds of layers are computed once, outside the scan, where
        # every layer selects those of its kind.
        visible = _visible(slots, mask, cache, num_slots)
        tables = _layer_tables(config, positions, visible, cache, num_slots)
        is_local = jnp.asarray(config.local_layers or (False,) * config.num_layers, jnp.int32)
        block_graph, block_weights = nnx.split(self.blocks)

        def run_layer(x, layer):
            weights, layer_kind, index = layer
            rotation, visible = jax.tree.map(lambda table: table[layer_kind], tables)
            past = None if cache is None else _slots_of_layer(cache, index, num_slots)
            x, new = nnx.merge(block_graph, weights)(x, rotation, visible, past)
            return x, (new, x if feature_layers else None)

        # The layers only read the cache. They return new keys and values, which are written once
        # for all layers after the scan.
        layers = (block_weights, is_local, jnp.arange(config.num_layers))
        x, (new, outputs) = jax.lax.scan(run_layer, x, layers)
        features = [rms_normalised(outputs[layer], config.norm_eps) for layer in feature_layers]
        return x, jnp.concatenate(features, -1) if features else x[..., :0], new

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
        rotation: Rotation,
        visible: Bool[Array, "b t all"],
        past: KeysValues | None,
    ) -> tuple[Float[Array, "b t m"], KeysValues | None]:
        """Residual stream `[B, T, M]` and, with a `past`, the layer's T new keys and values."""
        attended, new = self.attention(self.attention_norm(x), rotation, visible, past)
        if self.post_norms:
            attended = self.attention_post_norm(attended)
        x = x + attended
        transformed = self.feed_forward(self.feed_forward_norm(x))
        if self.post_norms:
            transformed = self.feed_forward_post_norm(transformed)
        return x + transformed, new


def init_cache(config: Config, dtype: DTypeLike, batch: int, length: int) -> Cache:
    """Empty cache of `length` slots for each of `batch` rows."""
    heads = (config.num_layers, batch, config.num_kv_heads)
    return Cache(
        keys=jnp.zeros((*heads, config.head_dim, length), dtype),
        values=jnp.zeros((*heads, length, config.head_dim), dtype),
        positions=jnp.zeros((1, batch, length), jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
    )


def _layer_tables(
    config: Config,
    positions: Int[Array, "b t"],
    visible: Bool[Array, "b t all"],
    cache: Cache | None,
    num_slots: int,
):
    """Rotation `(cos, sin)` and mask of each kind of layer, stacked: global, then local if any.

    The index into the stack is the layer's own entry of `Config.local_layers`.
    """
    rotations = [_rotation(config, config.rope_theta, config.rope_factors, positions)]
    masks = [visible]
    if config.local_layers and config.window:
        local_rotation = rotations[0]
        if config.local_rope_theta is not None:
            # Scaling is for the long range of global layers only.
            local_rotation = _rotation(config, config.local_rope_theta, None, positions)
        rotations.append(local_rotation)
        # A window compares positions, not slots: nodes of a tree at one depth are equally far away.
        key_positions = positions
        if cache is not None:
            key_positions = jnp.concatenate([cache.positions[0, :, :num_slots], positions], 1)
        distances = positions[:, :, None] - key_positions[:, None, :]
        masks.append(visible & (distances < config.window))
    return jax.tree.map(lambda *table: jnp.stack(table), *rotations), jnp.stack(masks)


def _rotation(
    config: Config, theta: float, factors: tuple[float, ...] | None, positions: Int[Array, "b t"]
) -> Rotation:
    """Cosine and sine of every position's angles, with an axis for the heads."""
    # Constants, computed in NumPy's float64 and rounded once.
    frequencies = theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if factors is not None:
        frequencies = frequencies / np.asarray(factors)
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def _visible(
    slots: Int[Array, "b t"],
    mask: Bool[Array, "b t s"] | None,
    cache: Cache | None,
    num_slots: int,
) -> Bool[Array, "b t all"]:
    """Whether each token sees each of the first cached slots followed by the T new tokens."""
    batch, num_tokens = slots.shape
    square = (batch, num_tokens, num_tokens)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones(square[1:], bool)), square)
    if cache is None:
        return causal if mask is None else mask
    is_filled = jnp.arange(num_slots) < cache.length[:, None, None]
    sees_old = jnp.broadcast_to(is_filled, (batch, num_tokens, num_slots))
    if mask is None:
        return jnp.concatenate([sees_old, causal], -1)
    # The mask is indexed by cache slot. Attention reads the new tokens from a separate segment, not
    # yet from the cache, so their columns are taken from the slots that they will have.
    columns = jnp.broadcast_to(slots[:, None, :], square)
    sees_new = jnp.take_along_axis(mask, columns, -1, mode="fill", fill_value=False)
    return jnp.concatenate([sees_old & mask[..., :num_slots], sees_new], -1)


def _attended_sizes(num_slots: int) -> list[int]:
    """The numbers of slots that attention may cover: powers of two, and all."""
    sizes = []
    size = _LEAST_ATTENDED
    while size < num_slots:
        sizes.append(size)
        size *= 2
    return [*sizes, num_slots]


def _slots_of_layer(cache: Cache, layer: Index, num_slots: int) -> KeysValues:
    """Keys and values of one layer in the first slots."""
    # One slice: of a whole layer first, all its slots would be copied.
    _, batch, num_heads, head_dim, _ = cache.keys.shape
    start = (layer, 0, 0, 0, 0)
    keys = jax.lax.dynamic_slice(cache.keys, start, (1, batch, num_heads, head_dim, num_slots))
    values = jax.lax.dynamic_slice(cache.values, start, (1, batch, num_heads, num_slots, head_dim))
    return keys[0], values[0]


def _append(
    cache: Cache,
    new: tuple[jax.Array, jax.Array],
    positions: Int[Array, "b t"],
    slots: Int[Array, "b t"],
) -> Cache:
    """Write all layers' new keys and values into their slots.

    One write for all layers happens in place if the cache is donated or carried by a loop.
    """
    rows = jnp.arange(slots.shape[0])[:, None]
    new_keys, new_values = new
    new_positions = positions[None].astype(jnp.int32)
    # Tokens beyond the last slot are dropped.
    return Cache(
        # The indexed axes come first in what is written: `[B, T, L, Hkv, D]`.
        keys=cache.keys.at[:, rows, :, :, slots].set(
            jnp.moveaxis(new_keys, (1, 4), (0, 1)), mode="drop"
        ),
        values=cache.values.at[:, rows, :, slots].set(
            jnp.moveaxis(new_values, (1, 3), (0, 1)), mode="drop"
        ),
        positions=cache.positions.at[:, rows, slots].set(new_positions, mode="drop"),
        length=cache.length + slots.shape[1],
    )


def _check_shapes(tokens, positions, mask, cache) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or 0 in tokens.shape:
        raise ValueError(
            f"tokens: expected integers of shape [B, T], got {tokens.dtype} {list(tokens.shape)}"
        )
    if positions is not None and positions.shape != tokens.shape:
        raise ValueError(
            f"positions: expected shape {list(tokens.shape)}, got {list(positions.shape)}"
        )
    num_rows, num_tokens = tokens.shape
    num_slots = num_tokens if cache is None else cache.keys.shape[-1]
    if cache is not None and cache.length.shape != (num_rows,):
        raise ValueError(f"cache: expected {num_rows} rows, got {cache.length.shape[0]}")
    if num_tokens > num_slots:
        raise ValueError(
            f"cache: expected at least {num_tokens} slots for the new tokens, got {num_slots}"
        )
    mask_shape = (num_rows, num_tokens, num_slots)
    if mask is not None and (mask.shape != mask_shape or mask.dtype != jnp.bool_):
        raise ValueError(
            f"mask: expected bool of shape {list(mask_shape)}, got {mask.dtype} {list(mask.shape)}"
        )
