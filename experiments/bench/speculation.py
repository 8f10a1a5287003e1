"""Whether drafting pays: decoding of one request against plain generation, by kind of prompt.

Against plain generation only decoding is timed, without the prompt and the first round, and both
sides take turns, prompt by prompt. Against transformers whole calls are timed. Automatic drafting
measures its costs in the first turns, which are not timed.
"""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.bench import peer_models
from experiments.bench.timing import Benchmark, Line, rounded_median
from experiments.questions import KINDS
from experiments.repetitive_prompts import REPETITIVE
from gls_jax import decoding, models, races
from gls_jax.decoding.choice import Drafters
from gls_jax.distributions.prompts import PROMPTS
from gls_jax.models import model_pair

_NEW_TOKENS = 64
_TOP_K = 50
_PROMPTS_OF_A_KIND = 3
_CHATS = ("talk", "code", "sums")
_REPETITION = "repetition"
_TEXT = "text"


class _Setting(NamedTuple):
    """What is timed."""

    pair: model_pair.ModelPair
    stop_token: int
    prompts: dict[str, list[list[int]]]  # token ids by kind


@cache
def _setting() -> _Setting:
    pair = model_pair.load_pair("smollm2", "trained")
    template = models.chat_template("smollm2")
    assert template is not None  # SmolLM2 has one

    def chat(text: str) -> list[int]:
        rendered = template.render([{"role": "user", "content": text}])
        return pair.tokenizer.encode(rendered, add_special_tokens=False).ids

    prompts = {kind: [chat(text) for text in KINDS[kind][:_PROMPTS_OF_A_KIND]] for kind in _CHATS}
    prompts[_REPETITION] = [pair.tokenizer.encode(text).ids for text in REPETITIVE]
    prompts[_TEXT] = [pair.tokenizer.encode(text).ids[:48] for text in PROMPTS[:_PROMPTS_OF_A_KIND]]
    stop_token = pair.tokenizer.token_to_id("<|im_end|>")
    assert stop_token is not None
    return _Setting(pair, stop_token, prompts)


class _Run(NamedTuple):
    seconds: float
    tokens: int
    text: list[int]
    rounds: int


def _decode(drafters: Drafters, prompt: list[int], index: int, **options: Any) -> _Run:
    """Decode one prompt; the seconds are those after the first round."""
    setting = _setting()
    stream = decoding.stream(
        races.new_key(index),
        setting.pair.target.language_model,
        drafters,
        [prompt],
        options=decoding.DecodeOptions(
            max_new_tokens=_NEW_TOKENS, stop_tokens=(setting.stop_token,), **options
        ),
    )
    first = next(stream)[0].tolist()
    start = time.perf_counter()
    generation = stream.finish()
    seconds = time.perf_counter() - start
    text = np.asarray(generation.tokens[0, : generation.lengths[0]]).tolist()
    return _Run(seconds, len(text) - len(first), text, int(generation.metrics.rounds))


def _ratios(
    drafters: Drafters, kind: str, repeats: int, **options: Any
) -> tuple[list[float], Line]:
    """Plain seconds a token over those with drafts, for each turn, and other figures."""
    prompts = _setting().prompts[kind]
    options = dict(top_k=_TOP_K, scheme="gumbel_topk") | options
    plain_options = {name: options[name] for name in ("top_k", "scheme", "temperature")}
    ratios, plain_times, fast_times = [], [], []
    runs: list[_Run] = []
    equal = 0
    # The first turn compiles, and measures costs.
    for turn in range(repeats + 1):
        plain_seconds = fast_seconds = 0.0
        runs, equal = [], 0
        for index, prompt in enumerate(prompts):
            plain = _decode(None, prompt, index, **plain_options)
            fast = _decode(drafters, prompt, index, **options)
            plain_seconds += plain.seconds / max(plain.tokens, 1)
            fast_seconds += fast.seconds / max(fast.tokens, 1)
            equal += plain.text == fast.text
            runs.append(fast)
        if turn:
            ratios.append(plain_seconds / fast_seconds)
            plain_times.append(1e3 * plain_seconds / len(prompts))
            fast_times.append(1e3 * fast_seconds / len(prompts))
    return ratios, {
        "milliseconds_a_token": rounded_median(fast_times, 1),
        "plain_milliseconds_a_token": rounded_median(plain_times, 1),
        "block_efficiency": round(
            sum(len(run.text) for run in runs) / sum(run.rounds for run in runs), 2
        ),
        "equal_texts": f"{equal} of {len(prompts)}",
    }


