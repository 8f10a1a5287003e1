"""A dump of two bigram models that takes a second."""

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import decoding, distributions
from gls_jax.distributions import Sampling

NUM_TOKENS, NUM_KEPT, NUM_POSITIONS = 12, 3, 50
SAMPLING = Sampling(temperature=0.8, draft_temperature=1.3, top_k=9)


def read_row(params, tokens):
    return params[tokens]


def logits(seed):
    return np.random.default_rng(seed).normal(size=(NUM_TOKENS, NUM_TOKENS)).astype(np.float32) * 2


TARGET = decoding.from_function(read_row, jnp.asarray(logits(0)), NUM_TOKENS)
DRAFTER = decoding.from_function(read_row, jnp.asarray(logits(1)), NUM_TOKENS)


def documents(first):
    return distributions.sampled_texts(
        jax.random.key(3), TARGET, [[1], [2, 5]], SAMPLING, length=9, batch=2, first=first
    )


def write(folder, sampling=SAMPLING, num_positions=NUM_POSITIONS, **options):
    defaults = {"context_length": 11, "num_kept": NUM_KEPT, "metadata": {"own_text": True}}
    return distributions.write(
        folder,
        TARGET,
        DRAFTER,
        documents,
        sampling,
        num_positions=num_positions,
        **defaults | options,
    )
