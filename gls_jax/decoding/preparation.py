"""The door of generation: everything that can be said to be wrong is said here, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

from gls_jax import checks, races, schemes
from gls_jax.decoding import engine
from gls_jax.decoding.batch_sampling import Sampling
from gls_jax.decoding.drafting import Text
from gls_jax.decoding.model import HasLanguageModel, LanguageModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.processors import check_sampling
from gls_jax.decoding.tree_shape import Shape, shape_of
from gls_jax.typing import Numbers

__all__ = ["prepare"]

_SMALLEST_BUCKET = 16


def prepare(
    key: PRNGKeyArray,
    target: LanguageModel | HasLanguageModel,
    drafters: LanguageModel | HasLanguageModel | Sequence[LanguageModel | HasLanguageModel] | None,
    prompts: Numbers,
    prompt_lengths: Numbers | None,
    options: DecodeOptions,
) -> tuple[engine.Plan, engine.Requests, Text, int]:
    """Plan, requests, texts, and the most new tokens of a request.

    Arguments are those of :func:`gls_jax.decoding.stream`; everything that can be said to be wrong
    is said here.
    """
    target = _model(target, "target")
    scheme = options.scheme
    scheme = scheme if isinstance(scheme, schemes.Scheme) else schemes.get(scheme)
    num_drafts = checks.count(options.num_drafts, "num_drafts")
    models, chains = _drafters(drafters, target, num_drafts)
    tokens, lengths = _prompts(prompts, prompt_lengths, target.vocab_size)
    batch = len(lengths)
    shape = shape_of(scheme, num_drafts, options.draft_length, options.tree)
    if reason := scheme.verify_limit(target.vocab_size, shape.list_size):
        raise ValueError(reason)
    if not models:
        shape = Shape((), False, shape.list_size)
    draft_temperatures = options.draft_temperatures if models else None
    if options.temperature is None:
        raise ValueError("temperature: expected 0 or a finite number of at least 1e-6, got None")
    check_sampling(
        options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty
    )
    draft_temperature = _draft_temperature(draft_temperatures, options.temperature, batch, shape)
    if (len(models) > 1 or draft_temperature.shape[1] > 1) and not (
        scheme.diverse and shape.chains
    ):
        what = "drafters or draft temperatures of their own"
        raise ValueError(
            f"drafters: expected one law for all drafts of scheme '{scheme.name}', got {what}"
            if not scheme.diverse
            else f"drafters: expected chains for {what}, got a tree"
        )
    each = partial(_per_request, batch=batch)
    sampling = Sampling(
        temperature=each(options.temperature, "temperature"),
        draft_temperature=draft_temperature,
        top_p=each(options.top_p, "top_p"),
        min_p=each(options.min_p, "min_p"),
        repetition_penalty=each(options.repetition_penalty, "repetition_penalty"),
        top_k=_top_k(options.top_k, target.vocab_size),
    )
    new = _new_tokens(options.max_new_tokens, batch)
    limits = lengths + new
    max_length = options.max_length
    if max_length is not None:
        if (longest := int(lengths.max())) >= checks.count(max_length, "max_length"):
            raise ValueError(
                f"prompts: expected fewer than max_length ({max_length}) tokens, got {longest}"
            )
        limits = np.minimum(limits, max_length)
    room = _bucket(tokens.shape[1])
    num_slots = room + _bucket(int(new.max())) + 1 + max(shape.num_nodes, shape.num_read)
    tokens = np.pad(tokens, ((0, 0), (0, room - tokens.shape[1])))
    text = Text(jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), None)
    stops = jnp.asarray(_stops(options.stop_tokens, batch, target.vocab_size))
    requests = engine.Requests(
        target, models, _keys(key, batch), sampling, jnp.asarray(limits, jnp.int32), stops
    )
    return engine.Plan(scheme, shape, chains, num_slots), requests, text, int(new.max())


def _top_k(value: int | None, vocab_size: int) -> int | None:
    """None where all tokens are kept, so that nothing is sorted."""
    return None if value is None or value >= vocab_size else int(value)


def _model(value, name: str) -> LanguageModel:
    model = getattr(value, "language_model", value)
    if model is not value and callable(model):
        model = model()
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"{name}: expected a gls_jax.decoding.LanguageModel, got {type(value).__name__}"
        )
    return model


def _drafters(drafters, target: LanguageModel, num_drafts: int):
    """The different models, and the chains of each."""
    if drafters is None:
        return (), ()
    if not isinstance(drafters, Sequence) or hasattr(drafters, "language_model"):
        drafters = [drafters]
    models = [_model(drafter, f"drafters[{k}]") for k, drafter in enumerate(drafters)]
    if len(models) not in (1, num_drafts):
        raise ValueError(
            f"drafters: expected one, or one for each of {num_drafts} drafts, got {len(models)}"
        )
    for k, model in enumerate(models):
        if (
            None not in (model.vocabulary, target.vocabulary)
            and model.vocabulary != target.vocabulary
        ):
            raise ValueError(
                f"drafters[{k}]: expected the tokenizer of the target, got another one"
            )
    if len(models) == 1:
        return tuple(models), (tuple(range(num_drafts)),)
    first = [
        next(j for j, other in enumerate(drafters) if other is drafter) for drafter in drafters
    ]
    chains = {j: tuple(k for k, other in enumerate(first) if other == j) for j in first}
    return tuple(models[j] for j in chains), tuple(chains.values())


def _prompts(prompts, prompt_lengths, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        # Rows of a `jax.Array` one by one are slow.
        whole = np.asarray(prompts) if hasattr(prompts, "shape") else prompts
        rows: list[np.ndarray] = [np.asarray(row) for row in whole]
    except (TypeError, ValueError):
        raise ValueError(
            f"prompts: expected token ids of B requests, got {type(prompts).__name__}"
        ) from None
    if not rows or any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in rows):
        raise ValueError(
            "prompts: expected integers of shape [B, P] or B sequences of them, got something else"
        )
    lengths = np.array([len(row) for row in rows])
    if prompt_lengths is not None:
        given = _array(prompt_lengths, "prompt_lengths", f"{len(rows)} ints")
        if given.shape != lengths.shape or given.dtype.kind not in "iu" or (given > lengths).any():
            raise ValueError(
                f"prompt_lengths: expected {len(rows)} ints of at most {lengths.max()}, got {given.tolist()}"
            )
        lengths = given
    if (lengths < 1).any():
        empty = int(np.argmax(lengths < 1))
        raise ValueError(
            f"prompts: expected at least one token for every request, got none for request {empty}"
        )
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for r, length in enumerate(lengths):
        row = rows[r][:length]
        if (wrong := row[(row < 0) | (row >= vocab_size)]).size:
            raise ValueError(
                f"prompts: expected tokens within 0..{vocab_size - 1}, got {wrong[0]} in request {r}"
            )
        tokens[r, :length] = row
    return tokens, lengths


def _new_tokens(value, batch: int) -> np.ndarray:
    numbers = _array(value, "max_new_tokens", f"an int of at least 1, or {batch} of them")
    if numbers.dtype.kind not in "iu" or numbers.shape not in ((), (batch,)) or (numbers < 1).any():
        raise ValueError(
            f"max_new_tokens: expected an int of at least 1, or {batch} of them, got {value!r}"
        )
    return np.broadcast_to(numbers, (batch,))


def _per_request(value, name: str, *, batch: int):
    if value is None:
        return None
    numbers = np.asarray(
        value, np.float32
    )  # NumPy: an operation outside `jit` would be compiled for every shape
    if numbers.shape not in ((), (batch,)):
        raise ValueError(
            f"{name}: expected one number, or one for each of {batch} requests, got shape {list(numbers.shape)}"
        )
    return jnp.asarray(np.broadcast_to(numbers, (batch,)))


def _draft_temperature(value, temperature, batch: int, shape: Shape) -> jax.Array:
    """`f32[B, 1]`, or `f32[B, K]` where the chains differ."""
    if value is None:
        return _per_request(temperature, "temperature", batch=batch)[:, None]
    numbers = _array(
        value, "draft_temperatures", f"one number, or one for each of {shape.list_size} drafts"
    )
    try:
        check_sampling(numbers)
    except ValueError as error:
        raise ValueError(f"draft_{error}") from None
    numbers = numbers.astype(np.float32)
    if numbers.shape not in ((), (1,), (shape.list_size,)):
        raise ValueError(
            f"draft_temperatures: expected one, or one for each of {shape.list_size} drafts, got {numbers.tolist()}"
        )
    numbers = np.unique(numbers) if len(np.unique(numbers)) == 1 else numbers
    return jnp.asarray(np.broadcast_to(numbers, (batch, numbers.size)))


def _stops(value, batch: int, vocab_size: int) -> np.ndarray:
    """`i32[B, M]`, M a power of two, filled up with -1."""
    value = (
        () if value is None else np.asarray(value).tolist() if hasattr(value, "shape") else value
    )
    rows: list[Any] = list(value) if isinstance(value, Iterable) else [value]
    lists = [isinstance(row, Iterable) for row in rows]
    if not any(lists):
        rows = [rows] * batch
    elif len(rows) != batch or not all(lists):
        raise ValueError(
            f"stop_tokens: expected token ids, or {batch} sequences of them, got {len(rows)} entries"
        )
    rows = [list(row) for row in rows]
    longest = max(map(len, rows))
    stops = np.full((batch, max(4, 1 << (longest - 1).bit_length())), -1, np.int32)
    for r, row in enumerate(rows):
        for m, token in enumerate(row):
            if checks.index(token, "stop_tokens") >= vocab_size:
                raise ValueError(
                    f"stop_tokens: expected tokens within 0..{vocab_size - 1}, got {token}"
                )
            stops[r, m] = token
    return stops


def _keys(key, batch: int) -> Key[Array, " B"]:
    if (
        isinstance(key, jax.Array)
        and key.ndim == 1
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        if key.shape[0] != batch:
            raise ValueError(
                f"key: expected one key, or {batch} of them for as many requests, got {key.shape[0]}"
            )
        checks.key(key[0])
        return key
    checks.key(key)
    return _folds(key, np.arange(batch))


def _array(value, name: str, expected: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected {expected}, got {value!r}") from None


def _bucket(size: int) -> int:
    """The next power of two."""
    return max(_SMALLEST_BUCKET, 1 << (size - 1).bit_length())


_folds = jax.jit(races.keys.fold_in_each)
