"""Every compiled program lowers for GPUs and TPUs on a machine that has neither."""

from __future__ import annotations

import importlib
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from gls_jax import (
    bounds,
    compression,
    couplings,
    decoding,
    decomposition,
    distributions,
    models,
    races,
    sampling,
    schemes,
    trials,
    work_shape,
)
from gls_jax.compression import symbol_coding
from gls_jax.decoding import engine, preparation
from gls_jax.distributions import dump_writer
from gls_jax.models import decoding_adapter
from gls_jax.planner import conditional, costs
from gls_jax.schemes import specinfer_wor

ITEMS, DRAFTS = 5, 2
PLATFORMS = ("cuda", "tpu")
KEY = races.new_key(0)
LOG_P, LOG_Q = jax.nn.log_softmax(
    jnp.asarray(np.random.default_rng(0).normal(size=(2, ITEMS)), jnp.float32)
)


def lower(function, *arrays):
    """Export `function` of the arrays, all of them traced, for every platform."""
    leaves, structure = jax.tree.flatten(
        arrays
    )  # what export puts in their place is no array to annotated fields
    flat = jax.jit(lambda *leaves: function(*jax.tree.unflatten(structure, leaves)))
    exported = jax.export.export(flat, platforms=PLATFORMS)(*leaves)
    assert exported.platforms == PLATFORMS


@pytest.mark.parametrize("name", [*schemes.NAMES, *schemes.PATH_NAMES])
def test_methods_of_a_scheme(name):
    scheme = schemes.get(name)
    num_drafts = min(scheme.max_drafts or DRAFTS, DRAFTS)
    tree = schemes.chains(jnp.zeros((num_drafts, 1), jnp.int32), ranked=scheme.ranked)
    laws = jnp.tile(LOG_P, (num_drafts, 1)), jnp.tile(LOG_Q, (num_drafts + 1, 1))

    def alone(key, log_p, log_q):
        """What the drafter's side computes, and the exact values."""
        found = [scheme.propose(key, log_p, num_drafts)]
        if scheme.verifies_tokens:
            found.append(scheme.acceptance(log_p, log_q, num_drafts))
        if scheme.exact is not None and scheme.exact.bound is not None:
            found.append(scheme.exact.bound(log_p, log_q, num_drafts))
        return found

    def together(key, log_p, log_q, tree, laws):
        """What looks at drafts."""
        found = [scheme.verify_tree(key, 0, tree, *laws)]
        if scheme.verifies_tokens:
            found.append(scheme.verify(key, tree.tokens, log_p, log_q))
            found.append(scheme.accepted(key, log_p, log_q, num_drafts))
        if scheme.trials is not None and scheme.trials.inversion is not None:
            found.append(scheme.inversion_trial(log_p, log_q, num_drafts)(key))
        return found

    lower(alone, KEY, LOG_P, LOG_Q)
    lower(together, KEY, LOG_P, LOG_Q, tree, laws)


def decode_loop(**options):
    """Configuration, requests and texts of a small decode loop."""
    shapes = dict(
        vocab_size=ITEMS,
        hidden_size=4,
        intermediate_size=4,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
    )
    model = models.language_model(models.Transformer(models.Config(**shapes), rngs=nnx.Rngs(0)))
    sampling = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }
    drafting = {"max_new_tokens": 2, "num_drafts": 2, "draft_length": 2}
    options = decoding.DecodeOptions(**drafting | sampling | options)
    prepared = preparation.prepare(KEY, model, model, [[1], [2, 3]], None, options)
    return prepared.config, prepared.requests, prepared.text


