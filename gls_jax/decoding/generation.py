"""Generation: requests in, texts out, at once or as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from gls_jax.decoding import engine
from gls_jax.decoding.drafting import Text
from gls_jax.decoding.metrics import Metrics
from gls_jax.decoding.model import HasLanguageModel, LanguageModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.preparation import prepare
from gls_jax.decoding.tree_shape import MarginTree
from gls_jax.schemes import Scheme
from gls_jax.typing import Numbers

__all__ = ["BrokenLogits", "Generation", "Stream", "generate", "stream"]


class Generation(NamedTuple):
    """What came out.

    Attributes:
        tokens: `i32[B, max_new_tokens]`, the stop token included; 0 behind the end.
        lengths: `i32[B]`.
        metrics: :class:`gls_jax.decoding.Metrics`.
    """

    tokens: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    metrics: Metrics


class BrokenLogits(ValueError):
    """A model gave logits that are no law (NaN, +inf, or nothing possible).

    Attributes:
        generation: what there is, the other requests' whole texts included.
    """

    def __init__(self, message: str, generation: Generation) -> None:
        super().__init__(message)
        self.generation = generation


def generate(
    key: PRNGKeyArray,
    target: LanguageModel | HasLanguageModel,
    drafters: LanguageModel | HasLanguageModel | Sequence[LanguageModel | HasLanguageModel] | None,
    prompts: Numbers,
    *,
    prompt_lengths: Numbers | None = None,
    scheme: str | Scheme = DecodeOptions.scheme,
    num_drafts: int = DecodeOptions.num_drafts,
    draft_length: int = DecodeOptions.draft_length,
    tree: Sequence[int] | MarginTree | None = DecodeOptions.tree,
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
    """Texts of the target, drafted by others: exactly its law, whatever the scheme and the
    drafters.

    A token depends on its request's key, its position, the text before it and the target; under a
    strongly invariant scheme on nothing else, and it equals what plain generation with the same key
    emits, up to ties that rounding decides, in whatever round it was accepted. It never depends on
    who shares the batch.

    Compiled once for a bucket: models, scheme, shape of the tree, which sampling parameters are
    given and the value of `top_k`, batch size, and up to the next power of two prompt length,
    `max_new_tokens` and number of stop tokens.

    Args:
        key: one typed key, request `r` using ``fold_in(key, r)``, or `B` keys.
        target: a :class:`LanguageModel`, or a checkpoint that has one.
        drafters: one model; a sequence of K, each drafting its own chain; or None, plain
            generation.
        prompts: `i32[B, P]`, filled up at the end, or B sequences of token ids.
        prompt_lengths: `i32[B]`, each at least 1; None takes the whole prompts.
        scheme: name or :class:`gls_jax.schemes.Scheme`.
        num_drafts: K chains.
        draft_length: L, their length.
        tree: children at each depth of a static tree, or a :class:`MarginTree`, in place of K
            chains of length L.
        max_new_tokens: one number, or one a request.
        temperature: of the target, 0 for greedy; one number, or one a request.
        draft_temperatures: one number, or one a chain; None takes the target's.
        top_k: largest logits kept, for all.
        top_p, min_p, repetition_penalty: one number, or one a request; see
            :func:`gls_jax.decoding.log_probs`.
        stop_tokens: token ids that end a text, or B sequences of them.
        max_length: longest text, prompt included: the model's context; None sets no limit.
        timed: whether to measure the time of each part, at the cost of waiting for each.

    Returns:
        :class:`Generation`.

    Raises:
        ValueError: what does not fit together, before any work. BrokenLogits: a `ValueError` after
        the work, when a model gave logits that are no law; it carries all texts.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> table = jax.random.normal(jax.random.key(0), (2, 7, 7))
    >>> bigram = lambda params, tokens: params[tokens]
    >>> target, drafter = (
    ...     decoding.from_function(bigram, params, 7) for params in (table[0], table[0] + table[1])
    ... )
    >>> ask = dict(max_new_tokens=8, scheme="gumbel_topk")
    >>> fast = decoding.generate(
    ...     jax.random.key(1), target, drafter, [[3], [5, 2]], num_drafts=2, **ask
    ... )
    >>> plain = decoding.generate(jax.random.key(1), target, None, [[3], [5, 2]], **ask)
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
        key, target, drafters, prompts, prompt_lengths=prompt_lengths, options=options, timed=timed
    )
    return run.finish()


