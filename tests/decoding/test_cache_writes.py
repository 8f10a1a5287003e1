"""The decode loop writes its caches in place: a round must not copy what the rounds before it have written."""

import re
from functools import partial

import jax
import numpy as np
from flax import nnx

from gls_jax import decoding, models, races
from gls_jax.decoding import engine, preparation

LAYERS, CACHE_SLOTS = 16, 4096
# Two drafts of one chain are the hard case: there is no loop between a write and the next read. jaxlib 0.10 copies.
DRAFT_LENGTH = 3 if jax.__version_info__ < (0, 11) else 2


def test_no_copy_of_a_cache_in_the_loop():
    """According to the optimised program and its memory analysis: only a layer's part is copied, for its attention."""
    shapes = {
        "vocab_size": 8,
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_heads": 2,
        "num_kv_heads": 2,
    }
    model = models.Transformer(models.Config(**shapes, num_layers=LAYERS), rngs=nnx.Rngs(0))
    target = drafter = models.language_model(model)
    options = decoding.DecodeOptions(draft_length=DRAFT_LENGTH, max_new_tokens=CACHE_SLOTS)
    config, requests, text, *_ = preparation.prepare(
        races.new_key(0), target, drafter, [[1]], None, options
    )
    state = jax.eval_shape(partial(engine.prefill, config), requests, text)
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