def test_target_call_on_a_mesh_of_accelerators():
    """2 x 4 devices that this machine does not have: weights and cache are split over both axes."""
    config = models.Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
    )
    axes = ("data", "model")
    mesh = AbstractMesh((2, 4), axes, axis_types=(AxisType.Auto,) * 2)
    transformer = nnx.eval_shape(
        lambda: models.Transformer(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    params = nnx.state(transformer)

    def placed(path, leaf):
        names = [str(part.key) for part in path if hasattr(part, "key")]
        layout = models.sharding.parameter_sharding(".".join(names), config, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    params = jax.tree_util.tree_map_with_path(placed, params)
    apply = decoding_adapter.Apply(config, mesh)
    cache = jax.eval_shape(lambda: decoding_adapter.InitCache(config, jnp.bfloat16)(4, 16))
    tokens = jax.ShapeDtypeStruct((4, 3), jnp.int32)
    call = jax.jit(lambda params, tokens, cache: apply(params, tokens, tokens, None, cache))
    program = call.trace(params, tokens, cache).lower(lowering_platforms=("tpu",)).as_text()
    assert program.count('"model"') >= 9 and program.count('"data"') >= 4
    logits, _ = jax.eval_shape(call, params, tokens, cache)
    assert logits.dtype == jnp.float32


def test_decode_loop():
    config, requests, text = decode_loop()

    def whole(requests, text):
        return engine.run(config, requests, engine.prefill(config, requests, text), 3)

    lower(whole, requests, text)


def test_decode_loop_of_a_margin_tree():
    config, requests, text = decode_loop(tree=decoding.MarginTree(4, 2, children=3))
    state = jax.eval_shape(partial(engine.prefill, config), requests, text)
    lower(partial(engine.run, config), requests, state, 3)


@pytest.mark.parametrize("search", ["ordered", "dense"])
def test_searches_of_the_codec(search):
    code = compression.ListCode(num_decoders=2, num_candidates=64, num_bins=4, search=search)
    keys = compression.symbol_keys(KEY, 8)
    rows = compression.Normal(jnp.zeros((8, 1)), jnp.full((8, 1), 0.1))
    density = compression.gaussian_density

    def both(keys, rows, message, count):
        sent = symbol_coding._encode_indices(
            (), (keys, rows), count, code=code, density=density, shape=work_shape.current()
        )
        bins = symbol_coding._symbol_bins((), (keys, sent), count, num_bins=4)
        return bins, symbol_coding._decode_indices(
            ((), 1),
            (keys, rows, message),
            count,
            code=code,
            density=density,
            shape=work_shape.current(),
        )

    lower(both, keys, rows, jnp.zeros(8, jnp.int32), 8)


# Every public function of the core that takes arrays; those with a key get it first.
FUNCTIONS = {
    "bounds": {
        "communication_free": lambda p, q: bounds.communication_free(p, q),
        "list_decoding": lambda p, q: bounds.list_decoding(p, 2, 4),
        "list_matching": lambda p, q: bounds.list_matching(p, q, DRAFTS),
        "list_matching_given_target": lambda p, q: bounds.list_matching_given_target(p, q, DRAFTS),
        "list_matching_relaxed": lambda p, q: bounds.list_matching_relaxed(p, q, DRAFTS),
        "list_matching_strong": lambda p, q: bounds.list_matching_strong(p, q, 1, DRAFTS),
        "optimum": lambda p, q: bounds.optimum(p, q, jnp.exp(p)),
        "optimum_distinct": lambda p, q: bounds.optimum_distinct(p, q, DRAFTS),
        "optimum_iid": lambda p, q: bounds.optimum_iid(p, q, DRAFTS),
        "prefix_order": lambda p, q: bounds.prefix_order(p, q),
        "total_variation": lambda p, q: bounds.total_variation(p, q),
    },
    "couplings": {
        "dart_protocol": lambda p, q: couplings.dart_protocol(KEY, p, q, 0.1),
        "first_dart": lambda p, q: couplings.first_dart(KEY, p),
        "gumbel": lambda p, q: couplings.gumbel(KEY, p, q),
        "gumbel_match": lambda p, q: couplings.gumbel_match(p, q),
        "maximal": lambda p, q: couplings.maximal(KEY, p, q),
        "maximal_match": lambda p, q: couplings.maximal_match(p, q),
        "minhash_match": lambda p, q: couplings.minhash_match(p, q),
        "weighted_minhash": lambda p, q: couplings.weighted_minhash(KEY, p, q),
    },
    "decomposition": {
        "always_accepts": lambda p, q: decomposition.always_accepts(p, q, DRAFTS),
        "selected_distribution": lambda p, q: decomposition.selected_distribution(
            lambda drafts: drafts == drafts[0], p, DRAFTS
        ),
    },
    "sampling": {
        "draft_list": lambda p, q: sampling.draft_list(jnp.exp(p)[None], p),
        "list_sample": lambda p, q: sampling.list_sample(KEY, p, q, DRAFTS),
        "target_of_list": lambda p, q: sampling.target_of_list(jnp.exp(p)[None], q),
    },
    "trials": {
        "acceptance": lambda p, q: trials.acceptance(
            KEY, p, q, scheme="gls", num_drafts=DRAFTS, num_trials=4
        ),
        "sweep": lambda p, q: trials.sweep(
            KEY,
            p[None],
            q[None],
            scheme="gls",
            num_drafts=(1, DRAFTS),
            num_trials=4,
            method="inversion",
        ),
    },
}
ON_THE_HOST = {
    "dart_protocol_bits",
    "set_distribution",
    "best_selection",
}  # whole numbers and NumPy


@pytest.mark.parametrize("module", FUNCTIONS)
def test_functions_of(module):
    functions = FUNCTIONS[module]
    lower(lambda *laws: [function(*laws) for function in functions.values()], LOG_P, LOG_Q)
    public = importlib.import_module(f"gls_jax.{module}")
    names = {name for name in public.__all__ if inspect.isfunction(getattr(public, name))}
    assert names == functions.keys() | (ON_THE_HOST & names)


def test_programs_behind_files_and_figures():
    """The compiled functions of dumps, sweeps, the planner and studies."""
    target = decoding.from_function(
        lambda params, tokens: params[tokens], jnp.zeros((ITEMS, ITEMS)), ITEMS
    )
    text = jnp.zeros((1, 3), jnp.int32)
    lower(
        partial(dump_writer._cut, sampling=distributions.Sampling(), num_kept=2),
        target,
        target,
        text,
        text,
    )
    lower(partial(costs._calls, batch=1, size=2, slots=4), target, 3)
    pairs = LOG_P[None], LOG_Q[None]
    for name in conditional.NAMES:
        kernels = partial(conditional._kernels, scheme=name, num_drafts=DRAFTS)
        lower(partial(kernels, shape=work_shape.current()), *pairs)
    curve = partial(schemes.get("gls").acceptance_curve, num_drafts=(DRAFTS,))
    lower(lambda *pairs: jax.lax.map(lambda pair: curve(*pair), pairs), *pairs)
    lower(lambda p, q: specinfer_wor.acceptance_estimate(KEY, p, q, DRAFTS, 4), LOG_P, LOG_Q)
