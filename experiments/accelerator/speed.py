"""The hot paths and decoding on the device, beside the count's prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.bench import hot_paths, program_count
from experiments.bench.hot_paths import HotPath
from experiments.bench.timing import Line, rounded_median, time_call, waiting
from gls_jax import decoding, models, races

__all__ = ["measure"]

_TURNS = 3
_TINY = models.Config(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
)


def measure(is_small: bool) -> Iterator[Line]:
    """One line for each program: the time of its first and of later calls, and predicted times."""
    for name, path in _programs(is_small).items():
        yield {"program": name} | _measured(path)
    for batch in (1, 4) if is_small else (1, 8, 64):
        yield _decoding(batch, is_small)


def _programs(is_small: bool) -> Mapping[str, HotPath]:
    if not is_small:
        return hot_paths.HOT_PATHS
    trials = partial(hot_paths.trials_program, "gls", num_pairs=4, num_trials=500)
    programs = {
        "trials by noise, N=10": partial(trials, "noise", num_categories=10),
        "trials by inversion, N=300": partial(trials, "inversion", num_categories=300),
        "exact gls, N=300": partial(
            hot_paths.exact_program, "gls", num_pairs=2, num_categories=300
        ),
        "loss of gls, 4 x 300": partial(
            hot_paths.loss_program, "gls", num_positions=4, num_tokens=300
        ),
        "dense encoding, N=2^9": partial(
            hot_paths.codec_program, "dense", num_candidates=2**9, decodes=False
        ),
        "selection, batch 2": partial(
            hot_paths.round_program, "select", config=_TINY, batch=2, num_drafts=2, length=2
        ),
    }
    return {name: HotPath(make) for name, make in programs.items()}


def _measured(path: HotPath) -> Line:
    function, shapes = path.make()
    counted = program_count.count(function, *shapes, unknown_trips=path.data_steps[1])
    arrays = jax.block_until_ready(hot_paths.random_arrays(shapes))
    call = waiting(jax.jit(function), *arrays)
    first_call = time_call(call)
    seconds = [time_call(call) for _ in range(_TURNS)]
    predicted = {
        f"predicted_{name}_milliseconds": round(1e3 * device.seconds(counted), 3)
        for name, device in program_count.DEVICES.items()
    }
    return {
        "steps": counted.steps,
        "first_call_seconds": round(first_call, 2),
        "milliseconds": round(1e3 * rounded_median(seconds, 6), 3),
        **predicted,
    }


def _decoding(batch: int, is_small: bool) -> Line:
    """Tokens a second of random weights; the drafter has a quarter of the target's layers."""
    config = _TINY if is_small else hot_paths.BILLION
    num_new = 4 if is_small else 64
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    make = nnx.jit(lambda: models.Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    target = make()
    kept_layers = list(range(-(-config.num_layers // 4)))
    drafter = models.keep_layers(target, kept_layers)
    prompts = np.random.default_rng(0).integers(1, config.vocab_size, (batch, 16))
    line: Line = {"program": f"decoding, batch {batch}"}
    for name, drafters in (("plain", None), ("gls_8_chains_of_4", models.language_model(drafter))):
        generate = partial(
            decoding.generate,
            races.new_key(0),
            models.language_model(target),
            drafters,
            prompts,
            scheme="gls",
            num_drafts=8,
            draft_length=4,
            max_new_tokens=num_new,
        )
        num_tokens = int(generate().lengths.sum())  # compiles
        line[f"{name}_tokens_per_second"] = round(num_tokens / time_call(generate), 1)
    return line
