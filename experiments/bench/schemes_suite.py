"""One step of verification: against drawing its noise, and against transformers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import optimal_gap
from experiments.bench.timing import (
    VOCABULARY,
    Benchmark,
    Line,
    compile_seconds,
    rounded_median,
    take_turns,
    time_call,
    vocabulary_pair,
    waiting,
)
from gls_jax import races, schemes


def verification(repeats: int, *, name: str, batch: int = 1) -> Line:
    """`verify` at a vocabulary, against drawing the noise of the eight streams that GLS reads."""
    scheme = schemes.get(name)
    num_drafts = scheme.max_drafts or 8
    log_p, log_q = vocabulary_pair()
    row_keys = races.split_key(races.new_key(0), batch)
    # Drafts come from `propose` with the keys of `verify`: that is the coupling.
    draft_tokens = jax.vmap(lambda key: scheme.propose(key, log_p, num_drafts))(row_keys)
    # Each row of the batch has different distributions, as in decoding.
    verify = waiting(
        jax.jit(jax.vmap(scheme.verify)),
        row_keys,
        draft_tokens,
        jnp.tile(log_p, (batch, 1)),
        jnp.tile(log_q, (batch, 1)),
    )
    # Whatever GLS does, it cannot be faster than this.
    draw_noise = waiting(
        jax.jit(jax.vmap(lambda key: races.exponentials(key, 8, VOCABULARY))), row_keys
    )
    first_call = time_call(verify)
    our_times, noise_times = take_turns(verify, draw_noise, repeats)
    return {
        "benchmark": f"verify {name}, N={VOCABULARY}, K={num_drafts}, batch {batch}",
        "seconds": rounded_median(our_times, 5),
        "noise_seconds": rounded_median(noise_times, 5),
        "ratio": rounded_median(our_times / noise_times, 2),
        "compile_seconds": compile_seconds(first_call, our_times),
    }


def in_a_loop(repeats: int, *, name: str, num_tokens: int, num_drafts: int = 4) -> Line:
    """`verify` again and again in a loop on the device, against `specinfer`."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(2 * rng.normal(size=(2, num_tokens)), jnp.float32)
    log_p, log_q = jax.nn.log_softmax(logits)
    key = races.new_key(0)
    num_steps = max(20, 100_000 // num_tokens)

    def loop_of(scheme: schemes.Scheme):
        drafts = scheme.propose(key, log_p, num_drafts)

        def step(shift, step_key):
            # The distributions depend on the last token by a hair, so that no step does the work of
            # another.
            token = scheme.verify(step_key, drafts, log_p + shift, log_q)
            return token.astype(jnp.float32) * 1e-12, None

        def run(keys):
            return jax.lax.scan(step, jnp.float32(0), keys)[0]

        return waiting(jax.jit(run), races.split_key(key, num_steps))

    run_ours, run_peer = loop_of(schemes.get(name)), loop_of(schemes.get("specinfer"))
    first_call = time_call(run_ours)
    run_peer()
    our_times, peer_times = take_turns(run_ours, run_peer, repeats)
    return {
        "benchmark": f"verify {name} in a loop, N={num_tokens}, K={num_drafts}",
        "milliseconds": rounded_median(1e3 * our_times / num_steps, 4),
        "specinfer_milliseconds": rounded_median(1e3 * peer_times / num_steps, 4),
        "ratio": rounded_median(our_times / peer_times, 2),
        "compile_seconds": compile_seconds(first_call, our_times),
    }


def against_transformers(
    repeats: int, *, name: str, num_tokens: int = 32_000, length: int = 4, batch: int = 64
) -> Line:
    """`verify_tree` of one chain of drafts, against `transformers`' speculative sampling."""
    try:
        import torch
        from transformers.generation.utils import _speculative_sampling
    except ModuleNotFoundError:
        return {
            "benchmark": f"{name} against transformers",
            "skipped": "needs the peers extra (make peers)",
        }
    # Logits of the drafter and the target at each position; both sides get the same.
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, length + 1, num_tokens)).astype(np.float32) * 2.5
    draft_logits = noise[0, :length]
    target_logits = 0.8 * noise[0] + 0.2 * noise[1]

    # One chain of drafts, proposed as the engine does: a key for each depth.
    scheme = schemes.get(name)
    key = races.new_key(0)
    draft_tokens = []
    for depth, log_p in enumerate(jax.nn.log_softmax(jnp.asarray(draft_logits))):
        draft_tokens.append(scheme.propose(scheme.draft_key(key, 0, depth, depth), log_p, 1))
    tree = schemes.chains(jnp.stack(draft_tokens, axis=1), ranked=scheme.ranked)

    # Logits go in, as there: their normalisation is a part of the step.
    def verify(key, draft_logits, target_logits):
        log_p = jax.nn.log_softmax(draft_logits)
        log_q = jax.nn.log_softmax(target_logits)
        return scheme.verify_tree(key, 0, tree, log_p, log_q)

    # A loop on the device shows what a step costs without its dispatch from Python.
    def verify_in_loop(keys, draft_logits, target_logits):
        return jax.lax.map(lambda key: verify(key, draft_logits, target_logits), keys)

    all_logits = (jnp.asarray(draft_logits), jnp.asarray(target_logits))
    run_ours = waiting(jax.jit(verify), key, *all_logits)
    run_loop = waiting(jax.jit(verify_in_loop), races.split_key(key, batch), *all_logits)
    run_peer = partial(
        _speculative_sampling,
        torch.tensor(np.stack(draft_tokens, axis=1).astype(np.int64)),
        torch.tensor(draft_logits[None]),
        length,
        torch.tensor(target_logits[None]),
        False,
    )
    first_call = time_call(run_ours)
    # A step takes about a millisecond: five times the turns.
    our_times, peer_times = take_turns(run_ours, run_peer, 5 * repeats)
    run_loop()
    loop_seconds = time_call(run_loop)
    return {
        "benchmark": f"{name} against transformers, N={num_tokens}, K=1, L={length}",
        "milliseconds": rounded_median(1e3 * our_times, 3),
        "milliseconds_in_a_loop": round(1e3 * loop_seconds / batch, 3),
        "transformers_milliseconds": rounded_median(1e3 * peer_times, 3),
        "ratio": rounded_median(peer_times / our_times, 2),
        "compile_seconds": compile_seconds(first_call, our_times),
    }


# A batch of `weighted_importance` would take minutes.
SUITE: tuple[Benchmark, ...] = (
    *(partial(verification, name=name) for name in schemes.NAMES),
    *(
        partial(verification, name=name, batch=64)
        for name in schemes.NAMES
        if name != "weighted_importance"
    ),
    partial(in_a_loop, name="optimal", num_tokens=50),
    partial(in_a_loop, name="optimal", num_tokens=49_152),
    optimal_gap.distance_to_optimum,
    partial(against_transformers, name="specinfer"),
    partial(against_transformers, name="spectr"),
)
