"""The decoder: embedding, one kind of layer for all families, and output head.

Matrices are `[out, in]`, as in checkpoints. Embedding and output head have a
row for each token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gls_jax.models.config import Config
from gls_jax.models.layer_stack import Block, Cache, init_cache, new_blocks, run_blocks
from gls_jax.models.layers import RMSNorm, matrix_product, normal, soft_cap

__all__ = ["Transformer"]


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
    blocks: nnx.List[Block]
    norm: RMSNorm
    head: nnx.Param[Array]

    def __init__(self, config: Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = normal(rngs, (config.vocab_size, config.hidden_size), dtype)
        self.blocks = nnx.List(new_blocks(config, dtype=dtype, rngs=rngs))
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
        # NaN for unknown tokens: JAX would otherwise clamp the index and continue.
        x = self.embedding[...].at[tokens].get(mode="fill", fill_value=jnp.nan)
        if config.scale_embeddings:
            # Rounded to the activations' type first, as in Gemma's own code.
            x = x * jnp.asarray(config.hidden_size**0.5, x.dtype)

        return run_blocks(self.blocks, config, x, positions, mask, cache, feature_layers)

    def logits(self, hidden: Float[Array, "b t m"]) -> Float[Array, "b t v"]:
        """The output head: logits `f32[B, T, V]` from the output of the last layer."""
        head = self.embedding if self.config.tie_embeddings else self.head
        logits = matrix_product(self.norm(hidden), head[...])
        return soft_cap(logits, self.config.logit_softcap)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Empty cache of `length` slots for each of `batch` rows, in the dtype of the weights."""
        return init_cache(self.config, self.embedding[...].dtype, batch, length)


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
