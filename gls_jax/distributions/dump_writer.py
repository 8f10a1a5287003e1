"""Making a dump: texts, the laws of two models after each of their prefixes, cut to the likeliest
tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.decoding import LanguageModel, check_sampling, generate, log_probs
from gls_jax.decoding.batch_sampling import over_items
from gls_jax.distributions.dump import DTYPES, Dump, Rows, Writer, open_dump
from gls_jax.runs import files

__all__ = ["Document", "Sampling", "check_context", "own_texts", "pieces", "write"]


class Document(NamedTuple):
    """A text whose laws are read.

    Attributes:
        tokens: all of it.
        start: the first token whose law is wanted, at least 1.
    """

    tokens: Sequence[int]
    start: int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters, the same for the text and for its laws.

    Attributes:
        temperature: of the target.
        draft_temperature: of the drafter; None takes the target's.
        top_k, top_p, min_p: as in :func:`gls_jax.decoding.log_probs`.
    """

    temperature: float = 1.0
    draft_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def check(self) -> None:
        """Raise `ValueError` for parameters that give no law."""
        for temperature in (self.temperature, self.of_drafter):
            check_sampling(temperature, self.top_k, self.top_p, self.min_p)

    @property
    def of_drafter(self) -> float:
        """Temperature of the drafter."""
        return self.temperature if self.draft_temperature is None else self.draft_temperature

    def laws(self, logits: Array, temperature: float) -> Array:
        """Log-probabilities under these parameters."""
        return log_probs(
            logits, temperature=temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p
        )


def check_context(context: int) -> int:
    """The tokens of a piece of text; raise `ValueError` for fewer than a prefix and the token that
    follows it.
    """
    if checks.count(context, "context") < 2:
        raise ValueError(f"context: expected at least 2 tokens, got {context}")
    return context


