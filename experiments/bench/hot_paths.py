"""The programs that matter for speed, at the sizes that accelerators are for.

Each is a function of abstract arrays: nothing is computed until somebody gives it real ones.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.bench.timing import VOCABULARY
from gls_jax import compression, decoding, losses, models, races, schemes, work_shape
from gls_jax.compression import symbol_coding
from gls_jax.compression.symbol_groups import GROUP_SIZE
from gls_jax.decoding import engine, preparation
from gls_jax.exact import batched
from gls_jax.loops import map_in_batches
from gls_jax.models import decoding_adapter
from gls_jax.trials import trial_loop

__all__ = [
    "BILLION",
    "HOT_PATHS",
    "HotPath",
    "Program",
    "codec_program",
    "exact_program",
    "loss_program",
    "random_arrays",
    "round_program",
    "separate_drafts_program",
    "trials_program",
]


Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its abstract arrays."""


@dataclasses.dataclass(frozen=True)
class HotPath:
    """A program, and what is asked of it.

    Attributes:
        make: makes the program in the current shape of work.
        most_steps: the most sequential steps on an accelerator; None if nothing is asked.
        least_width: the least number of lanes of a step on an accelerator.
        data_steps: iterations of a loop whose number only the data know, on a CPU and on an
            accelerator; typical values.
        make_part: makes a part of the program that a CPU computes in seconds; None if it cannot.
        num_parts: parts of the whole.
    """

    make: Callable[[], Program]
    most_steps: int | None = None
    least_width: int | None = None
    data_steps: tuple[int, int] = (1, 1)
    make_part: Callable[[], Program] | None = None
    num_parts: int = 1


def random_arrays(arrays: Any) -> Any:
    """Arrays of these shapes: keys, log-probabilities on the last axis, sources of a codec."""
    return jax.tree.map(_random_array, arrays, is_leaf=lambda x: isinstance(x, compression.Normal))


def _random_array(array: Any) -> Any:
    key = races.new_key(0)
    if isinstance(array, compression.Normal):
        mean = jax.random.normal(key, array.mean.shape)
        return compression.Normal(mean, jnp.full_like(mean, 0.01))
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, array.shape)
    if array.dtype == jnp.bool_:
        return jnp.ones(array.shape, bool)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return jnp.zeros(array.shape, array.dtype)
    if array.ndim == 0 or array.shape[-1] < 2:
        return jnp.ones(array.shape, array.dtype)
    # Log-probabilities, spread as in a language model. Weights and caches are such numbers, too:
    # the time does not depend on them.
    log_probs = jax.nn.log_softmax(2.5 * jax.random.normal(jax.random.fold_in(key, 1), array.shape))
    return log_probs.astype(array.dtype)


