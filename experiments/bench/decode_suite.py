"""Decoding with SmolLM2: against transformers, in a batch, and every scheme against its cost.

The cost model: a round costs ``L d + v + s`` and emits as many tokens as the block efficiency says;
a plain step costs `t` and emits one. So a scheme pays where
``block efficiency > (L d + v + s) / t``, with `d` a call of the drafter, `v` the call of the target
that reads the tree, and `s` the selection.
"""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.bench import peer_models, target_call
from experiments.bench.speculation import SPECULATION
from experiments.bench.timing import (
    Benchmark,
    Line,
    compile_seconds,
    rounded_median,
    take_turns,
    time_call,
)
from gls_jax import decoding, races, schemes
from gls_jax.distributions import prompts
from gls_jax.planner import costs

_NEW_TOKENS = 64
# First and last of the layers that the drafter leaves out.
_DROPPED = (12, 17)
# Of the drafted chains.
_LENGTH = 4


class _Models(NamedTuple):
    """SmolLM2, its drafter, and prompts as token ids."""

    target: decoding.LanguageModel
    drafter: decoding.LanguageModel
    prompts: list[list[int]]


@cache
def _models() -> _Models:
    # Imported here because flax is not needed by the other suites, whose memory is measured.
    from experiments import decoding_runs

    target, drafter = decoding_runs.load_pair(_DROPPED)
    assert target.tokenizer is not None  # SmolLM2 has one
    token_ids = [target.tokenizer.encode(text).ids[:48] for text in prompts.PROMPTS]
    return _Models(target=target.language_model, drafter=drafter, prompts=token_ids)


def _generate(
    *, drafter: decoding.LanguageModel | None = None, num_requests: int = 1, **options: Any
) -> decoding.Generation:
    """Generate `_NEW_TOKENS` for the first prompts, and wait for them."""
    models = _models()
    generation = decoding.generate(
        races.new_key(0),
        models.target,
        drafter,
        models.prompts[:num_requests],
        draft_length=_LENGTH,
        max_new_tokens=_NEW_TOKENS,
        **options,
    )
    return jax.block_until_ready(generation)


def against_transformers(repeats: int, *, speculative: bool) -> Line:
    """Tokens per second of one request at temperature 1: plain, or K = 1 with the same drafter."""
    mode = "plain"
    if speculative:
        mode = f"K=1, L={_LENGTH}, without layers {_DROPPED[0]}-{_DROPPED[1]}"
    benchmark_name = f"{mode}, one request against transformers"
    peers = peer_models.load_pair(_DROPPED, _LENGTH)
    if peers is None:
        return {"benchmark": benchmark_name, "skipped": "needs the peers extra (make peers)"}
    import torch

    peer_target, peer_assistant = peers
    prompt_ids = torch.tensor([_models().prompts[0]])
    peer_options = {"assistant_model": peer_assistant} if speculative else {}

    # Exactly as many tokens as ours, sampled from the whole distribution.
    def generate_with_peer() -> None:
        with torch.no_grad():
            tokens = peer_target.generate(
                prompt_ids,
                max_new_tokens=_NEW_TOKENS,
                min_new_tokens=_NEW_TOKENS,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                **peer_options,
            )
        assert tokens.shape[1] == prompt_ids.shape[1] + _NEW_TOKENS

    generate = partial(_generate, scheme="gumbel_topk")
    if speculative:
        generate = partial(_generate, scheme="single", drafter=_models().drafter)
    first_call = time_call(generate)
    our_times, peer_times = take_turns(generate, generate_with_peer, repeats)
    return {
        "benchmark": benchmark_name,
        "tokens_per_second": _tokens_per_second(our_times),
        "transformers_tokens_per_second": _tokens_per_second(peer_times),
        "ratio": rounded_median(peer_times / our_times, 2),
        "block_efficiency": round(generate().metrics.block_efficiency, 3),
        "compile_seconds": max(0.0, compile_seconds(first_call, our_times)),
    }


def _tokens_per_second(times: np.ndarray, num_requests: int = 1) -> float:
    return round(num_requests * _NEW_TOKENS / float(np.median(times)), 2)


