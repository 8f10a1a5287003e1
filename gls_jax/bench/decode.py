"""Decoding with SmolLM2: against transformers, against itself in a batch, and every scheme against
its cost.

The cost model: a round costs ``L d + v + s`` and emits the block efficiency; a plain step costs
`t`. So a scheme pays where ``block efficiency > (L d + v + s) / t``, with `d` a call of the
drafter, `v` the call of the target that reads the tree, `s` the selection.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import decoding, races, schemes
from gls_jax.bench import measure
from gls_jax.bench.measure import Line
from gls_jax.distributions import prompts

__all__ = ["SUITE"]

_NEW, _DROPPED, _LENGTH = 64, range(12, 18), 4


def _without(layers: int) -> list[int]:
    return [layer for layer in range(layers) if layer not in _DROPPED]


@cache
def _models() -> tuple[Any, decoding.LanguageModel, decoding.LanguageModel]:
    """SmolLM2, as a bundle, and its drafter without layers 12-17."""
    from gls_jax import models

    target = models.load("smollm2")
    drafter = models.keep_layers(target.model, _without(target.config.num_layers))
    return target, target.language_model, models.language_model(drafter)


@cache
def _ids(count: int) -> tuple[tuple[int, ...], ...]:
    tokenizer = _models()[0].tokenizer
    return tuple(tuple(tokenizer.encode(text).ids[:48]) for text in prompts.PROMPTS[:count])


def _generate(
    requests: int = 1, drafter: Any = None, new: int = _NEW, **options
) -> decoding.Generation:
    found = decoding.generate(
        races.new_key(0), _models()[1], drafter, _ids(requests), max_new_tokens=new, **options
    )
    jax.block_until_ready(found.tokens)
    return found


def _tokens_a_second(generation: decoding.Generation, seconds: float) -> float:
    return float(np.sum(generation.metrics.emitted)) / seconds


def _peers() -> tuple[Any, Any, Any] | None:
    """torch, and transformers' model and assistant with the same weights."""
    try:
        import torch
        import transformers
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    except ModuleNotFoundError:
        return None
    from gls_jax.models import packages

    path = packages.smollm2()

    def load():
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        model.load_state_dict(load_gguf_checkpoint(str(path), True, model)["tensors"], strict=False)
        model.tie_weights()
        return model

    target, assistant = load(), load()
    layers = assistant.model.layers
    assistant.model.layers = torch.nn.ModuleList([layers[i] for i in _without(len(layers))])
    for index, layer in enumerate(assistant.model.layers):
        layer.self_attn.layer_idx = index  # of its cache
    assistant.config.num_hidden_layers = len(assistant.model.layers)
    settings = assistant.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = _LENGTH, "constant"
    settings.assistant_confidence_threshold = 0.0
    return torch, target, assistant


def against_transformers(speculative: bool) -> Callable[[int], Line]:
    """Tokens a second of one request, sampled at temperature 1: plain, or K=1, L=4 with the same
    drafter.
    """

    def benchmark(repeats: int) -> Line:
        name = (
            f"{f'K=1, L={_LENGTH}, without layers 12-17' if speculative else 'plain'}, one request"
        )
        if (peers := _peers()) is None:
            return {
                "benchmark": f"{name} against transformers",
                "skipped": "needs the peers extra (make peers)",
            }
        torch, model, assistant = peers
        ids = torch.tensor([_ids(1)[0]])
        more = {"assistant_model": assistant} if speculative else {}
        asked: dict[str, Any] = dict(
            max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=True, top_k=0, pad_token_id=0
        )

        def peer():
            with torch.no_grad():
                assert model.generate(ids, **asked, **more).shape[1] == ids.shape[1] + _NEW

        scheme, drafter = ("single", _models()[2]) if speculative else ("gumbel_topk", None)
        made = lambda: _generate(drafter=drafter, scheme=scheme, draft_length=_LENGTH)  # noqa: E731
        first = measure.seconds(made)
        own, other = (np.array(turn) for turn in measure.turns(made, peer, repeats))
        return {
            "benchmark": f"{name} against transformers",
            "tokens_per_second": round(_NEW / float(np.median(own)), 2),
            "transformers_tokens_per_second": round(_NEW / float(np.median(other)), 2),
            "ratio": round(float(np.median(other / own)), 2),
            "block_efficiency": round(made().metrics.block_efficiency, 3),
            "compile_seconds": round(max(0.0, first - float(np.median(own))), 2),
        }

    return benchmark


