"""Where training begins: the tokens of the output head, and weights taken from the target."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax import races
from gls_jax.models.drafter.network import DrafterConfig, DrafterNetwork
from gls_jax.models.drafter.text_features import TextFeatures
from gls_jax.models.layers import rms_normalised
from gls_jax.models.transformer import Transformer

__all__ = ["default_observed_layers", "first_network", "head_tokens"]

# Positions at which the mass of every token is measured, and how many at a time.
_POSITIONS = 16_384
_POSITIONS_AT_ONCE = 256


def default_observed_layers(num_layers: int) -> tuple[int, ...]:
    """The target's layers after a third, two thirds and all of its depth.

    >>> from gls_jax.models.drafter import default_observed_layers
    >>> default_observed_layers(30)
    (9, 19, 29)
    """
    return tuple(sorted({max(0, part * num_layers // 3 - 1) for part in (1, 2, 3)}))


def head_tokens(
    target: Transformer,
    texts: TextFeatures,
    training_texts: np.ndarray,
    held_out: np.ndarray,
    count: int,
) -> tuple[np.ndarray, float]:
    """The tokens to which the target gives most mass, and their share of it on held-out texts.

    Args:
        target: the target.
        texts: texts with features.
        training_texts: numbers of the texts in which mass is counted.
        held_out: numbers of the texts in which the share is measured.
        count: how many tokens, at most.

    Returns:
        `i32[R]`, increasing, and their share of the mass.
    """
    mass = _mean_distribution(target, texts, training_texts)
    likeliest = np.argsort(-mass, kind="stable")[: min(count, len(mass))]
    tokens = np.sort(likeliest).astype(np.int32)
    return tokens, float(_mean_distribution(target, texts, held_out)[tokens].sum())


def first_network(
    target: Transformer,
    observed_layers: Sequence[int],
    tokens: np.ndarray,
    num_layers: int,
    seed: int,
) -> DrafterNetwork:
    """A drafter with embedding, head, last norm and last layers of the target.

    The last of the observed layers becomes the state. Normed state and normed embedding of the
    token are added with equal weights. So the network begins as the target's last layers, run once
    more on what the target has made of the text and the new token.
    """
    target_config = target.config
    kept = range(target_config.num_layers - num_layers, target_config.num_layers)
    layers = target_config.keep(kept)
    config = DrafterConfig(layers, tuple(observed_layers), len(tokens))
    network = DrafterNetwork(config, rngs=nnx.Rngs(races.private_key(races.new_key(seed))))
    size = layers.hidden_size

    def as_float32(leaf):
        return jnp.asarray(leaf, jnp.float32)

    network.embedding[...] = as_float32(target.embedding[...])
    head = target.embedding if target_config.tie_embeddings else target.head
    network.head[...] = as_float32(head[...][tokens])
    network.norm.weight[...] = as_float32(target.norm.weight[...])
    for block, layer in zip(network.blocks, kept, strict=True):
        nnx.update(block, jax.tree.map(as_float32, nnx.state(target.blocks[layer])))
    identity = jnp.eye(size)
    num_others = (len(observed_layers) - 1) * size
    network.fuse.weight[...] = jnp.concatenate([jnp.zeros((size, num_others)), identity], 1)
    network.join.weight[...] = jnp.concatenate([identity / 2, identity], 1)
    return network


def _mean_distribution(target: Transformer, texts: TextFeatures, numbers: np.ndarray) -> np.ndarray:
    """The target's mean probability of every token over positions of some texts, `f64[V]`."""
    config = target.config
    rows = np.concatenate(
        [np.arange(texts.starts[number], texts.starts[number + 1]) for number in numbers]
    )
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:_POSITIONS])
    graph, params = nnx.split(target)

    @jax.jit
    def total(params, features):
        hidden = rms_normalised(features[:, -config.hidden_size :], config.norm_eps)
        # `logits` norms its input, which leaves a normed one as it is.
        logits = nnx.merge(graph, params).logits(hidden[None])[0]
        is_row = jnp.any(features != 0, axis=-1, keepdims=True)
        return jnp.sum(jnp.where(is_row, jax.nn.softmax(logits, axis=-1), 0), axis=0)

    mass = np.zeros(config.vocab_size)
    for start in range(0, len(rows), _POSITIONS_AT_ONCE):
        features = texts.features[rows[start : start + _POSITIONS_AT_ONCE]].astype(np.float32)
        # The last batch is filled up with zeros, so that all have one shape.
        missing = _POSITIONS_AT_ONCE - len(features)
        mass += np.asarray(total(params, jnp.asarray(np.pad(features, ((0, missing), (0, 0))))))
    return mass / len(rows)
