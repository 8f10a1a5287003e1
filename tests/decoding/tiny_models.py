"""Small random models and prompts for tests of the engine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax import decoding, models
from gls_jax.models import drafter

KEY = jax.random.key(3)
TOKENS = 61
CONFIG = models.Config(
    vocab_size=TOKENS,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
)
# Options and batch size where nothing else is needed: programs are compiled once.
CHAINS = dict(num_drafts=2, draft_length=3)
ROWS = 8


def transformer(seed):
    """A tiny decoder with a cache, whose distributions are neither flat nor point masses."""
    graph, params = nnx.split(models.Transformer(CONFIG, rngs=nnx.Rngs(seed)))
    sharper = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params)
    return models.language_model(nnx.merge(graph, sharper))


def observing_drafter(num_tokens=40):
    """A drafter with random weights that observes `transformer`, with a head of some of its tokens."""
    layers = dataclasses.replace(CONFIG, num_layers=1)
    config = drafter.DrafterConfig(layers=layers, observed_layers=(0, 2), num_tokens=num_tokens)
    graph, params = nnx.split(drafter.DrafterNetwork(config, rngs=nnx.Rngs(1)))
    sharper = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params)
    return drafter.drafter_model(nnx.merge(graph, sharper), jnp.arange(num_tokens))


def trigram(params, tokens):
    """Logits that depend on the last two tokens and the position: quick to compile."""
    before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    shifted = jnp.roll(params[1][before], 1, axis=-1)
    return params[0][tokens] + shifted + jnp.cos(jnp.arange(tokens.shape[1]))[:, None]


def trigram_model(seed, vocab_size=TOKENS):
    params = 2 * jax.random.normal(jax.random.key(seed), (2, vocab_size, vocab_size))
    return decoding.from_function(trigram, params, vocab_size)


def noisy(model, scale):
    """The model with noise of standard deviation `scale` added to its parameters."""
    keys = iter(jax.random.split(jax.random.key(9), len(jax.tree.leaves(model.params))))
    params = jax.tree.map(
        lambda x: x + scale * jax.random.normal(next(keys), x.shape), model.params
    )
    return dataclasses.replace(model, params=params)


def random_prompts(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(count):
        length = rng.integers(1, longest + 1)
        prompts.append(rng.integers(0, TOKENS, length).tolist())
    return prompts


def texts(generation):
    """The generated tokens as lists, without padding."""
    tokens, lengths = np.asarray(generation.tokens), np.asarray(generation.lengths)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
