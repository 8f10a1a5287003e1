"""The decode loop writes its caches in place: a round must not copy what the rounds before it have written."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gls_jax import decoding, models, races
from gls_jax.decoding import engine, preparation
from gls_jax.decoding.choice import first_choice
from gls_jax.models import drafter

LAYERS, CACHE_SLOTS = 16, 4096
# Two drafts of one chain are the hard case: there is no loop between a write and the next read. jaxlib 0.10 copies.
DRAFT_LENGTH = 3 if jax.__version_info__ < (0, 11) else 2


SIZES = dict(vocab_size=8, hidden_size=32, intermediate_size=8, num_heads=2, num_kv_heads=2)


def model_itself(model):
    return models.language_model(model)


def observing(model):
    layers = models.Config(**SIZES, num_layers=1)
    config = drafter.DrafterConfig(layers, observed_layers=(3, LAYERS - 1), num_tokens=5)
    network = drafter.DrafterNetwork(config, rngs=nnx.Rngs(0))
    return drafter.drafter_model(network, jnp.arange(5))


def automatic(model):
    return decoding.auto(observing(model))


@pytest.mark.parametrize("make_drafter", [model_itself, observing, automatic])
def test_no_copy_of_a_cache_in_the_loop(make_drafter):
    """According to the optimised program and its memory analysis: only a layer's part is copied, for its attention."""
    model = models.Transformer(models.Config(**SIZES, num_layers=LAYERS), rngs=nnx.Rngs(0))
    target = models.language_model(model)
    options = decoding.DecodeOptions(draft_length=DRAFT_LENGTH, max_new_tokens=CACHE_SLOTS)
    config, requests, text, *_ = preparation.prepare(
        races.new_key(0), target, make_drafter(model), [[1]], None, options
    )
    state = jax.eval_shape(partial(engine.prefill, config), requests, text)
    if config.modes:
        choice = jax.eval_shape(lambda: first_choice(config.modes, (1.0,) * len(config.modes)))
        state = state._replace(choice=choice)
    keys = state.target_cache.keys
    assert keys.shape[0] == LAYERS and keys.shape[-1] > CACHE_SLOTS
    program = (
        jax.jit(lambda state: engine.run(config, requests, state, 9), donate_argnums=0)
        .lower(state)
        .compile()
    )
    assert program.memory_analysis().temp_size_in_bytes < keys.size * keys.dtype.itemsize / 2
    shapes_of_copies = re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", program.as_text())
    assert shapes_of_copies  # the pattern still finds something
    assert (
        max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes_of_copies)
        < keys.size
    )
