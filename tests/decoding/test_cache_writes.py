"""The decode loop writes its caches in place: a round must not copy what all rounds before it have left."""

import re
from functools import partial

import jax
import numpy as np
from flax import nnx

from gls_jax import models, races
from gls_jax.decoding import engine, inputs

LAYERS, SLOTS = 16, 4096


def test_no_copy_of_a_cache_in_the_loop():
    """By the optimised program's own text and account of memory: in the loop every layer may copy its own keys only."""
    shapes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_heads": 2, "num_kv_heads": 2}
    config = models.Config(**shapes, num_layers=LAYERS)
    target = models.language_model(models.Transformer(config, rngs=nnx.Rngs(0)))
    plan, requests, text, _, _ = inputs.prepare(
        races.new_key(0), target, target, [[1]], draft_length=2, max_new_tokens=SLOTS, temperature=0.5
    )
    state = jax.eval_shape(partial(engine.prefill, plan), requests, text)
    keys = state.target_cache.keys
    assert keys.shape[0] == LAYERS and keys.shape[2] > SLOTS
    program = jax.jit(lambda state: engine.run(plan, requests, state, 9), donate_argnums=0).lower(state).compile()
    # Of four such arrays (keys and values of two models) none is held twice.
    print(program.memory_analysis().temp_size_in_bytes, keys.size * 4)
    assert program.memory_analysis().temp_size_in_bytes < keys.size * keys.dtype.itemsize
    copies = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|copy-start)\(", program.as_text())
    assert copies  # the pattern still finds something
    assert max(np.prod([int(size) for size in shape.split(",")]) for shape in copies) < keys.size
