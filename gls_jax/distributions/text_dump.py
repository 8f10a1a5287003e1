"""The dump of a pair of models: choice of the texts, and the metadata recorded with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gls_jax import checks, races
from gls_jax.distributions.dump_files import DTYPES, Dump
from gls_jax.distributions.dump_writer import (
    Document,
    Sampling,
    check_context,
    sampled_texts,
    text_pieces,
    write,
)
from gls_jax.distributions.prompts import PROMPTS
from gls_jax.runs import files
from gls_jax.runs.resume import configuration_hash
from gls_jax.typing import Report

if TYPE_CHECKING:
    # gls_jax.models imports flax, this package does not.
    from gls_jax.models.model_pair import ModelPair

__all__ = ["DumpRequest", "dump_pair", "read_document"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DumpRequest:
    """The next-token distributions to dump.

    Attributes:
        folder: folder of the dump.
        model_names: names of the models, recorded in the dump.
        sampling: sampling parameters of the texts and of the distributions.
        text: a text file; None samples continuations of built-in prompts from the target, along
            which acceptance equals acceptance in decoding.
        num_positions: positions of text.
        num_kept: most probable tokens of each distribution that are kept.
        dtype: "float32" or "float16".
        length: longest continuation, in tokens.
        batch: continuations sampled together.
        context_length: a text file is cut into pieces of at most this many tokens.
        seed: seed of the continuations.
    """

    folder: Path
    model_names: dict[str, str | None]
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    text: Path | None = None
    num_positions: int = 10_000
    num_kept: int = 64
    dtype: str = "float32"
    length: int = 128
    batch: int = 8
    context_length: int = 512
    seed: int = 0

    def check(self) -> None:
        """Check all that can be checked before models are loaded.

        Raises:
            ValueError: a parameter out of range.
            OSError: the folder cannot be written, or the text file does not exist.
        """
        self.sampling.check()
        for name in ("num_positions", "num_kept", "length", "batch"):
            checks.count(getattr(self, name), name)
        check_context(self.context_length)
        checks.one_of(self.dtype, DTYPES, "dtype")
        checks.seed(self.seed)
        files.check_folder(self.folder)
        if self.text is not None and not self.text.is_file():
            raise FileNotFoundError(f"{self.text}: no such file; expected a text")


def dump_pair(
    request: DumpRequest,
    pair: ModelPair,
    *,
    resume: bool = False,
    progress: Report | None = None,
) -> Dump:
    """Dump the next-token distributions of two models along texts.

    Args:
        request: what to dump, and where.
        pair: the models, with a drafter.
        resume: whether to continue the dump in the folder.
        progress: called with `("next-token distributions", positions done, positions)`.

    Returns:
        The dump, memory-mapped.

    Raises:
        ValueError: a parameter out of range, a text that is too short, or another dump in the
            folder.
        OSError: the folder cannot be written, or another run is using it.
    """
    read_texts = _sampled_texts if request.text is None else _text_file
    documents, context_length, metadata = read_texts(request, pair)
    report = None if progress is None else partial(progress, "next-token distributions")
    assert pair.drafter is not None
    return write(
        request.folder,
        pair.target.language_model,
        pair.drafter,
        documents,
        request.sampling,
        num_positions=request.num_positions,
        context_length=context_length,
        num_kept=request.num_kept,
        dtype=request.dtype,
        metadata=request.model_names | metadata,
        resume=resume,
        progress=report,
    )


def read_document(path: Path) -> str:
    """Text of a file, which must not be blank.

    Raises:
        OSError: the file cannot be read.
        ValueError: bytes that are not UTF-8, or no text.
    """
    text = files.read_text(path)
    if not text.strip():
        raise ValueError(f"{path}: expected a text, got an empty file")
    return text


_Texts = tuple[Callable[[int], Iterator[list[Document]]], int, dict[str, Any]]
"""Documents from a given chunk on, tokens of the longest one, and metadata."""


def _sampled_texts(request: DumpRequest, pair: ModelPair) -> _Texts:
    """Continuations of the built-in prompts."""
    target = pair.target
    prompts = [pair.tokenizer.encode(text).ids for text in PROMPTS]
    stop_tokens = list(target.config.eos_token_ids)

    def documents(first: int) -> Iterator[list[Document]]:
        return sampled_texts(
            races.new_key(request.seed),
            target.language_model,
            prompts,
            request.sampling,
            length=request.length,
            batch=request.batch,
            stop_tokens=stop_tokens,
            first=first,
        )

    # A resumed dump must continue the same texts, so all that they depend on is recorded.
    metadata = {
        "own_text": True,
        "prompts": configuration_hash(prompts),
        "length": request.length,
        "batch": request.batch,
        "seed": request.seed,
        "stop_tokens": stop_tokens,
    }
    # Every text is padded to the longest one, so that the models are compiled once.
    longest_prompt = max(len(prompt) for prompt in prompts)
    return documents, longest_prompt + request.length, metadata


def _text_file(request: DumpRequest, pair: ModelPair) -> _Texts:
    """Pieces of the user's text."""
    assert request.text is not None
    tokens = pair.tokenizer.encode(read_document(request.text)).ids
    # A distribution is that of a token given the ones before it.
    if len(tokens) < 2:
        raise ValueError(f"{request.text}: expected a text of at least 2 tokens, got {len(tokens)}")
    metadata = {
        "own_text": False,
        "text": request.text.name,
        "tokens": configuration_hash([tokens]),
        "context": request.context_length,
    }
    documents = partial(text_pieces, [tokens], request.context_length)
    return documents, request.context_length, metadata
