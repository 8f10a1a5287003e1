"""The target's call in a round: by positions, by cache slots, and beside bare matrix products.

The peer has the same products and nothing else: no attention, no norms, no cache.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import Line, rounded_median, time_call, waiting
from gls_jax import models
from gls_jax.decoding.reading import read
from gls_jax.models.layers import matrix_product

_POSITIONS = (1, 2, 3, 4, 5, 8, 9, 17)
_FILLED = 256
_SLOTS = 512
_MANY_SLOTS = 8192


@cache
def _model() -> models.Checkpoint:
    return models.load("smollm2")


def by_positions(repeats: int) -> Line:
    """Milliseconds of a call on 1, 2, ... positions, in plain steps, and of the bare products."""
    calls = {num: _call(num, _SLOTS) for num in _POSITIONS}
    products = {num: _products(num) for num in _POSITIONS}
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats + 1):
        for name, functions in (("call", calls), ("products", products)):
            for num, function in functions.items():
                seconds = time_call(function)
                # The first turn compiles.
                if turn:
                    times.setdefault((name, num), []).append(1e3 * seconds)
    line: Line = {
        "benchmark": f"target call by positions, {_FILLED} of {_SLOTS} slots filled",
        "milliseconds": rounded_median(times["call", 1], 2),
        "products_milliseconds": rounded_median(times["products", 1], 2),
    }
    for num in _POSITIONS[1:]:
        for name in ("call", "products"):
            ratios = np.array(times[name, num]) / np.array(times[name, 1])
            label = "positions" if name == "call" else "products"
            line[f"{label}_{num}"] = rounded_median(ratios, 2)
    return line


def by_slots(repeats: int) -> Line:
    """A call with a cache of many slots against one with few; the text is the same."""
    few, many = _call(1, _SLOTS), _call(1, _MANY_SLOTS)
    few(), many()
    times = np.array([(time_call(few), time_call(many)) for _ in range(repeats)])
    return {
        "benchmark": f"target call, {_FILLED} tokens in {_MANY_SLOTS} slots against {_SLOTS}",
        "milliseconds": rounded_median(1e3 * times[:, 1], 2),
        "few_slots_milliseconds": rounded_median(1e3 * times[:, 0], 2),
        "ratio": rounded_median(times[:, 1] / times[:, 0], 2),
    }


def _call(num_positions: int, num_slots: int):
    """A call of the target that keeps its cache, as the decode loop makes it."""
    model = _model().language_model

    def step(model, tokens, positions, mask, cache):
        reading = read(model, tokens, positions, mask, cache)
        # The next call writes the same slots.
        return reading.logits, reading.cache._replace(length=cache.length)

    compiled = jax.jit(step, donate_argnums=4)
    length = jnp.full(1, _FILLED - 1, jnp.int32)
    state = [model.init_cache(1, num_slots)._replace(length=length)]
    tokens = jnp.ones((1, num_positions), jnp.int32)
    positions = _FILLED - 1 + jnp.arange(num_positions)[None]
    mask = jnp.arange(num_slots) <= positions[..., None]

    def call() -> None:
        logits, state[0] = compiled(model, tokens, positions, mask, state[0])
        jax.block_until_ready(logits)

    return call


def _products(num_rows: int):
    """The matrix products of a call, one after the other."""
    layers = [
        (
            block.attention.query.weight[...],
            block.attention.key.weight[...],
            block.attention.value.weight[...],
            block.attention.output.weight[...],
            block.feed_forward.gate.weight[...],
            block.feed_forward.up.weight[...],
            block.feed_forward.down.weight[...],
        )
        for block in _model().model.blocks
    ]
    head = _model().model.embedding[...]
    product = matrix_product

    @jax.jit
    def run(x, layers, head):
        for query, key, value, output, gate, up, down in layers:
            # All products must be needed.
            narrow = jnp.sum(product(x, key) + product(x, value), axis=-1, keepdims=True)
            x = x + product(product(x, query) + narrow, output)
            x = x + product(product(x, gate) * product(x, up), down)
        return product(x, head)

    x = jnp.full((num_rows, head.shape[1]), 1e-3)
    return waiting(run, x, layers, head)
