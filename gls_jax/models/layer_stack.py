"""The layers of a decoder, and a cache.

Attention reads the filled part of the cache, up to the next of a few sizes: the time of a call
depends on the text, not on the size of the cache. The cache is a plain pytree, separate from the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gls_jax import work_shape
from gls_jax.models.config import Config
from gls_jax.models.layers import (
    Attention,
    FeedForward,
    KeysValues,
    Projections,
    RMSNorm,
    Rotation,
    attend_with_past,
    rms_normalised,
)
from gls_jax.typing import Index

__all__ = ["Block", "Cache", "init_cache", "layer_tables", "new_blocks", "run_blocks"]

# The fewest slots that attention covers. With SmolLM2 and one request, 256 take 2 ms of a call of
# 28 ms, and each smaller size would be one more program.
_LEAST_ATTENDED = 256
# The fewest layers that are compiled as a loop. A call takes no longer with the loop, and compiles
# faster: for SmolLM2 on 4 tokens in 3 s, without the loop in 5 s. Only on a CPU, where a branch is
# cheap.
_LEAST_LOOP = 5


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


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on the normalised stream and added back."""

    attention_norm: RMSNorm
    attention: Attention
    feed_forward_norm: RMSNorm
    feed_forward: FeedForward
    softcap: float | None
    post_norms: bool
    attention_post_norm: RMSNorm
    feed_forward_post_norm: RMSNorm

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config, dtype=dtype)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.softcap = config.attention_softcap
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
        return _with_attention(self.project, self.finish, self.softcap, x, rotation, visible, past)

    def project(self, x: Float[Array, "b t m"], rotation: Rotation) -> Projections:
        """What the layer does before attention: its norm, and the projections."""
        return self.attention.project(self.attention_norm(x), rotation)

    def finish(
        self, x: Float[Array, "b t m"], mean_values: Float[Array, "b t heads"]
    ) -> Float[Array, "b t m"]:
        """What the layer does after attention; the residual stream after the layer."""
        attended = self.attention.output(mean_values)
        if self.post_norms:
            attended = self.attention_post_norm(attended)
        x = x + attended
        transformed = self.feed_forward(self.feed_forward_norm(x))
        if self.post_norms:
            transformed = self.feed_forward_post_norm(transformed)
        return x + transformed


def _with_attention(project, finish, softcap, x, rotation, visible, past):
    """One layer: `project`, attention, which has no weights, and `finish`."""
    mean_values, new = attend_with_past(project(x, rotation), visible, past, softcap=softcap)
    return finish(x, mean_values), new


