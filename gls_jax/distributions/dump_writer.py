"""Making a dump: texts, and the distributions of two models after each of their prefixes."""

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
from gls_jax.decoding.batch_sampling import resize_vocabulary
from gls_jax.distributions.dump_files import DTYPES, Dump, Rows, Writer, open_dump
from gls_jax.distributions.next_token import cut_texts
from gls_jax.runs import files

__all__ = ["Document", "Sampling", "check_context", "sampled_texts", "text_pieces", "write"]


class Document(NamedTuple):
    """A text along which distributions are read.

    Attributes:
        tokens: all of it.
        start: index of the first token whose distribution is read, at least 1.
    """

    tokens: Sequence[int]
    start: int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters, the same for the text and for the distributions along it.

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
        """Raise `ValueError` for a parameter out of range."""
        for temperature in (self.temperature, self.drafter_temperature):
            check_sampling(temperature, self.top_k, self.top_p, self.min_p)

    @property
    def drafter_temperature(self) -> float:
        """Temperature of the drafter, also where it is the target's."""
        return self.temperature if self.draft_temperature is None else self.draft_temperature

    def log_probs(self, logits: Array, temperature: float) -> Array:
        """Log-probabilities under these parameters, at one of the two temperatures."""
        return log_probs(
            logits, temperature=temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p
        )


def check_context(context_length: int) -> int:
    """Return a length of text; raise `ValueError` below 2, a prefix and the token after it."""
    if checks.count(context_length, "context_length") < 2:
        raise ValueError(f"context_length: expected at least 2 tokens, got {context_length}")
    return context_length


