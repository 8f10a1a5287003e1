"""Model adapter of a drafter that observes its target."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from gls_jax.decoding.cache import with_length
from gls_jax.decoding.model import LanguageModel
from gls_jax.models.drafter.network import (
    DrafterCache,
    DrafterConfig,
    DrafterNetwork,
    init_drafter_cache,
)

__all__ = ["drafter_model"]


def drafter_model(
    network: DrafterNetwork, tokens: Array, vocabulary: str | None = None
) -> LanguageModel:
    """The drafter as `gls_jax.decoding` takes it; the weights are shared, not copied.

    Args:
        network: the network.
        tokens: `i32[R]`, the tokens of its output head, increasing.
        vocabulary: hash of the target's tokenizer, None if unknown.
    """
    graph, params = nnx.split(network)
    config = network.config
    return LanguageModel(
        params=params,
        apply=_Apply(graph),
        init_cache=_InitCache(config, network.join.weight[...].dtype),
        vocab_size=config.layers.vocab_size,
        keep=_keep,
        vocabulary=vocabulary,
        hidden=_Hidden(graph),
        head=_Head(graph),
        observe=_Observe(graph),
        observed_layers=config.observed_layers,
        tokens=tokens,
    )


# As frozen dataclasses these are equal for drafters of one architecture, which then share compiled
# programs.
@dataclasses.dataclass(frozen=True)
class _Hidden:
    graph: Any

    def __call__(self, params, tokens, positions, mask, cache: DrafterCache, layers=()):
        del layers  # a drafter has no features itself
        states, cache = nnx.merge(self.graph, params).read(tokens, positions, mask, cache)
        return states, states[..., :0], cache


@dataclasses.dataclass(frozen=True)
class _Head:
    graph: Any

    def __call__(self, params, hidden) -> jax.Array:
        return nnx.merge(self.graph, params).logits(hidden)


@dataclasses.dataclass(frozen=True)
class _Apply:
    graph: Any

    def __call__(self, params, tokens, positions, mask, cache):
        hidden, _, cache = _Hidden(self.graph)(params, tokens, positions, mask, cache)
        return _Head(self.graph)(params, hidden), cache


@dataclasses.dataclass(frozen=True)
class _Observe:
    graph: Any

    def __call__(self, params, cache, features, start, end) -> DrafterCache:
        return nnx.merge(self.graph, params).observe(cache, features, start, end)


@dataclasses.dataclass(frozen=True)
class _InitCache:
    config: DrafterConfig
    dtype: Any

    def __call__(self, batch: int, length: int) -> DrafterCache:
        return init_drafter_cache(self.config, self.dtype, batch, length)


def _keep(cache: DrafterCache, cache_slots, start, count) -> DrafterCache:
    """The cache without the drafts: what is accepted is read again, with the target's features."""
    del cache_slots, count
    return with_length(cache, start)