def batch(repeats: int, *, num_requests: int, speculative: bool) -> Line:
    """Tokens per second of a batch against one request."""
    mode = "plain"
    generate = partial(_generate, scheme="gumbel_topk")
    if speculative:
        mode = f"K=1, L={_LENGTH}"
        generate = partial(_generate, scheme="single", drafter=_models().drafter)
    generate_batch = partial(generate, num_requests=num_requests)
    our_times, single_times = take_turns(generate_batch, generate, max(1, repeats // 2))
    return {
        "benchmark": f"{mode}, {num_requests} requests against one",
        "tokens_per_second": _tokens_per_second(our_times, num_requests),
        "one_request_tokens_per_second": _tokens_per_second(single_times),
        "ratio": rounded_median(num_requests * single_times / our_times, 2),
    }


def selection(repeats: int, num_drafts: int = 8) -> Line:
    """All noise and verification of a round: its time with models that cost nothing."""
    target, drafter, token_ids = _models()
    # Both have the target's cache; their distributions are random, and differ.
    free_target = costs.free_model(target, target.vocab_size, 0.0)
    free_drafter = costs.free_model(target, target.vocab_size, 0.5)

    def seconds_a_round(target, drafter) -> float:
        generate = partial(
            decoding.generate,
            races.new_key(0),
            target,
            drafter,
            token_ids[:1],
            scheme="gls",
            num_drafts=num_drafts,
            draft_length=_LENGTH,
            max_new_tokens=_NEW_TOKENS,
        )
        generate()  # compiles
        start_time = time.perf_counter()
        num_rounds = generate().metrics.rounds
        return (time.perf_counter() - start_time) / num_rounds

    # Both kinds of rounds take turns, like a benchmark and its peer.
    free_times, whole_times = [], []
    for _ in range(max(1, repeats // 2)):
        free_times.append(seconds_a_round(free_target, free_drafter))
        whole_times.append(seconds_a_round(target, drafter))
    free_seconds = float(np.median(free_times))
    whole_seconds = float(np.median(whole_times))
    return {
        "benchmark": f"selection in a round, K={num_drafts}, L={_LENGTH}, V={target.vocab_size}",
        "milliseconds": round(1e3 * free_seconds, 2),
        "round_milliseconds": round(1e3 * whole_seconds, 2),
        "share": round(free_seconds / whole_seconds, 3),
    }


def every_scheme(repeats: int, *, name: str, label: str, **shape: Any) -> Line:
    """Tokens per second and block efficiency of a scheme, with the prediction of the cost model."""
    generate = partial(_generate, scheme=name, drafter=_models().drafter, **shape)
    # Schemes that verify whole paths have no `verify` for a plain step; `gls` replaces them.
    plain_scheme = name if schemes.get(name).verifies_tokens else "gls"
    generate_plain = partial(_generate, scheme=plain_scheme)
    first_call = time_call(generate)
    our_times, plain_times = take_turns(generate, generate_plain, max(1, repeats // 3))
    # The parts of a round are timed in separate runs: waiting for each part slows the whole.
    generate(timed=True)  # compiles
    metrics = generate(timed=True).metrics
    assert metrics.seconds is not None
    part_milliseconds = {
        part: 1e3 * metrics.seconds[part] / metrics.rounds for part in ("draft", "verify", "select")
    }
    # The two sides of the cost model.
    round_milliseconds = sum(part_milliseconds.values())
    step_milliseconds = 1e3 * float(np.median(plain_times)) / _NEW_TOKENS
    return {
        "benchmark": f"{name} {label}",
        "tokens_per_second": _tokens_per_second(our_times),
        "plain_tokens_per_second": _tokens_per_second(plain_times),
        "ratio": rounded_median(plain_times / our_times, 2),
        "block_efficiency": round(generate().metrics.block_efficiency, 3),
        "draft_call_milliseconds": round(part_milliseconds["draft"] / _LENGTH, 2),
        "verify_milliseconds": round(part_milliseconds["verify"], 2),
        "select_milliseconds": round(part_milliseconds["select"], 2),
        "pays_above_block_efficiency": round(round_milliseconds / step_milliseconds, 2),
        "compile_seconds": max(0.0, compile_seconds(first_call, our_times)),
    }


_CHAIN_SCHEMES = (
    "gls",
    "gls_strong",
    "poisson",
    "gumbel_topk",
    "topk",
    "specinfer",
    "specinfer_wor",
    "spectr",
    "traversal",
)
SUITE: tuple[Benchmark, ...] = (
    *SPECULATION,
    target_call.by_positions,
    target_call.by_slots,
    partial(against_transformers, speculative=False),
    partial(against_transformers, speculative=True),
    partial(batch, num_requests=8, speculative=False),
    partial(batch, num_requests=8, speculative=True),
    selection,
    *(
        partial(every_scheme, name=name, label="1 chain", num_drafts=1)
        for name in ("single", "block", "minhash")
    ),
    *(partial(every_scheme, name=name, label="8 chains", num_drafts=8) for name in _CHAIN_SCHEMES),
    partial(
        every_scheme,
        name="gumbel_topk",
        label="margin tree of 32",
        tree=decoding.MarginTree(32, _LENGTH),
    ),
    partial(
        every_scheme,
        name="topk",
        label="best-first tree of 32",
        tree=decoding.BestFirstTree(32, _LENGTH),
    ),
)