def sampled_texts(
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
    """Endless continuations sampled by the target, in chunks of `batch`, cycling over the prompts.

    Args:
        key: text `r` uses ``fold_in(key, r)``.
        target: the model.
        prompts: token ids.
        sampling: the parameters.
        length: tokens of a continuation.
        batch: texts sampled together.
        stop_tokens: end a text.
        first: chunk to begin with.
    """
    for chunk in itertools.count(first):
        # Numbers of the texts decide prompts and keys, so a resumed dump has the same texts.
        numbers = np.arange(chunk * batch, (chunk + 1) * batch)
        chunk_prompts = [prompts[int(number) % len(prompts)] for number in numbers]
        generation = generate(
            races.keys.fold_in_each(key, numbers),
            target,
            None,
            chunk_prompts,
            max_new_tokens=length,
            stop_tokens=stop_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        tokens, lengths = np.asarray(generation.tokens), np.asarray(generation.lengths)
        documents = []
        for row, prompt in enumerate(chunk_prompts):
            continuation = tokens[row, : lengths[row]]
            documents.append(Document([*prompt, *continuation.tolist()], len(prompt)))
        yield documents


def text_pieces(
    texts: Sequence[Sequence[int]], context_length: int, first: int = 0
) -> Iterator[list[Document]]:
    """A user's texts, cut into pieces of at most `context_length` tokens that are read separately.

    Each piece is a chunk; `first` is the index of the chunk to begin with.
    """
    pieces = [piece for piece in cut_texts(texts, context_length) if len(piece) > 1]
    for piece in pieces[first:]:
        yield [Document(piece, 1)]


def write(
    folder: str | Path,
    target: LanguageModel,
    drafter: LanguageModel,
    documents: Callable[[int], Iterator[list[Document]]],
    sampling: Sampling,
    *,
    num_positions: int,
    context_length: int,
    num_kept: int = 64,
    dtype: str = "float32",
    metadata: dict[str, Any],
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Dump:
    """Dump the next-token distributions of two models along texts.

    Args:
        folder: of the dump, made if missing.
        target, drafter: models on one vocabulary.
        documents: `documents(c)` yields the chunks of texts from chunk `c` on.
        sampling: the parameters.
        num_positions: positions at most.
        context_length: tokens of the longest text, prompt included. All texts are padded to it, so
            that the models are compiled once.
        num_kept: `m`, how many of the likeliest tokens of each model are kept.
        dtype: "float32" or "float16", of the log-probabilities.
        metadata: everything else that the numbers depend on, as JSON: names of the models, the
            text, and as `own_text` whether the target sampled it.
        resume: whether to continue the dump in the folder.
        progress: called with `(positions done, positions)`.

    Returns:
        The :class:`gls_jax.distributions.Dump`.

    Raises:
        ValueError: a parameter out of range, another dump in the folder or a broken one, or texts
            without a position.
        OSError: the folder cannot be written, or another run is using it.
    """
    sampling.check()
    num_kept = min(checks.count(num_kept, "num_kept"), target.vocab_size)
    num_positions = checks.count(num_positions, "num_positions")
    context_length = check_context(context_length)
    checks.one_of(dtype, DTYPES, "dtype")
    configuration = {
        **metadata,
        "sampling": dataclasses.asdict(sampling),
        "num_kept": num_kept,
        "dtype": dtype,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder):
        # Columns for the token that follows and for the likeliest ones of both models.
        num_columns = 2 * num_kept + 1
        writer = Writer(folder, configuration, num_positions, num_columns, resume=resume)
        if writer.finished:
            return open_dump(folder)
        chunks = documents(writer.chunks)
        chunk = next(chunks, None)
        # A text without a position is refused before files are created.
        if not writer.done and not any(_num_positions(document) > 0 for document in chunk or ()):
            raise ValueError("documents: expected a position in the first chunk, got none")
        writer.begin()
        while chunk is not None:
            parts = [
                _read(target, drafter, document, sampling, num_kept, context_length)
                for document in chunk
            ]
            num_left = num_positions - writer.done
            fields = zip(*parts, strict=True)
            rows = Rows(*(np.concatenate(arrays)[:num_left] for arrays in fields))
            # The next chunk is made first: it tells whether this one is the last.
            chunk = None if len(rows.begins) == num_left else next(chunks, None)
            writer.append(rows, finished=chunk is None)
            if progress is not None:
                progress(writer.done, num_positions)
        return open_dump(folder)


def _num_positions(document: Document) -> int:
    return len(document.tokens) - document.start


def _read(
    target: LanguageModel,
    drafter: LanguageModel,
    document: Document,
    sampling: Sampling,
    num_kept: int,
    context_length: int,
) -> Rows:
    """The rows of one document."""
    # The models are causal: the padding after the text does not change its distributions.
    tokens = np.zeros((1, context_length), np.int32)
    tokens[0, : len(document.tokens)] = document.tokens
    fields = _cut(
        target, drafter, tokens, np.roll(tokens, -1), sampling=sampling, num_kept=num_kept
    )
    # The distribution of token t is the one after t - 1.
    positions = slice(document.start - 1, len(document.tokens) - 1)
    kept_tokens, log_p, log_q, tail_p, tail_q = (np.asarray(field)[positions] for field in fields)
    return Rows(
        tokens=kept_tokens,
        log_p=log_p,
        log_q=log_q,
        tail_p=tail_p,
        tail_q=tail_q,
        begins=np.arange(len(kept_tokens)) == 0,
    )


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
    """Distributions after every prefix of `tokens` `[1, T]`, cut to the likeliest tokens.

    Returns:
        The first five fields of :class:`gls_jax.distributions.Rows`, with `W = 2 num_kept + 1`.
    """
    draft_logits = resize_vocabulary(_logits(drafter, tokens), target.vocab_size)[0]
    target_logits = resize_vocabulary(_logits(target, tokens), target.vocab_size)[0]
    log_p = sampling.log_probs(draft_logits, sampling.drafter_temperature)
    log_q = sampling.log_probs(target_logits, sampling.temperature)
    likeliest_q = jax.lax.top_k(log_q, num_kept)[1]
    likeliest_p = jax.lax.top_k(log_p, num_kept)[1]
    columns = jnp.concatenate([following[0, :, None], likeliest_q, likeliest_p], axis=1)
    return jax.lax.map(lambda position: _cut_row(*position), (log_p, log_q, columns))


def _cut_row(log_p, log_q, tokens):
    """One position: log-probabilities `[V]` cut to `tokens` `[W]`, which may repeat."""
    num_columns = len(tokens)
    # A token of several columns is kept in the first one.
    is_earlier = jnp.tri(num_columns, k=-1, dtype=bool)
    is_repeated = jnp.any((tokens[:, None] == tokens) & is_earlier, axis=1)
    # With top-k sampling the likeliest tokens can include impossible ones. The token of the text
    # stays in column 0 even where both models exclude it.
    is_possible = jnp.isfinite(log_p[tokens]) | jnp.isfinite(log_q[tokens])
    is_kept = (is_possible | (jnp.arange(num_columns) == 0)) & ~is_repeated
    # Unused columns go after the others.
    order = jnp.argsort(~is_kept, stable=True)
    tokens, is_kept = tokens[order], is_kept[order]
    cut_p = jnp.where(is_kept, log_p[tokens], -jnp.inf)
    cut_q = jnp.where(is_kept, log_q[tokens], -jnp.inf)
    # Tokens in unused columns are impossible, or in another column as well.
    tail_p = jnp.sum(jnp.exp(log_p).at[tokens].set(0))
    tail_q = jnp.sum(jnp.exp(log_q).at[tokens].set(0))
    return jnp.where(is_kept, tokens, -1), cut_p, cut_q, tail_p, tail_q


def _logits(model: LanguageModel, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    cache = model.init_cache(*tokens.shape)  # empty: the whole text is read in one call
    return model.apply(model.params, tokens, positions, None, cache)[0]
