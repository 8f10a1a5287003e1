"""Model adapter: a loaded model as the pure functions that `gls_jax.decoding` calls."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array

from gls_jax.decoding.model import LanguageModel
from gls_jax.models import sharding
from gls_jax.models.config import Config
from gls_jax.models.layer_stack import Cache, init_cache
from gls_jax.models.transformer import Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Apply", "Head", "Hidden", "InitCache", "language_model"]


# These are static arguments of compiled functions. As frozen dataclasses they are equal for models
# of one architecture, so a second model of it reuses the compiled program.
@dataclasses.dataclass(frozen=True)
class _Function:
    """A pure function of the weights.

    Attributes:
        config: of the model.
        mesh: where the weights lie, None for one device: requests are split over its axis `data`.
    """

    config: Config
    mesh: Mesh | None = None

    def model(self, params: Any) -> Transformer:
        """The model with these weights."""
        return nnx.merge(_graph(self.config), params)


@lru_cache
def _graph(config: Config) -> Any:
    """A model of this configuration without its weights.

    The functions do not hold it: it is large, and compared in each call of a compiled function.
    """
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


class Hidden(_Function):
    """The layers without the output head, see :class:`gls_jax.decoding.LanguageModel`."""

    def __call__(
        self,
        params: Any,
        tokens: ArrayLike,
        positions: Array | None,
        mask: Array | None,
        cache: Cache | None,
        layers: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array, Cache | None]:
        """`Transformer.hidden` with these weights."""
        tokens = sharding.constrain(jnp.asarray(tokens), P("data", None), self.mesh)
        hidden, features, cache = self.model(params).hidden(tokens, positions, mask, cache, layers)
        if cache is not None:
            cache = sharding.constrain_cache(cache, self.mesh)
        return hidden, features, cache


class Head(_Function):
    """The output head."""

    def __call__(self, params: Any, hidden: Array) -> jax.Array:
        """`f32[B, C, V]` logits."""
        logits = self.model(params).logits(hidden)
        # Each device has whole rows of logits: samples then do not depend on the mesh.
        return sharding.constrain(logits, P("data", None, None), self.mesh)


class Apply(_Function):
    """The whole model."""

    def __call__(
        self,
        params: Any,
        tokens: ArrayLike,
        positions: Array | None,
        mask: Array | None,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache | None]:
        """`f32[B, T, V]` logits and the cache: `Transformer` with these weights."""
        hidden, _, cache = Hidden(self.config, self.mesh)(params, tokens, positions, mask, cache)
        return Head(self.config, self.mesh)(params, hidden), cache


@dataclasses.dataclass(frozen=True)
class InitCache:
    """Empty caches for a model: `Transformer.init_cache` without the weights."""

    config: Config
    dtype: Any
    mesh: Mesh | None = None

    def __call__(self, batch: int, length: int) -> Cache:
        """Empty cache of `length` slots for each of `batch` rows."""
        cache = init_cache(self.config, self.dtype, batch, length)
        return sharding.constrain_cache(cache, self.mesh)


def language_model(model: Transformer, tokenizer: Tokenizer | None = None) -> LanguageModel:
    """Model adapter for `gls_jax.decoding`; the weights are shared, not copied.

    Args:
        model: a loaded or random model.
        tokenizer: its tokenizer, if known; decoding then refuses a drafter with another vocabulary.

    >>> from flax import nnx
    >>> from gls_jax.models import Config, Transformer, decoding_adapter
    >>> config = Config(
    ...     vocab_size=32,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     num_kv_heads=1,
    ... )
    >>> first = decoding_adapter.language_model(Transformer(config, rngs=nnx.Rngs(0)))
    >>> second = decoding_adapter.language_model(Transformer(config, rngs=nnx.Rngs(1)))
    >>> first.vocab_size, first.apply == second.apply, hash(first.apply) == hash(second.apply)
    (32, True, True)
    """
    config = model.config
    embedding = model.embedding[...]
    mesh = sharding.mesh_of(embedding)
    return LanguageModel(
        params=nnx.state(model),
        apply=Apply(config, mesh),
        init_cache=InitCache(config, embedding.dtype, mesh),
        vocab_size=config.vocab_size,
        hidden=Hidden(config, mesh),
        head=Head(config, mesh),
        vocabulary=None if tokenizer is None else _vocabulary_hash(tokenizer),
    )


def _vocabulary_hash(tokenizer: Tokenizer) -> str:
    token_ids = tokenizer.get_vocab(with_added_tokens=True)
    text = json.dumps(sorted(token_ids.items()))
    return hashlib.sha256(text.encode()).hexdigest()
