"""Whether drafting pays: decoding of one request against plain generation, by kind of prompt.

Against plain generation only decoding is timed, without the prompt and the first round, and both
sides take turns, prompt by prompt. Against transformers whole calls are timed. Automatic drafting
measures its costs in the first turns, which are not timed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

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


_Ways: TypeAlias = Mapping[str, tuple[Drafters, dict[str, Any]]]
"""Ways of drafting by their names: drafters and options."""


class _Drafting(NamedTuple):
    """One way of drafting, compared with plain generation.

    Times are medians over the turns. The other figures are those of the last turn.

    Attributes:
        ratio: seconds for each token of plain generation, divided by those of this way.
        milliseconds: for each token.
        block_efficiency: new tokens divided by rounds.
        equal_texts: how many texts are equal to those of plain generation.
    """

    ratio: float
    milliseconds: float
    block_efficiency: float
    equal_texts: str


def _against_plain(
    prompts: list[list[int]],
    repeats: int,
    temperature: float,
    ways: _Ways,
) -> tuple[float, dict[str, _Drafting]]:
    """Milliseconds of plain generation for each token, and each way of drafting; all take turns."""
    options = dict(top_k=_TOP_K, scheme="gumbel_topk", temperature=temperature)
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *ways)}
    runs: dict[str, list[_Run]] = {}
    # The first turn compiles, and measures costs.
    for turn in range(repeats + 1):
        runs = {name: [] for name in seconds}
        for index, prompt in enumerate(prompts):
            runs["plain"].append(_decode(None, prompt, index, **options))
            for name, (drafters, shape) in ways.items():
                runs[name].append(_decode(drafters, prompt, index, **options, **shape))
        if turn > 0:
            for name, own in runs.items():
                each = [run.seconds / max(run.tokens, 1) for run in own]
                seconds[name].append(sum(each) / len(each))
    plain = np.array(seconds["plain"])
    texts = [run.text for run in runs["plain"]]
    results = {}
    for name in ways:
        own = runs[name]
        equal = sum(run.text == text for run, text in zip(own, texts, strict=True))
        emitted, rounds = sum(len(run.text) for run in own), sum(run.rounds for run in own)
        results[name] = _Drafting(
            ratio=rounded_median(plain / np.array(seconds[name]), 2),
            milliseconds=rounded_median(1e3 * np.array(seconds[name]), 1),
            block_efficiency=round(emitted / rounds, 2),
            equal_texts=f"{equal} of {len(prompts)}",
        )
    return rounded_median(1e3 * plain, 1), results


def trained_drafter(repeats: int, *, temperature: float) -> Line:
    """The drafter that comes with SmolLM2 on chat prompts, always on, in three shapes."""
    setting = _setting()
    drafter = setting.pair.drafter
    ways: _Ways = {
        "chain_of_3": (drafter, dict(num_drafts=1, draft_length=3)),
        "margin_tree_of_3": (drafter, dict(tree=decoding.MarginTree(3, 3))),
        "margin_tree_of_7": (drafter, dict(tree=decoding.MarginTree(7, 4))),
    }
    prompts = [prompt for kind in _CHATS for prompt in setting.prompts[kind]]
    plain_milliseconds, results = _against_plain(prompts, repeats, temperature, ways)
    line: Line = {
        "benchmark": f"trained drafter, T={temperature:g}, chats, against plain",
        "plain_milliseconds_a_token": plain_milliseconds,
    }
    for name, result in results.items():
        line[f"{name}_ratio"] = result.ratio
        line[f"{name}_milliseconds_a_token"] = result.milliseconds
        line[f"{name}_block_efficiency"] = result.block_efficiency
        line[f"{name}_equal_texts"] = result.equal_texts
    return line


def look_up(repeats: int) -> Line:
    """Look-up alone where the text repeats itself, at temperature 0."""
    setting = _setting()
    ngram = decoding.ngram_lookup(setting.pair.target.config.vocab_size)
    ways: _Ways = {"look-up": (ngram, dict(num_drafts=1, draft_length=7))}
    prompts = setting.prompts[_REPETITION]
    plain_milliseconds, results = _against_plain(prompts, repeats, 0.0, ways)
    result = results["look-up"]
    return {
        "benchmark": "look-up of 7 tokens, T=0, repetition, against plain",
        "ratio": result.ratio,
        "milliseconds_a_token": result.milliseconds,
        "plain_milliseconds_a_token": plain_milliseconds,
        "block_efficiency": result.block_efficiency,
        "equal_texts": result.equal_texts,
    }


def automatic(repeats: int, *, temperature: float) -> Line:
    """`decoding.auto` with the trained drafter, on all kinds of prompts."""
    setting = _setting()
    ways: _Ways = {"auto": (decoding.auto(setting.pair.drafter), {})}
    by_kind = {
        kind: _against_plain(prompts, repeats, temperature, ways)[1]["auto"]
        for kind, prompts in setting.prompts.items()
    }
    ratios = {kind: result.ratio for kind, result in by_kind.items()}
    return {
        "benchmark": f"automatic drafting, T={temperature:g}, against plain",
        "ratio": round(float(np.mean(list(ratios.values()))), 2),
        "least": min(ratios.values()),
        **ratios,
        "equal_texts": ", ".join(
            f"{kind} {result.equal_texts}" for kind, result in by_kind.items()
        ),
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
    *(partial(trained_drafter, temperature=temperature) for temperature in (1.0, 0.6, 0.0)),
    look_up,
    *(partial(automatic, temperature=temperature) for temperature in (1.0, 0.6, 0.0)),
    against_prompt_lookup,
)
