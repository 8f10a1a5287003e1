"""A loaded model as the bundle of pure functions that decoding takes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from gls_jax.models.transformer import Cache, Transformer, init_cache

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Apply:
    """The model as a pure function; equal for models of one architecture, so that neither compiles
    twice.

    Attributes:
        graph: the model without its weights.
        mesh: where the weights lie, None for one device: requests are split over its axis `data`.
    """

    graph: Any
    mesh: Mesh | None = None

    def __call__(
        self,
        params: Any,
        tokens: ArrayLike,
        positions: Array | None,
        mask: Array | None,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache | None]:
        """`f32[B, T, V]` logits and the cache: `Transformer` on these parameters."""
        tokens = sharding.constrain(jnp.asarray(tokens), P("data", None), self.mesh)
        logits, cache = nnx.merge(self.graph, params)(tokens, positions, mask, cache)
        # Whole rows of logits on each device: what samples from them does not depend on the mesh.
        logits = sharding.constrain(logits, P("data", None, None), self.mesh)
        return logits, None if cache is None else sharding.constrain_cache(cache, self.mesh)


@dataclasses.dataclass(frozen=True)
class InitCache:
    """Empty caches for a model: `Transformer.init_cache` without the weights."""

    config: Config
    dtype: Any
    mesh: Mesh | None = None

    def __call__(self, batch: int, length: int) -> Cache:
        """Empty cache of `length` slots for each of `batch` rows."""
        return sharding.constrain_cache(
            init_cache(self.config, self.dtype, batch, length), self.mesh
        )


def language_model(model: Transformer, tokenizer: Tokenizer | None = None) -> LanguageModel:
    """Bundle for `gls_jax.decoding`; the weights are shared, not copied.

    Args:
        model: a loaded or random model.
        tokenizer: its tokenizer: models whose vocabularies differ are then told apart.

    >>> from flax import nnx
    >>> from gls_jax.models import Config, Transformer, bundle
    >>> config = Config(
    ...     vocab_size=32,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     num_kv_heads=1,
    ... )
    >>> one, two = (
    ...     bundle.language_model(Transformer(config, rngs=nnx.Rngs(seed))) for seed in (0, 1)
    ... )
    >>> one.vocab_size, one.apply == two.apply, hash(one.apply) == hash(two.apply)
    (32, True, True)
    """
    graph, params = nnx.split(model)
    embedding = model.embedding[...]
    mesh = sharding.mesh_of(embedding)
    return LanguageModel(
        params,
        Apply(graph, mesh),
        InitCache(model.config, embedding.dtype, mesh),
        model.config.vocab_size,
        vocabulary=None if tokenizer is None else _fingerprint(tokenizer),
    )


def _fingerprint(tokenizer: Tokenizer) -> str:
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