def new_blocks(config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> list[Block]:
    """All layers with random weights."""
    return [Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]


def run_blocks(
    blocks: Sequence[Block],
    config: Config,
    x: Float[Array, "b t m"],
    positions: Int[Array, "b t"] | None,
    mask: Bool[Array, "b t s"] | None,
    cache: Cache | None,
    feature_layers: tuple[int, ...] = (),
) -> tuple[Float[Array, "b t m"], Float[Array, "b t w"], Cache | None]:
    """All layers on the residual stream of T tokens.

    Args:
        blocks: of :func:`new_blocks`.
        config: of the model.
        x: the stream before the first layer.
        positions, mask, cache: see :class:`gls_jax.models.Transformer`.
        feature_layers: indices of the layers whose outputs are the features, static.

    Returns:
        The output of the last layer, the outputs of the feature layers side by side, each divided
        by its root mean square, and the cache with the T tokens.
    """
    # The next free cache slots. Slots and positions differ only for nodes of a draft tree.
    start = jnp.zeros(x.shape[:1], jnp.int32) if cache is None else cache.length
    slots = start[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)
    if positions is None:
        positions = slots

    def run(num_slots: int):
        return _run(blocks, config, x, positions, slots, mask, cache, num_slots, feature_layers)

    if cache is None:
        x, features, _ = run(0)
        return x, features, None
    # Attention covers the smallest size that holds the filled slots of every row.
    sizes = _attended_sizes(cache.keys.shape[-1])
    index = jnp.sum(jnp.asarray(sizes[:-1], jnp.int32) < jnp.max(cache.length))
    x, features, new = jax.lax.switch(index, [partial(run, size) for size in sizes])
    return x, features, _append(cache, new, positions, slots)


def _run(
    blocks: Sequence[Block],
    config: Config,
    x: Float[Array, "b t m"],
    positions: Int[Array, "b t"],
    slots: Int[Array, "b t"],
    mask: Bool[Array, "b t s"] | None,
    cache: Cache | None,
    num_slots: int,
    feature_layers: tuple[int, ...],
):
    """All layers, with attention over the first `num_slots` slots of the cache.

    Returns:
        The last layer's output, the features, and the new keys and values of all layers.
    """
    # Rotations and masks of the two kinds of layers are computed once. Every layer selects those of
    # its kind.
    visible = _visible(slots, mask, cache, num_slots)
    key_positions = positions
    if cache is not None:
        key_positions = jnp.concatenate([cache.positions[0, :, :num_slots], positions], 1)
    tables = layer_tables(config, positions, key_positions, visible)
    is_local = config.local_layers or (False,) * config.num_layers

    def run_layer(run_block: Callable, layer: Index, kind: Index, x):
        rotation, visible = jax.tree.map(lambda table: table[kind], tables)
        past = None if cache is None else _slots_of_layer(cache, layer, num_slots)
        x, new = run_block(x, rotation, visible, past)
        return x, (new, x if feature_layers else None)

    # The layers only read the cache. They return new keys and values, which are written once for
    # all layers afterwards.
    if config.num_layers >= _LEAST_LOOP and not work_shape.current().is_wide:
        x, (new, outputs) = _in_a_loop(blocks, run_layer, x, is_local)
    else:
        of_layers = []
        for layer, block in enumerate(blocks):
            x, of_layer = run_layer(block, layer, int(is_local[layer]), x)
            of_layers.append(of_layer)
        new, outputs = jax.tree.map(lambda *values: jnp.stack(values), *of_layers)
    features = [rms_normalised(outputs[layer], config.norm_eps) for layer in feature_layers]
    return x, jnp.concatenate(features, -1) if features else x[..., :0], new


def _in_a_loop(blocks: Sequence[Block], run_layer, x, is_local: Sequence[bool]):
    """All layers in a loop over their numbers.

    Attention has no weights and is compiled once. The parts before and after it read weights, and
    are compiled once for each layer: each layer is a branch of a switch. Stacked weights would need
    no branches, but a slice of them is a copy, and product and copy together take a third more time
    than the product. The products of one part are in the same branch, so that XLA:CPU can run small
    ones at the same time.
    """

    def step(x, layer_and_kind):
        layer, kind = layer_and_kind
        project = partial(jax.lax.switch, layer, [block.project for block in blocks])
        finish = partial(jax.lax.switch, layer, [block.finish for block in blocks])
        run_block = partial(_with_attention, project, finish, blocks[0].softcap)
        return run_layer(run_block, layer, kind, x)

    kinds = jnp.asarray(is_local, jnp.int32)
    return jax.lax.scan(step, x, (jnp.arange(len(blocks)), kinds))


def init_cache(config: Config, dtype: DTypeLike, batch: int, length: int) -> Cache:
    """Empty cache of `length` slots for each of `batch` rows."""
    heads = (config.num_layers, batch, config.num_kv_heads)
    return Cache(
        keys=jnp.zeros((*heads, config.head_dim, length), dtype),
        values=jnp.zeros((*heads, length, config.head_dim), dtype),
        positions=jnp.zeros((1, batch, length), jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
    )


def layer_tables(
    config: Config,
    positions: Int[Array, "b t"],
    key_positions: Int[Array, "b all"],
    visible: Bool[Array, "b t all"],
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
