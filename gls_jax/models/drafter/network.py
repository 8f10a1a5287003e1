"""The network of a drafter that observes its target: a few layers over the target's features.

To draft the token after `x_t`, the drafter needs to know what the target makes of the text. It
takes the state after the token before, and the embedding of `x_t`:

    state_t = layers(join(embedding(x_t), state_{t-1})),    logits = head(state_t).

For tokens that the target has read, the state is made of the target's *features*, the outputs of
some of its layers. For drafted tokens it is the drafter's own. (EAGLE, Li et al. 2401.15077;
several layers as features: EAGLE-3, 2503.01840.)

Embedding and output head are the target's. The head has only the R tokens to which the target
gives most mass; all others have probability 0.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gls_jax.models.config import Config
from gls_jax.models.layer_stack import Block, Cache, init_cache, new_blocks, run_blocks
from gls_jax.models.layers import Linear, RMSNorm, matrix_product, normal, soft_cap

__all__ = ["DrafterCache", "DrafterConfig", "DrafterNetwork", "init_drafter_cache"]


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """Sizes of a drafter.

    Attributes:
        layers: of the drafter itself, as a model of its target's family.
        observed_layers: indices of the target's layers whose outputs are the features.
        num_tokens: `R`, tokens of the output head.
    """

    layers: Config
    observed_layers: tuple[int, ...]
    num_tokens: int


class DrafterCache(NamedTuple):
    """Keys, values and states of the text, as :class:`gls_jax.decoding.LanguageModel` requires.

    Attributes:
        keys, values, positions, length: of the drafter's layers, see
            :class:`gls_jax.models.Cache`.
        states: `[1, B, S, M]`, the state after the token in each slot.
        num_observed: `i32[B]`, in how many slots the state is made of the target's features.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    length: jax.Array
    states: jax.Array
    num_observed: jax.Array


class DrafterNetwork(nnx.Module):
    """The network.

    Args:
        config: sizes.
        dtype: type of weights and activations.
        rngs: source of the random initial weights.
    """

    config: DrafterConfig
    embedding: nnx.Param[Array]
    fuse: Linear
    token_norm: RMSNorm
    state_norm: RMSNorm
    join: Linear
    blocks: nnx.List[Block]
    norm: RMSNorm
    head: nnx.Param[Array]

    def __init__(
        self, config: DrafterConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        layers = config.layers
        size = layers.hidden_size
        self.embedding = normal(rngs, (layers.vocab_size, size), dtype)
        num_features = len(config.observed_layers) * size
        self.fuse = Linear(num_features, size, dtype=dtype, rngs=rngs)
        self.token_norm = RMSNorm(size, layers, dtype=dtype)
        self.state_norm = RMSNorm(size, layers, dtype=dtype)
        self.join = Linear(2 * size, size, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(new_blocks(layers, dtype=dtype, rngs=rngs))
        self.norm = RMSNorm(size, layers, dtype=dtype)
        self.head = normal(rngs, (config.num_tokens, size), dtype)

    def observed_states(self, features: Float[Array, "*b w"]) -> Float[Array, "*b m"]:
        """The states that the target's features make."""
        return self.fuse(features.astype(self.fuse.weight[...].dtype))

    def joined(
        self, tokens: Int[Array, "*b"], states: Float[Array, "*b m"]
    ) -> Float[Array, "*b m"]:
        """The input of the layers: each token, and the state before it."""
        # NaN for unknown tokens: JAX would otherwise clamp the index and continue.
        embedded = self.embedding[...].at[tokens].get(mode="fill", fill_value=jnp.nan)
        parts = [self.token_norm(embedded), self.state_norm(states)]
        return self.join(jnp.concatenate(parts, axis=-1))

    def logits(self, states: Float[Array, "*b m"]) -> Float[Array, "*b r"]:
        """Logits `f32[..., R]` of the tokens of the head."""
        return self.head_logits(self.norm(states))

    def head_logits(self, normed: Float[Array, "*b m"]) -> Float[Array, "*b r"]:
        """Logits of the tokens of the head from normed states, the drafter's or the target's."""
        logits = matrix_product(normed, self.head[...])
        return soft_cap(logits, self.config.layers.logit_softcap)

    def read(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"] | None,
        mask: Bool[Array, "b t s"] | None,
        cache: DrafterCache,
    ) -> tuple[Float[Array, "b t m"], DrafterCache]:
        """The states after T tokens of each row, and the cache with them.

        The state before a token is that in the slot of its parent: the last slot before its own
        that it sees. Tokens of one call do not see one another's new states.
        """
        num_slots = cache.states.shape[2]
        slots = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        if mask is None:
            parents = slots - 1
        else:
            all_slots = jnp.arange(num_slots, dtype=jnp.int32)
            is_before = mask & (all_slots < slots[..., None])
            parents = jnp.max(jnp.where(is_before, all_slots, -1), axis=-1)
        states = jnp.take_along_axis(
            cache.states[0], jnp.clip(parents, 0, num_slots - 1)[..., None], axis=1
        )
        # Nothing comes before the first token.
        states = jnp.where(parents[..., None] >= 0, states, 0)

        layer_cache = Cache(cache.keys, cache.values, cache.positions, cache.length)
        states, _, new_cache = run_blocks(
            self.blocks,
            self.config.layers,
            self.joined(tokens, states),
            positions,
            mask,
            layer_cache,
        )
        assert new_cache is not None  # one was given
        # Observed states are better than the drafter's own, and stay.
        rows = jnp.arange(tokens.shape[0])[:, None]
        is_own = slots >= cache.num_observed[:, None]
        new_states = cache.states.at[0, rows, jnp.where(is_own, slots, num_slots)].set(
            states, mode="drop"
        )
        return states, cache._replace(states=new_states, **new_cache._asdict())

    def observe(
        self,
        cache: DrafterCache,
        features: Float[Array, "b t w"],
        start: Int[Array, " b"],
        end: Int[Array, " b"],
    ) -> DrafterCache:
        """The cache with the states that features make, in the slots from `start` to `end`."""
        num_slots = cache.states.shape[2]
        rows = jnp.arange(features.shape[0])[:, None]
        slots = start[:, None] + jnp.arange(features.shape[1], dtype=jnp.int32)
        slots = jnp.where(slots < end[:, None], slots, num_slots)
        states = cache.states.at[0, rows, slots].set(self.observed_states(features), mode="drop")
        return cache._replace(states=states, num_observed=end)


def init_drafter_cache(
    config: DrafterConfig, dtype: DTypeLike, batch: int, length: int
) -> DrafterCache:
    """Empty cache of `length` slots for each of `batch` rows."""
    layers = init_cache(config.layers, dtype, batch, length)
    return DrafterCache(
        **layers._asdict(),
        states=jnp.zeros((1, batch, length, config.layers.hidden_size), dtype),
        num_observed=jnp.zeros(batch, jnp.int32),
    )
