"""Runs of decoding that several experiments make: SmolLM2, a drafter, questions, one setting."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import questions, shared
from gls_jax import decoding, models

# Of the drafted chains.
LENGTH = 4
# Tokens that target and drafter sample from, as in the paper.
TOP_K = 50


class Setting(NamedTuple):
    """How tokens are drafted and verified: K chains of length L, or a tree of that depth."""

    part: str
    scheme: str
    num_drafts: int
    length: int = LENGTH
    tree: Any = None
    temperature: float = 1.0
    draft_temperatures: tuple[float, ...] | None = None

    @property
    def shape(self) -> str:
        """The drafts in words."""
        if self.tree is None:
            return f"{self.num_drafts} x {self.length}"
        if isinstance(self.tree, decoding.MarginTree):
            return f"margin tree of {self.tree.budget}"
        if isinstance(self.tree, decoding.BestFirstTree):
            return f"best-first tree of {self.tree.budget}"
        return "tree " + "-".join(map(str, self.tree))


def load_pair(dropped: tuple[int, int]) -> tuple[models.Checkpoint, decoding.LanguageModel]:
    """SmolLM2, and itself without the layers from `dropped[0]` to `dropped[1]` as the drafter."""
    target = models.load("smollm2")
    layers = shared.remaining_layers(dropped, target.config.num_layers)
    return target, models.language_model(models.keep_layers(target.model, layers))


def question_prompts(target: models.Checkpoint, num_prompts: int) -> list[list[int]]:
    """Questions as token ids, cycling over the kinds."""
    # Transposed: the first question of every kind, then the second of every kind, ...
    rounds = zip(*questions.KINDS.values(), strict=True)
    texts = [text for kinds in rounds for text in kinds]
    if num_prompts > len(texts):
        raise ValueError(f"num_prompts: expected at most {len(texts)}, got {num_prompts}")
    assert target.tokenizer is not None  # SmolLM2 has one
    encode = target.tokenizer.encode
    return [encode(f"Question: {text}\nAnswer:").ids for text in texts[:num_prompts]]


def request_keys(seed: int, num_requests: int) -> jax.Array:
    """A key for each request, which does not depend on the batch that the request is in."""
    key = shared.root_key(seed)
    return jax.vmap(lambda request: jax.random.fold_in(key, request))(np.arange(num_requests))


def start_run(target, drafter, prompts, keys, setting: Setting, new_tokens: int) -> decoding.Stream:
    """Start decoding the prompts in one setting."""
    return decoding.stream(
        keys,
        target,
        drafter,
        prompts,
        options=decoding.DecodeOptions(
            scheme=setting.scheme,
            num_drafts=setting.num_drafts,
            draft_length=setting.length,
            tree=setting.tree,
            temperature=setting.temperature,
            draft_temperatures=setting.draft_temperatures,
            top_k=TOP_K,
            max_new_tokens=new_tokens,
        ),
    )


def acceptance_histogram(
    target, drafter, prompts, keys, setting: Setting, rounds: int, batch: int
) -> np.ndarray:
    """In how many rounds each prompt accepted 0, 1, ... drafts, `i64[prompts, depth + 1]`.

    Args:
        target, drafter: the models.
        prompts, keys: of the requests.
        setting: how tokens are drafted and verified.
        rounds: of each prompt.
        batch: requests decoded together.
    """
    # More tokens than the rounds can emit, so that no request ends before the last round.
    new_tokens = rounds * (setting.length + 1)
    batch_histograms = []
    for first_prompt in range(0, len(prompts), batch):
        batch_rows = slice(first_prompt, first_prompt + batch)
        batch_prompts = prompts[batch_rows]
        run = start_run(target, drafter, batch_prompts, keys[batch_rows], setting, new_tokens)
        for _ in range(rounds):
            next(run, None)
        batch_histograms.append(run.generation.metrics.histogram)
    return np.concatenate(batch_histograms)