def batch(requests: int, speculative: bool) -> Callable[[int], Line]:
    """Tokens a second of a batch against one request."""

    def benchmark(repeats: int) -> Line:
        options: dict[str, Any] = (
            dict(scheme="single", drafter=_models()[2])
            if speculative
            else dict(scheme="gumbel_topk")
        )
        one, many = (lambda: _generate(**options)), (lambda: _generate(requests, **options))
        own, other = (np.array(turn) for turn in measure.turns(many, one, max(1, repeats // 2)))
        return {
            "benchmark": f"{'K=1, L=4' if speculative else 'plain'}, {requests} requests against one",
            "tokens_per_second": round(requests * _NEW / float(np.median(own)), 2),
            "one_request_tokens_per_second": round(_NEW / float(np.median(other)), 2),
            "ratio": round(requests * float(np.median(other / own)), 2),
        }

    return benchmark


def selection(repeats: int, num_drafts: int = 8) -> Line:
    """All noise and verification arithmetic of a round, as a share of it: the round with models
    that cost nothing.
    """
    _, target, drafter = _models()
    logits = 2.5 * jax.random.normal(races.new_key(0), (2, target.vocab_size))
    free = [
        dataclasses.replace(target, params=row, apply=_constant)
        for row in (logits[0], logits[0] + logits[1] / 2)
    ]
    options: dict[str, Any] = dict(
        scheme="gls", num_drafts=num_drafts, draft_length=_LENGTH, max_new_tokens=_NEW
    )

    def seconds_a_round(target, drafter) -> float:
        run = lambda: decoding.generate(races.new_key(0), target, drafter, _ids(1), **options)  # noqa: E731
        run()
        start = time.perf_counter()
        rounds = run().metrics.rounds
        return (time.perf_counter() - start) / rounds

    pairs = [
        (seconds_a_round(*free), seconds_a_round(target, drafter))
        for _ in range(max(1, repeats // 2))
    ]
    own, whole = (statistics.median(pair[i] for pair in pairs) for i in range(2))
    return {
        "benchmark": f"selection in a round, K={num_drafts}, L={_LENGTH}, V={target.vocab_size}",
        "milliseconds": round(1e3 * own, 2),
        "round_milliseconds": round(1e3 * whole, 2),
        "share": round(own / whole, 3),
    }


def _constant(params, tokens, positions, mask, cache):
    """A model that costs nothing and keeps its cache."""
    shape = (*tokens.shape, params.shape[0])
    return jnp.broadcast_to(params, shape), cache._replace(length=cache.length + tokens.shape[1])


def every_scheme(name: str, label: str, **shape: Any) -> Callable[[int], Line]:
    """Tokens a second against block efficiency, and what the cost model says."""

    def benchmark(repeats: int) -> Line:
        _, _, drafter = _models()
        scheme = schemes.get(name)
        options: dict[str, Any] = dict(scheme=name, drafter=drafter, draft_length=_LENGTH) | shape
        first = measure.seconds(lambda: _generate(**options))
        plain = lambda: _generate(scheme=name if scheme.verifies_tokens else "gls")  # noqa: E731
        own, other = (
            np.array(turn)
            for turn in measure.turns(lambda: _generate(**options), plain, max(1, repeats // 3))
        )
        found = _generate(**options).metrics
        _, timed = (
            _generate(timed=True, **options).metrics for _ in range(2)
        )  # the first one compiles
        parts = timed.seconds or {}
        each = {part: parts[part] / timed.rounds * 1e3 for part in ("draft", "verify", "select")}
        step = 1e3 * float(np.median(other)) / _NEW
        return {
            "benchmark": f"{name} {label}",
            "tokens_per_second": round(_NEW / float(np.median(own)), 2),
            "plain_tokens_per_second": round(_NEW / float(np.median(other)), 2),
            "ratio": round(float(np.median(other / own)), 2),
            "block_efficiency": round(found.block_efficiency, 3),
            "draft_call_milliseconds": round(each["draft"] / _LENGTH, 2),
            "verify_milliseconds": round(each["verify"], 2),
            "select_milliseconds": round(each["select"], 2),
            "pays_above_block_efficiency": round(sum(each.values()) / step, 2),
            "compile_seconds": round(max(0.0, first - float(np.median(own))), 2),
        }

    return benchmark


_CHAINS = (
    "gls",
    "gls_strong",
    "poisson",
    "gumbel_topk",
    "specinfer",
    "specinfer_wor",
    "spectr",
    "traversal",
)
SUITE = (
    against_transformers(False),
    against_transformers(True),
    batch(8, False),
    batch(8, True),
    selection,
    *(every_scheme(name, "1 chain", num_drafts=1) for name in ("single", "block", "minhash")),
    *(every_scheme(name, "8 chains", num_drafts=8) for name in _CHAINS),
    every_scheme("gumbel_topk", "margin tree of 32", tree=decoding.MarginTree(32, _LENGTH)),
)
