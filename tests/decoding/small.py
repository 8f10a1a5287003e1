"""Small language models whose texts tests compare, and prompts for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax import decoding, models

KEY = jax.random.key(3)
TOKENS = 61
CONFIG = models.Config(
    vocab_size=TOKENS, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8
)


def transformer(seed):
    """A tiny decoder with a cache, whose laws are neither flat nor points."""
    graph, params = nnx.split(models.Transformer(CONFIG, rngs=nnx.Rngs(seed)))
    return models.language_model(nnx.merge(graph, jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params)))


def trigram(params, tokens):
    """Logits that depend on the last two tokens and the position: quick to compile."""
    before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return params[0][tokens] + jnp.roll(params[1][before], 1, axis=-1) + jnp.cos(jnp.arange(tokens.shape[1]))[:, None]


def table(seed, size=TOKENS):
    params = 2 * jax.random.normal(jax.random.key(seed), (2, size, size))
    return decoding.from_function(trigram, params, size)


def noisy(model, scale):
    keys = iter(jax.random.split(jax.random.key(9), len(jax.tree.leaves(model.params))))
    params = jax.tree.map(lambda x: x + scale * jax.random.normal(next(keys), x.shape), model.params)
    return dataclasses.replace(model, params=params)


def prompts_of(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 61, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def texts(generation):
    return [
        row[:length].tolist()
        for row, length in zip(np.asarray(generation.tokens), np.asarray(generation.lengths), strict=True)
    ]