def stream(
    key: PRNGKeyArray,
    target: LanguageModel | HasLanguageModel,
    drafters: LanguageModel | HasLanguageModel | Sequence[LanguageModel | HasLanguageModel] | None,
    prompts: Numbers,
    *,
    prompt_lengths: Numbers | None = None,
    options: DecodeOptions | None = None,
    timed: bool = False,
) -> Stream:
    """:func:`generate`, round by round: iterate over the result for the tokens as they are
    accepted.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> model = decoding.from_function(
    ...     lambda params, tokens: params[tokens], jnp.eye(7)[::-1] * 9, 7
    ... )
    >>> options = decoding.DecodeOptions(draft_length=2, max_new_tokens=6)
    >>> run = decoding.stream(jax.random.key(1), model, model, [[3]], options=options)
    >>> [len(new[0]) for new in run], run.generation.lengths.tolist()
    ([3, 3], [6])
    """
    options = DecodeOptions() if options is None else options
    return Stream(*prepare(key, target, drafters, prompts, prompt_lengths, options), timed)


class Stream(Iterator[list[Int[np.ndarray, " new"]]]):
    """A run in progress: an iterator over rounds, each an array of new tokens for each request.

    Attributes:
        generation: what there is so far.
    """

    def __init__(
        self,
        plan: engine.Plan,
        requests: engine.Requests,
        text: Text,
        max_new_tokens: int,
        timed: bool,
    ) -> None:
        self._plan, self._requests, self._size = plan, requests, max_new_tokens
        self._prompt_lengths = np.asarray(text.length)
        self._seconds = (
            dict.fromkeys(("draft", "verify", "select", "other"), 0.0) if timed else None
        )
        started = time.perf_counter()
        self._state = engine.prefill(plan, requests, text)
        if self._seconds is not None:
            jax.block_until_ready(self._state)
            self._seconds["other"] += time.perf_counter() - started

    def __next__(self) -> list[Int[np.ndarray, " new"]]:
        if not np.asarray(self._state.live).any():
            self._complain()
            raise StopIteration
        before = np.asarray(self._state.text.length)
        self._advance(1)
        after, tokens = np.asarray(self._state.text.length), np.asarray(self._state.text.tokens)
        return [row[a:b] for row, a, b in zip(tokens, before, after, strict=True)]

    def finish(self) -> Generation:
        """All that is left, in one go."""
        if self._seconds is None:
            self._advance(2**31 - 1)
        while np.asarray(self._state.live).any():
            self._advance(1)
        self._complain()
        return self.generation

    @property
    def generation(self) -> Generation:
        """What there is so far."""
        state, start = self._state, self._prompt_lengths
        lengths, text = np.asarray(state.text.length) - start, np.asarray(state.text.tokens)
        new = np.arange(self._size)
        tokens = np.take_along_axis(
            text, np.minimum(start[:, None] + new, text.shape[1] - 1), axis=1
        )
        tokens = np.where(new < lengths[:, None], tokens, 0)
        histogram, shape = np.asarray(state.accepted, np.int64), self._plan.shape
        metrics = Metrics(
            histogram,
            lengths.astype(np.int64),
            nodes=shape.num_nodes,
            calls_per_round=shape.depth * len(self._requests.drafters),
            rounds=int(histogram.sum(axis=1).max(initial=0)),
            seconds=None if self._seconds is None else dict(self._seconds),
        )
        tokens, lengths = jax.device_put(
            (tokens, lengths)
        )  # `jnp.asarray` would compile something for the shape
        return Generation(tokens, lengths, metrics)

    def _advance(self, rounds: int) -> None:
        if self._seconds is None:
            self._state = engine.run(self._plan, self._requests, self._state, rounds)
        else:
            self._timed_round(self._seconds)

    def _timed_round(self, seconds: dict[str, float]) -> None:
        def timed(name: str, part):
            def call(*given):
                started = time.perf_counter()
                made = jax.block_until_ready(part(*given))
                seconds[name] += time.perf_counter() - started
                return made

            return call

        parts = [
            timed(*both)
            for both in zip(("draft", "verify", "select"), _compiled_parts(), strict=True)
        ]
        self._state = engine.each_round(self._plan, parts, self._requests, self._state)

    def _complain(self) -> None:
        if (broken := np.asarray(self._state.broken)).any():
            rows = ", ".join(map(str, np.flatnonzero(broken)))
            raise BrokenLogits(
                f"logits: expected numbers with a largest one, got NaN or infinite ones for request {rows}; "
                f"the others' texts are in this error's `generation`",
                self.generation,
            )


@cache
def _compiled_parts():
    """Each part of a round on its own; it gives away what the next one does not need."""
    donated: list[list[str]] = [["caches"], ["target_cache"], ["caches", "target_cache"]]
    return [
        jax.jit(part, static_argnames=["plan"], donate_argnames=names)
        for part, names in zip(engine.PARTS, donated, strict=True)
    ]