def trained_drafter(repeats: int, *, temperature: float, label: str, **shape: Any) -> Line:
    """The drafter that comes with SmolLM2 on chat prompts, always on, in one shape."""
    ratios, figures = _ratios(
        _setting().pair.drafter, "talk", repeats, temperature=temperature, **shape
    )
    name = f"trained drafter, {label}, T={temperature:g}, talk, against plain"
    return {"benchmark": name, "ratio": rounded_median(ratios, 2), **figures}


def look_up(repeats: int) -> Line:
    """Look-up alone where the text repeats itself, at temperature 0."""
    ngram = decoding.ngram_lookup(_setting().pair.target.config.vocab_size)
    ratios, figures = _ratios(
        ngram, _REPETITION, repeats, temperature=0.0, num_drafts=1, draft_length=7
    )
    name = "look-up of 7 tokens, T=0, repetition, against plain"
    return {"benchmark": name, "ratio": rounded_median(ratios, 2), **figures}


def automatic(repeats: int, *, temperature: float) -> Line:
    """`decoding.auto` with the trained drafter, on all kinds of prompts."""
    drafting = decoding.auto(_setting().pair.drafter)
    by_kind = {}
    for kind in _setting().prompts:
        ratios, _ = _ratios(drafting, kind, repeats, temperature=temperature)
        by_kind[kind] = rounded_median(ratios, 2)
    return {
        "benchmark": f"automatic drafting, T={temperature:g}, against plain",
        "ratio": round(float(np.mean(list(by_kind.values()))), 2),
        "least": min(by_kind.values()),
        **by_kind,
    }


def against_prompt_lookup(repeats: int) -> Line:
    """Automatic drafting against transformers with its own prompt look-up, at temperature 0."""
    name = "automatic drafting, T=0, against transformers with prompt look-up"
    peer = peer_models.load()
    if peer is None:
        return {"benchmark": name, "skipped": "needs the peers extra (make peers)"}
    import torch

    def peer_seconds(prompt: list[int]) -> float:
        """Seconds a token, the prompt included."""
        ids = torch.tensor([prompt])
        start = time.perf_counter()
        with torch.no_grad():
            tokens = peer.generate(
                ids,
                max_new_tokens=_NEW_TOKENS,
                do_sample=False,
                prompt_lookup_num_tokens=10,
                pad_token_id=0,
            )
        return (time.perf_counter() - start) / (tokens.shape[1] - len(prompt))

    drafting = decoding.auto(_setting().pair.drafter)
    target = _setting().pair.target.language_model

    def our_seconds(prompt: list[int]) -> float:
        """The same of ours: the whole call."""
        start = time.perf_counter()
        generation = decoding.generate(
            races.new_key(0),
            target,
            drafting,
            [prompt],
            temperature=0.0,
            max_new_tokens=_NEW_TOKENS,
            stop_tokens=(_setting().stop_token,),
        )
        generation = jax.block_until_ready(generation)
        return (time.perf_counter() - start) / int(generation.lengths[0])

    by_kind = {}
    for kind, prompts in _setting().prompts.items():
        ratios = []
        for turn in range(repeats + 1):
            ours = sum(our_seconds(prompt) for prompt in prompts)
            theirs = sum(peer_seconds(prompt) for prompt in prompts)
            if turn:
                ratios.append(theirs / ours)
        by_kind[kind] = rounded_median(ratios, 2)
    ratio = round(float(np.mean(list(by_kind.values()))), 2)
    return {"benchmark": name, "ratio": ratio, "least": min(by_kind.values()), **by_kind}


SPECULATION: tuple[Benchmark, ...] = (
    *(
        partial(trained_drafter, temperature=temperature, label=label, **shape)
        for temperature in (1.0, 0.6, 0.0)
        for label, shape in (
            ("a chain of 1", dict(num_drafts=1, draft_length=1)),
            ("a chain of 3", dict(num_drafts=1, draft_length=3)),
            ("margin tree of 3", dict(tree=decoding.MarginTree(3, 3))),
            ("margin tree of 7", dict(tree=decoding.MarginTree(7, 4))),
        )
    ),
    look_up,
    *(partial(automatic, temperature=temperature) for temperature in (1.0, 0.6, 0.0)),
    against_prompt_lookup,
)
