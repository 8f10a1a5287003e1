"""Generation: prompts in, texts out, at once or round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from gls_jax.decoding import engine
from gls_jax.decoding.choice import Drafters, first_choice
from gls_jax.decoding.cost_measurement import CostMeasurement, cost_measurement
from gls_jax.decoding.metrics import Metrics
from gls_jax.decoding.model import AnyModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.preparation import Prepared, prepare
from gls_jax.decoding.tree_shape import DynamicTree
from gls_jax.schemes import Scheme
from gls_jax.typing import Numbers

__all__ = ["BrokenLogits", "Generation", "Stream", "generate", "stream"]

# The largest int32; the loop ends when all requests have.
_ALL_ROUNDS = 2**31 - 1
# The keys of `engine.PARTS` in `Metrics.seconds`, which result files contain: "verify" is the
# target's reading, and "select" includes keeping.
_PARTS = ("draft", "verify", "select")


class Generation(NamedTuple):
    """Generated texts.

    Attributes:
        tokens: `i32[B, max_new_tokens]`, the stop token included; 0 after the end.
        lengths: `i32[B]`.
        metrics: :class:`gls_jax.decoding.Metrics`.
    """

    tokens: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    metrics: Metrics


class BrokenLogits(ValueError):
    """A model gave invalid logits: NaN or `+inf` among them, or all `-inf`.

    Attributes:
        generation: the texts so far; those of the other requests are complete.
    """

    def __init__(self, message: str, generation: Generation) -> None:
        super().__init__(message)
        self.generation = generation


def generate(
    key: PRNGKeyArray,
    target: AnyModel,
    drafters: Drafters,
    prompts: Numbers,
    *,
    prompt_lengths: Numbers | None = None,
    scheme: str | Scheme = DecodeOptions.scheme,
    num_drafts: int = DecodeOptions.num_drafts,
    draft_length: int = DecodeOptions.draft_length,
    tree: Sequence[int] | DynamicTree | None = DecodeOptions.tree,
    max_new_tokens: Numbers = DecodeOptions.max_new_tokens,
    temperature: Numbers = DecodeOptions.temperature,
    draft_temperatures: Numbers | None = DecodeOptions.draft_temperatures,
    top_k: int | None = DecodeOptions.top_k,
    top_p: Numbers | None = DecodeOptions.top_p,
    min_p: Numbers | None = DecodeOptions.min_p,
    repetition_penalty: Numbers | None = DecodeOptions.repetition_penalty,
    stop_tokens: Numbers | None = DecodeOptions.stop_tokens,
    max_length: int | None = DecodeOptions.max_length,
    timed: bool = False,
) -> Generation:
    """Sample texts of the target by speculative decoding.

    Whatever the scheme and the drafters, the texts have exactly the target's distribution. A token
    depends on its request's key, its position, the text before it and the target. Under a strongly
    invariant scheme it depends on nothing else: it equals the token that plain generation with the
    same key emits, up to ties that rounding decides. It does not depend on the other requests of
    the batch, unless drafting is automatic and the scheme is not strongly invariant.

    Everything is compiled once per combination of models, scheme, shape of the tree, batch size,
    set of sampling parameters that are not None, and value of `top_k`. Prompt length,
    `max_new_tokens` and the number of stop tokens count rounded up to powers of two.

    Args:
        key: one typed key, of which request `r` uses ``fold_in(key, r)``; or `B` keys.
        target: a :class:`LanguageModel`, or a checkpoint that has one.
        drafters: one model; a sequence of K models, one per chain; :func:`auto`, which chooses in
            every round; or None for plain generation.
        prompts: `i32[B, P]`, padded at the end, or B sequences of token ids.
        prompt_lengths: `i32[B]`, each at least 1; None takes the whole prompts.
        scheme, num_drafts, draft_length, tree: what is drafted, and who verifies it. These and the
            following are described in :class:`DecodeOptions`.
        max_new_tokens, stop_tokens, max_length: where the texts end.
        temperature, draft_temperatures: of the target and of the drafters.
        top_k, top_p, min_p, repetition_penalty: the other sampling parameters.
        timed: whether to measure the time of each part. The host then waits for every part, which
            is slower.

    Returns:
        :class:`Generation`.

    Raises:
        ValueError: arguments out of range or that do not fit together, before any work.
        BrokenLogits: a `ValueError` after the work, if a model gave invalid logits; it carries all
            texts.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> table = jax.random.normal(jax.random.key(0), (2, 7, 7))
    >>> bigram = lambda params, tokens: params[tokens]
    >>> target = decoding.from_function(bigram, table[0], 7)
    >>> drafter = decoding.from_function(bigram, table[0] + table[1], 7)
    >>> key, prompts, options = jax.random.key(1), [[3], [5, 2]], dict(max_new_tokens=8)
    >>> fast = decoding.generate(key, target, drafter, prompts, num_drafts=2, **options)
    >>> plain = decoding.generate(key, target, None, prompts, **options)
    >>> bool((fast.tokens == plain.tokens).all()), fast.metrics.rounds < plain.metrics.rounds
    (True, True)
    """
    options = DecodeOptions(
        scheme=scheme,
        num_drafts=num_drafts,
        draft_length=draft_length,
        tree=tree,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        draft_temperatures=draft_temperatures,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_tokens=stop_tokens,
        max_length=max_length,
    )
    run = stream(
        key,
        target,
        drafters,
        prompts,
        prompt_lengths=prompt_lengths,
        options=options,
        timed=timed,
    )
    return run.finish()


def stream(
    key: PRNGKeyArray,
    target: AnyModel,
    drafters: Drafters,
    prompts: Numbers,
    *,
    prompt_lengths: Numbers | None = None,
    options: DecodeOptions | None = None,
    timed: bool = False,
) -> Stream:
    """:func:`generate` round by round: iterate over the result for the tokens as they are accepted.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> bigram = lambda params, tokens: params[tokens]
    >>> model = decoding.from_function(bigram, jnp.eye(7)[::-1] * 9, 7)
    >>> options = decoding.DecodeOptions(draft_length=2, max_new_tokens=6)
    >>> run = decoding.stream(jax.random.key(1), model, model, [[3]], options=options)
    >>> [len(new[0]) for new in run], run.generation.lengths.tolist()
    ([3, 3], [6])
    """
    options = DecodeOptions() if options is None else options
    prepared = prepare(key, target, drafters, prompts, prompt_lengths, options)
    return Stream(prepared, timed)


class Stream(Iterator[list[Int[np.ndarray, " new"]]]):
    """A run in progress: each round gives an array of new tokens for each request."""

    def __init__(self, prepared: Prepared, timed: bool) -> None:
        self._config, self._requests, text, self._max_new_tokens, costs = prepared
        if self._config.modes and timed:
            raise ValueError("timed: expected False with automatic drafting, got True")
        self._prompt_lengths = np.asarray(text.length)
        self._seconds = dict.fromkeys((*_PARTS, "other"), 0.0) if timed else None
        self._state = self._measured("other", engine.prefill, self._config, self._requests, text)
        self._measurement: CostMeasurement | None = None
        if self._config.modes:
            self._measurement = cost_measurement(self._config, self._requests, costs)
            choice = first_choice(self._config.modes, self._measurement.costs)
            self._state = self._state._replace(choice=choice)

    def __next__(self) -> list[Int[np.ndarray, " new"]]:
        if not self._is_active():
            # Only now, when the other requests are complete.
            self._raise_if_invalid()
            raise StopIteration
        # Read before the round, which takes over the memory of the state.
        before = np.asarray(self._state.text.length)
        self._advance(1)
        return self._tokens_from(before)

    def finish(self) -> Generation:
        """All remaining rounds at once."""
        while self._is_active():
            self._advance(_ALL_ROUNDS)
        self._raise_if_invalid()
        return self.generation

    @property
    def generation(self) -> Generation:
        """The texts so far."""
        # With NumPy: JAX would compile an operation outside `jit` for every shape.
        rows = self._tokens_from(self._prompt_lengths)
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), self._max_new_tokens), np.int32)
        for r, row in enumerate(rows):
            tokens[r, : len(row)] = row
        histogram = np.asarray(self._state.histogram, np.int64)
        shape = self._config.shape
        metrics = Metrics(
            histogram=histogram,
            emitted=lengths.astype(np.int64),
            nodes=shape.num_nodes,
            calls_per_round=shape.depth * len(self._requests.drafters),
            rounds=int(histogram.sum(axis=1).max(initial=0)),
            seconds=None if self._seconds is None else dict(self._seconds),
            measured_calls=np.asarray(self._state.draft_calls, np.int64),
            drafted=np.asarray(self._state.num_drafted, np.int64),
            modes=self._rounds_by_mode(),
            tried=np.asarray(self._state.tried, np.int64),
        )
        tokens, lengths = jax.device_put((tokens, lengths))
        return Generation(tokens=tokens, lengths=lengths, metrics=metrics)

    def _rounds_by_mode(self) -> dict[str, int] | None:
        """Rounds of the batch in each mode of automatic drafting."""
        if not self._config.modes:
            return None
        rounds = np.asarray(self._state.choice.rounds).tolist()
        by_name: dict[str, int] = {}
        for mode, count in zip(self._config.modes, rounds, strict=True):
            by_name[mode.name] = by_name.get(mode.name, 0) + count
        return by_name

    def _tokens_from(self, starts):
        """The tokens of each text from a position on."""
        text = self._state.text
        rows = zip(np.asarray(text.tokens), starts, np.asarray(text.length), strict=True)
        return [row[start:end] for row, start, end in rows]

    def _is_active(self) -> bool:
        return bool(np.asarray(self._state.is_active).any())

    def _advance(self, rounds: int) -> None:
        """At most `rounds` rounds; exactly one in a timed run, where each part is a program."""
        if self._measurement is not None:
            # Costs are measured in single rounds, each in a mode that is forced.
            while not self._measurement.is_complete and self._is_active() and rounds > 0:
                self._state = self._measurement.run(self._requests, self._state)
                rounds -= 1
            if self._measurement.is_complete:
                self._state = self._measurement.known(self._state)
            if rounds == 0:
                return
        if self._seconds is None:
            self._state = engine.run(self._config, self._requests, self._state, rounds)
            return
        compiled = zip(_PARTS, _compiled_parts(), strict=True)
        parts = [partial(self._measured, name, part) for name, part in compiled]
        self._state = engine.one_round(self._config, parts, self._requests, self._state)

    def _measured(self, name: str, function: Callable, *inputs):
        """`function(*inputs)`; in a timed run its time is added to the seconds of `name`."""
        if self._seconds is None:
            return function(*inputs)
        started = time.perf_counter()
        outputs = jax.block_until_ready(function(*inputs))
        self._seconds[name] += time.perf_counter() - started
        return outputs

    def _raise_if_invalid(self) -> None:
        has_invalid_logits = np.asarray(self._state.has_invalid_logits)
        if has_invalid_logits.any():
            rows = ", ".join(map(str, np.flatnonzero(has_invalid_logits)))
            raise BrokenLogits(
                "logits: expected numbers with a largest one, got NaN or infinite ones for request "
                f"{rows}; the others' texts are in this error's `generation`",
                self.generation,
            )


@cache
def _compiled_parts():
    """Each part of a round as a program, which takes over the memory of the caches it changes."""
    donated = (["drafter_caches"], ["target_cache"], ["caches", "target_cache"])
    return [
        jax.jit(part, static_argnames=["config"], donate_argnames=names)
        for part, names in zip(engine.PARTS, donated, strict=True)
    ]