def _distributions(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _keys(*shape: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(races.new_key(0), shape))


def trials_program(
    scheme: str,
    method: trial_loop.Method,
    *,
    num_categories: int,
    num_pairs: int = 100,
    num_trials: int = 10_000,
    num_drafts: int = 8,
) -> Program:
    """A sweep of `num_trials` trials of each pair, in one call.

    The limits of the trials are constants here, so that the length of the loop is known.
    """
    program = trial_loop.TrialProgram(
        schemes.get(scheme), (num_drafts,), method, work_shape.current()
    )
    chunk = trial_loop.chunk_of(program, num_pairs, (num_categories,), num_trials)

    def sweep(keys, log_p, log_q):
        return trial_loop.count_in_chunks(keys, log_p, log_q, 0, num_trials, program, chunk)

    pairs = _distributions(num_pairs, num_categories)
    return sweep, (_keys(num_pairs), pairs, pairs)


def exact_program(
    scheme: str, *, num_pairs: int = 256, num_categories: int = VOCABULARY, num_drafts: int = 8
) -> Program:
    """Exact acceptances of many pairs, in blocks within the memory budget."""
    curve = partial(schemes.get(scheme).acceptance_curve, num_drafts=(num_drafts,))
    shape = work_shape.current()
    pairs_at_once = batched.pairs_per_step(num_pairs, num_categories, shape)
    pairs = _distributions(num_pairs, num_categories)

    def curves(log_p, log_q):
        return map_in_batches(lambda pair: curve(*pair), (log_p, log_q), pairs_at_once)

    return curves, (pairs, pairs)


def separate_drafts_program(num_drafts: int = 8) -> Program:
    """GLS with a separate distribution for each draft."""
    acceptance = partial(schemes.get("gls").acceptance, num_drafts=num_drafts)
    return acceptance, (_distributions(num_drafts, VOCABULARY), _distributions(VOCABULARY))


def loss_program(
    scheme: str, *, num_positions: int = 256, num_tokens: int = 49_152, num_drafts: int = 4
) -> Program:
    """Value and gradient of the exact acceptance as a loss."""

    def loss(draft, target):
        return losses.acceptance(draft, target, scheme=scheme, num_drafts=num_drafts).mean()

    logits = _distributions(num_positions, num_tokens)
    return jax.value_and_grad(loss), (logits, logits)


def codec_program(search: str, *, num_candidates: int, decodes: bool) -> Program:
    """One group of symbols to messages, or a decoder's choice from messages."""
    code = compression.ListCode(4, num_candidates, 64, search=search)
    rows = compression.Normal(_distributions(GROUP_SIZE, 1), _distributions(GROUP_SIZE, 1))
    options = {"code": code, "density": compression.gaussian_density}
    options["shape"] = work_shape.current()
    keys = _keys(GROUP_SIZE)
    if not decodes:
        encode = partial(inspect.unwrap(symbol_coding._encode_indices), **options)
        return partial(encode, (), count=GROUP_SIZE), ((keys, rows),)
    decode = partial(inspect.unwrap(symbol_coding._decode_indices), **options)
    message = jax.ShapeDtypeStruct((GROUP_SIZE,), jnp.int32)
    return partial(decode, ((), 1), count=GROUP_SIZE), ((keys, rows, message),)


# A language model of a billion parameters, with the vocabulary of SmolLM2.
BILLION = models.Config(
    vocab_size=49_152,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
)


def _abstract_model(config: models.Config, dtype: Any) -> decoding.LanguageModel:
    """A language model without weights, only their shapes."""
    transformer = nnx.eval_shape(lambda: models.Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    return decoding.LanguageModel(
        params=nnx.state(transformer),
        apply=decoding_adapter.Apply(config),
        init_cache=decoding_adapter.InitCache(config, dtype),
        vocab_size=config.vocab_size,
    )


def round_program(
    part: Literal["read", "select"],
    *,
    top_k: int | None = None,
    scheme: str = "gls",
    config: models.Config = BILLION,
    batch: int = 64,
    num_drafts: int = 8,
    length: int = 4,
) -> Program:
    """A part of a round of the decode loop: `read` (the target's call) or `select`."""
    model = _abstract_model(config, jnp.bfloat16)
    options = decoding.DecodeOptions(
        scheme=scheme,
        num_drafts=num_drafts,
        draft_length=length,
        top_k=top_k,
        max_new_tokens=64,
    )
    small = decoding.from_function(
        lambda params, tokens: params[tokens],
        jax.ShapeDtypeStruct((config.vocab_size,) * 2, jnp.float32),
        config.vocab_size,
    )
    prepared = preparation.prepare(
        races.new_key(0), small, small, [[1] * 64] * batch, None, options
    )
    engine_config = prepared.config
    requests = prepared.requests._replace(target=model)
    draft, read, select = engine.PARTS
    state = jax.eval_shape(partial(engine.prefill, engine_config), requests, prepared.text)
    bare = state._replace(drafter_caches=(), target_cache=None)
    drafts, drafter_caches = jax.eval_shape(
        partial(draft, engine_config), requests, bare, state.drafter_caches
    )
    if part == "read":
        return partial(read, engine_config), (requests, bare, drafts.tree, state.target_cache)
    reading, target_cache = jax.eval_shape(
        partial(read, engine_config), requests, bare, drafts.tree, state.target_cache
    )
    return partial(select, engine_config), (
        requests,
        bare,
        drafts,
        reading,
        (drafter_caches, ()),
        target_cache,
    )


# Names must not change: results are compared by them.
HOT_PATHS: Mapping[str, HotPath] = {
    "trials by noise, N=10, K=8, 100 pairs x 10,000": HotPath(
        partial(trials_program, "gls", "noise", num_categories=10),
        most_steps=16,
        least_width=2**18,
        make_part=partial(trials_program, "gls", "noise", num_categories=10),
    ),
    f"trials by inversion, N={VOCABULARY}, K=8, 100 pairs x 10,000": HotPath(
        partial(trials_program, "gls", "inversion", num_categories=VOCABULARY),
        most_steps=16,
        least_width=2**18,
        make_part=partial(
            trials_program, "gls", "inversion", num_categories=VOCABULARY, num_pairs=10
        ),
        num_parts=10,
    ),
    f"gumbel_topk trials by inversion, N={VOCABULARY}, K=8, 100 pairs x 10,000": HotPath(
        partial(trials_program, "gumbel_topk", "inversion", num_categories=VOCABULARY),
        data_steps=(16, 16),
        make_part=partial(
            trials_program, "gumbel_topk", "inversion", num_categories=VOCABULARY, num_pairs=10
        ),
        num_parts=10,
    ),
    f"exact gls, N={VOCABULARY}, K=8, 256 pairs": HotPath(
        partial(exact_program, "gls"),
        most_steps=64,
        make_part=partial(exact_program, "gls", num_pairs=8),
        num_parts=32,
    ),
    f"exact gumbel_topk, N={VOCABULARY}, K=8, 256 pairs": HotPath(
        partial(exact_program, "gumbel_topk"),
        most_steps=300,
        make_part=partial(exact_program, "gumbel_topk", num_pairs=8),
        num_parts=32,
    ),
    f"exact gls of 8 separate drafts, N={VOCABULARY}": HotPath(
        separate_drafts_program, most_steps=64, make_part=separate_drafts_program
    ),
    "loss of gls, 256 x 49,152, K=4": HotPath(
        partial(loss_program, "gls"),
        make_part=partial(loss_program, "gls", num_positions=8),
        num_parts=32,
    ),
    "loss of gumbel_topk, 256 x 49,152, K=4": HotPath(
        partial(loss_program, "gumbel_topk"),
        make_part=partial(loss_program, "gumbel_topk", num_positions=8),
        num_parts=32,
    ),
    "ordered encoding, N=2^20, 4,096 symbols": HotPath(
        partial(codec_program, "ordered", num_candidates=2**20, decodes=False),
        data_steps=(32, 8),
        make_part=partial(codec_program, "ordered", num_candidates=2**20, decodes=False),
    ),
    "ordered decoding, N=2^20, 4,096 symbols": HotPath(
        partial(codec_program, "ordered", num_candidates=2**20, decodes=True),
        data_steps=(64, 16),
        make_part=partial(codec_program, "ordered", num_candidates=2**20, decodes=True),
    ),
    "dense encoding, N=2^15, 4,096 symbols": HotPath(
        partial(codec_program, "dense", num_candidates=2**15, decodes=False),
        make_part=partial(codec_program, "dense", num_candidates=2**15, decodes=False),
    ),
    "target call, 1.1e9 parameters, batch 64, K=8, L=4": HotPath(partial(round_program, "read")),
    "selection, gls, batch 64, K=8, L=4, V=49,152": HotPath(
        partial(round_program, "select"), data_steps=(4, 1)
    ),
    "selection after top-k, gls, batch 64, K=8, L=4, V=49,152": HotPath(
        partial(round_program, "select", top_k=50), data_steps=(4, 1)
    ),
    "selection, gumbel_topk, batch 64, K=8, L=4, V=49,152": HotPath(
        partial(round_program, "select", scheme="gumbel_topk"), data_steps=(4, 1)
    ),
}
