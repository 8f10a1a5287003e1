"""Helpers of the experiments: runs that resume, options, next-token distributions of SmolLM2."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import checks, decoding, distributions, models, races
from gls_jax.distributions import pairs, prompts
from gls_jax.models import layer_selection
from gls_jax.runs import files

# Runs that resume.

# `compute_once(compute, *configuration)` is the array of `compute()`, read from disk if possible.
ComputeOnce = Callable[..., np.ndarray]


@contextmanager
def resumable_arrays(folder: Path) -> Iterator[ComputeOnce]:
    """Keep the arrays of a run on disk until the run has finished.

    Yields `compute_once(compute, *configuration)`. The `configuration` is everything that the
    array depends on. A run that is stopped keeps its arrays on disk, and the next run with the same
    configuration reads them; a run that finishes deletes them.
    """
    arrays_folder = folder / "unfinished"
    arrays_folder.mkdir(parents=True, exist_ok=True)

    def compute_once(compute: Callable[[], Any], *configuration) -> np.ndarray:
        array_path = arrays_folder / f"{_hash(configuration)}.npz"
        if not array_path.exists():
            files.write_arrays(array_path, {"array": np.asarray(compute())})
        return files.read_arrays(array_path, "part of an earlier run")["array"]

    yield compute_once
    shutil.rmtree(arrays_folder)


def _hash(configuration: Sequence) -> str:
    digest = hashlib.sha256()
    for value in configuration:
        if isinstance(value, np.ndarray):
            value = (value.shape, value.tobytes())  # the `repr` of a long array leaves numbers out
        digest.update(repr(value).encode())
    return digest.hexdigest()[:32]


# Options, keys, and next-token distributions of SmolLM2.


def remaining_layers(dropped: tuple[int, int], num_layers: int) -> tuple[int, ...]:
    """The layers of a drafter that leaves out those from `dropped[0]` to `dropped[1]`."""
    first, last = dropped
    # The library's function takes ranges from parsed text, which are never reversed.
    if not 0 <= first <= last < num_layers:
        raise ValueError(
            f"drop: expected the first and last of some of the layers 0-{num_layers - 1}, "
            f"got {dropped}"
        )
    return layer_selection.remaining_layers([dropped], num_layers)


def check_counts(experiment: object, *names: str) -> None:
    """Raise `ValueError` where an option is not a positive int."""
    for name in names:
        checks.count(getattr(experiment, name), name)


def root_key(seed: int) -> PRNGKeyArray:
    """The key of a seed.

    Raises:
        ValueError: a seed outside of 0..2^32 - 1.
    """
    return races.new_key(seed)


class Model(NamedTuple):
    """A language model as functions.

    Attributes:
        logits: tokens `i32[B, T]` to logits `[B, T, V]`.
        encode: text to tokens.
        num_layers: of the model.
    """

    logits: Callable[[np.ndarray], Any]
    encode: Callable[[str], list[int]]
    num_layers: int


@cache
def smollm2(dropped: tuple[int, int] | None = None) -> Model:
    """SmolLM2, whole or without the layers from `dropped[0]` to `dropped[1]`.

    It remembers the logits of every text, since experiments read the same texts at several
    temperatures.
    """
    kept_layers = None
    if dropped is not None:
        kept_layers = remaining_layers(dropped, smollm2().num_layers)
    checkpoint = models.load("smollm2", layers=kept_layers)
    assert checkpoint.tokenizer is not None  # SmolLM2 has one
    tokenizer = checkpoint.tokenizer
    logits_of = models.logits_function(checkpoint.model)
    known_logits: dict[bytes, Any] = {}

    def logits(tokens: np.ndarray):
        content = tokens.tobytes()
        if content not in known_logits:
            known_logits[content] = logits_of(jnp.asarray(tokens))
        return known_logits[content]

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    return Model(logits=logits, encode=encode, num_layers=checkpoint.config.num_layers)


def next_token_pairs(
    dropped: tuple[int, int],
    *,
    num_prompts: int,
    num_positions: int,
    top_k: int,
    temperature: float = 1.0,
    draft_temperature: float = 1.0,
) -> pairs.Pairs:
    """Next-token distributions of SmolLM2 and of itself without some layers.

    Args:
        dropped: first and last of the layers that the drafter leaves out.
        num_prompts: how many of the library's texts, at most eight.
        num_positions: how many first positions of each text.
        top_k: how many tokens of each model to keep; 0 keeps the vocabulary.
        temperature: of the target.
        draft_temperature: of the drafter.

    Returns:
        Log-probabilities of the drafter and of the target, `f32[M, N]` each.
    """
    num_prompts = checks.count(num_prompts, "num_prompts")
    num_positions = checks.count(num_positions, "num_positions")
    # Checked before the models are loaded.
    for value in (temperature, draft_temperature):
        decoding.check_sampling(value, top_k or None)
    target = smollm2()
    drafter = smollm2(dropped)
    texts = [target.encode(text)[:num_positions] for text in prompts.PROMPTS[:num_prompts]]
    return distributions.next_token_pairs(
        target.logits,
        drafter.logits,
        texts,
        num_positions=sum(map(len, texts)),
        temperature=temperature,
        draft_temperature=draft_temperature,
        top_k=top_k or None,
    )
