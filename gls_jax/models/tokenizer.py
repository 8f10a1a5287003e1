"""Tokenizers: read from a folder's `tokenizer.json`, or rebuilt from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gls_jax import extras

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LLAMA3 = ("llama-bpe", "llama-v3", "llama3")
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def from_folder(folder: Path) -> Tokenizer | None:
    """Tokenizer of a Hugging Face folder, None where it has no `tokenizer.json`.

    Raises:
        ValueError: the file is no tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizers = extras.module("tokenizers", "lm")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{path}: expected a tokenizer, got something else ({_line(error)})"
        ) from error


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """Byte-level BPE tokenizer of a GGUF file, from its vocabulary, merges and the name of its
    splitting rule.

    Rebuilt are the rules `smollm`, `gpt-2` and `llama-bpe`. Any other kind gives None: the model
    still runs on token ids, and text split by a wrong rule would look right and be wrong.

    Args:
        metadata: the file's key-value pairs.

    Raises:
        ValueError: merges or a first token outside the vocabulary.

    >>> from gls_jax.models.tokenizer import from_gguf
    >>> metadata = {
    ...     "tokenizer.ggml.model": "gpt2",
    ...     "tokenizer.ggml.pre": "gpt-2",
    ...     "tokenizer.ggml.tokens": ["a", "b", "ab", "<end>"],
    ...     "tokenizer.ggml.token_type": [1, 1, 1, 3],
    ...     "tokenizer.ggml.merges": ["a b"],
    ... }
    >>> tokenizer = from_gguf(metadata)
    >>> tokenizer.encode("abba<end>").ids
    [2, 1, 0, 3]
    """
    own = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    rule = own.get("pre")
    if (
        own.get("model") != "gpt2"
        or rule not in ("smollm", "gpt-2", *_LLAMA3)
        or not own.get("tokens")
    ):
        return None
    extras.module("tokenizers", "lm")
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )

    tokens, merges = own["tokens"], [tuple(merge.split(" ")) for merge in own.get("merges", ())]
    try:
        # Llama 3 takes a word that is in the vocabulary whole, even where its merges would not
        # build it.
        bpe = models.BPE(
            {token: index for index, token in enumerate(tokens)},
            merges,
            ignore_merges=rule in _LLAMA3,
        )
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer.ggml.merges: {_line(error)}") from error
    tokenizer = Tokenizer(bpe)
    spell = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(own.get("add_space_prefix", False)), use_regex=rule not in _LLAMA3
    )
    before: list[Any] = []
    if rule == "smollm":
        before = [pre_tokenizers.Digits(individual_digits=True)]
    elif rule in _LLAMA3:
        before = [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, spell])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, own.get("token_type", ()), strict=False))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in kinds if k == _CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in kinds if k == _USER_DEFINED])
    bos = own.get("bos_token_id")
    if bos is not None and not 0 <= bos < len(tokens):
        raise ValueError(
            f"tokenizer.ggml.bos_token_id: expected less than {len(tokens)}, got {bos}"
        )
    if bos is not None and own.get("add_bos_token", rule in _LLAMA3):
        first = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, bos)]
        )
    return tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