def own_texts(
    key: PRNGKeyArray,
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    length: int,
    batch: int = 8,
    stop_tokens: Sequence[int] = (),
    first: int = 0,
) -> Iterator[list[Document]]:
    """Without end: continuations that the target samples, `batch` at a time, the prompts in turn.

    Args:
        key: text `r` uses ``fold_in(key, r)``.
        target: the model.
        prompts: token ids.
        sampling: the parameters.
        length: tokens of a continuation.
        batch: texts sampled together.
        stop_tokens: end a text.
        first: batch to begin with.
    """
    for chunk in itertools.count(first):
        numbers = np.arange(chunk * batch, (chunk + 1) * batch)
        some = [prompts[int(r) % len(prompts)] for r in numbers]
        made = generate(
            races.keys.fold_in_each(key, numbers),
            target,
            None,
            some,
            max_new_tokens=length,
            stop_tokens=stop_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        tokens, lengths = np.asarray(made.tokens), np.asarray(made.lengths)
        yield [
            Document([*prompt, *row[:n].tolist()], len(prompt))
            for prompt, row, n in zip(some, tokens, lengths, strict=True)
        ]


def pieces(
    texts: Sequence[Sequence[int]], context: int, first: int = 0
) -> Iterator[list[Document]]:
    """A user's texts, cut into pieces of `context` tokens, each read on its own."""
    cut = [list(text[at : at + context]) for text in texts for at in range(0, len(text), context)]
    yield from (
        [Document(tokens, 1)] for tokens in [piece for piece in cut if len(piece) > 1][first:]
    )


def write(
    folder: str | Path,
    target: LanguageModel,
    drafter: LanguageModel,
    documents: Callable[[int], Iterator[list[Document]]],
    sampling: Sampling,
    *,
    num_positions: int,
    context: int,
    num_kept: int = 64,
    dtype: str = "float32",
    facts: dict[str, Any],
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Dump:
    """Dump the laws of two models along texts.

    Args:
        folder: of the dump, made if missing.
        target, drafter: models on one vocabulary.
        documents: `documents(c)` yields the chunks of texts from chunk `c` on.
        sampling: the parameters.
        num_positions: positions at most.
        context: longest text, prompt included; one shape, one compilation.
        num_kept: `m`, likeliest tokens of each law that are kept.
        dtype: "float32" or "float16", of the log-probabilities.
        facts: what else the numbers depend on, as JSON: names of the models, the text, and as
            `own_text` whether the target sampled it.
        resume: go on with the dump in the folder.
        progress: called with `(positions done, positions)`.

    Returns:
        The :class:`gls_jax.distributions.Dump`.

    Raises:
        ValueError: a parameter out of range, another dump in the folder or a broken one, or texts
        without a position. OSError: the folder cannot be written, or another run is at work in it.
    """
    sampling.check()
    num_kept = min(checks.count(num_kept, "num_kept"), target.vocab_size)
    num_positions, context = checks.count(num_positions, "num_positions"), check_context(context)
    checks.one_of(dtype, DTYPES, "dtype")
    asked = {
        **facts,
        "sampling": dataclasses.asdict(sampling),
        "num_kept": num_kept,
        "dtype": dtype,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder):
        writer = Writer(folder, asked, num_positions, 2 * num_kept + 1, resume=resume)
        if not writer.finished:
            chunks = documents(writer.chunks)
            following = next(chunks, None)
            if not writer.done and not any(
                len(document.tokens) > document.start for document in following or ()
            ):
                raise ValueError("documents: expected a position in the first chunk, got none")
            writer.begin()
            while following is not None:
                parts = [
                    _rows(target, drafter, document, sampling, num_kept, context)
                    for document in following
                ]
                left = num_positions - writer.done
                rows = Rows(*(np.concatenate(field)[:left] for field in zip(*parts, strict=True)))
                following = None if len(rows.begins) == left else next(chunks, None)
                writer.append(rows, finished=following is None)
                if progress is not None:
                    progress(writer.done, num_positions)
        return open_dump(folder)


def _rows(
    target, drafter, document: Document, sampling: Sampling, num_kept: int, context: int
) -> Rows:
    tokens = np.zeros((1, context), np.int32)  # causal, so the padding is never seen
    tokens[0, : len(document.tokens)] = document.tokens
    cut = _cut(target, drafter, tokens, np.roll(tokens, -1), sampling=sampling, num_kept=num_kept)
    wanted = slice(document.start - 1, len(document.tokens) - 1)
    ids, log_p, log_q, tail_p, tail_q = (np.asarray(field)[wanted] for field in cut)
    return Rows(ids, log_p, log_q, tail_p, tail_q, np.arange(len(ids)) == 0)


@partial(jax.jit, static_argnames=("sampling", "num_kept"))
def _cut(
    target: LanguageModel,
    drafter: LanguageModel,
    tokens,
    following,
    *,
    sampling: Sampling,
    num_kept: int,
):
    """Tokens `[T, 2 m + 1]`, both laws on them, and both tails; see :class:`gls_jax.distributions.Rows`."""
    temperatures = (sampling.of_drafter, sampling.temperature)
    logits = [
        over_items(_logits(model, tokens), target.vocab_size)[0] for model in (drafter, target)
    ]
    log_p, log_q = (sampling.laws(*both) for both in zip(logits, temperatures, strict=True))
    likeliest = [jax.lax.top_k(law, num_kept)[1] for law in (log_q, log_p)]
    ids = jnp.concatenate([following[0, :, None], *likeliest], axis=1)
    return jax.lax.map(_row, (log_p, log_q, ids))


def _row(laws):
    log_p, log_q, ids = laws
    width = len(ids)
    again = jnp.any((ids[:, None] == ids) & jnp.tri(width, k=-1, dtype=bool), axis=1)
    possible = jnp.isfinite(log_p[ids]) | jnp.isfinite(log_q[ids]) | (jnp.arange(width) == 0)
    order = jnp.argsort(again | ~possible, stable=True)
    ids, kept = ids[order], (possible & ~again)[order]
    cut = [jnp.where(kept, law[ids], -jnp.inf) for law in (log_p, log_q)]
    tails = [jnp.sum(jnp.exp(law).at[ids].set(0)) for law in (log_p, log_q)]
    return (jnp.where(kept, ids, -1), *cut, *tails)


def _logits(model: LanguageModel, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return model.apply(model.params, tokens, positions, None, model.init_cache(*tokens.shape))[0]
