"""Tokenizers: from a folder's `tokenizer.json`, or rebuilt from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gls_jax import extras
from gls_jax.runs import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["from_folder", "from_gguf"]

# Values of `tokenizer.ggml.pre`, the rule that splits text into words before BPE.
_LLAMA3_RULES = ("llama-bpe", "llama-v3", "llama3")
_RULES = ("smollm", "gpt-2", *_LLAMA3_RULES)
# As in Llama 3's own tokenizer: contractions, words, up to three digits, punctuation, white space.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Values of `tokenizer.ggml.token_type`.
_CONTROL = 3
_USER_DEFINED = 4


def from_folder(folder: Path) -> Tokenizer | None:
    """Tokenizer of a Hugging Face folder, None if it has no `tokenizer.json`.

    Raises:
        ValueError: the file is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizers = extras.module("tokenizers", "lm")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    # The package raises bare Exception.
    except Exception as error:
        raise ValueError(
            f"{path}: expected a tokenizer, got something else ({files.one_line(error)})"
        ) from error


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """Byte-level BPE tokenizer of a GGUF file.

    It is rebuilt from the vocabulary, the merges and the name of the splitting rule: `smollm`,
    `gpt-2` or `llama-bpe`. Any other kind gives None: the model still runs on token ids, and text
    split by a wrong rule would look right and be wrong.

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
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    rule = fields.get("pre")
    vocabulary = fields.get("tokens")
    # In GGUF files "gpt2" means byte-level BPE, whatever the model.
    if fields.get("model") != "gpt2" or rule not in _RULES or not vocabulary:
        return None
    tokenizers = extras.module("tokenizers", "lm")
    tokenizer = tokenizers.Tokenizer(_bpe(fields))
    tokenizer.pre_tokenizer = _splitter(rule, bool(fields.get("add_space_prefix", False)))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # Special tokens are matched whole before the text is split. Decoding leaves out those of type
    # control, and keeps those of type user-defined.
    control_tokens = []
    user_tokens = []
    for text, token_type in zip(vocabulary, fields.get("token_type", ()), strict=False):
        if token_type == _CONTROL:
            control_tokens.append(tokenizers.AddedToken(text, normalized=False, special=True))
        elif token_type == _USER_DEFINED:
            user_tokens.append(tokenizers.AddedToken(text, normalized=False))
    tokenizer.add_special_tokens(control_tokens)
    tokenizer.add_tokens(user_tokens)
    bos_id = fields.get("bos_token_id")
    if bos_id is None:
        return tokenizer
    if not 0 <= bos_id < len(vocabulary):
        raise ValueError(
            f"tokenizer.ggml.bos_token_id: expected less than {len(vocabulary)}, got {bos_id}"
        )
    # Llama 3 files begin every text with it even if they do not say so.
    if fields.get("add_bos_token", rule in _LLAMA3_RULES):
        bos_token = vocabulary[bos_id]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos_token} $A",
            pair=f"{bos_token} $A {bos_token} $B",
            special_tokens=[(bos_token, bos_id)],
        )
    return tokenizer


def _bpe(fields: Mapping[str, Any]) -> Any:
    from tokenizers.models import BPE

    token_ids = {token: index for index, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields.get("merges", ())]
    # Llama 3 takes a word that is in the vocabulary whole, even if its merges do not build it.
    ignore_merges = fields["pre"] in _LLAMA3_RULES
    try:
        return BPE(token_ids, merges, ignore_merges=ignore_merges)
    # The package raises bare Exception.
    except Exception as error:
        raise ValueError(f"tokenizer.ggml.merges: {files.one_line(error)}") from error


def _splitter(rule: str, add_prefix_space: bool) -> Any:
    """How text is split into words, and their bytes are spelled as printable characters."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    if rule == "smollm":
        # Digits are split off first, one by one, as in llama.cpp. In one pass, a space before a
        # digit would be joined to it.
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif rule in _LLAMA3_RULES:
        steps.append(pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"))
    # ByteLevel's own expression is GPT-2's rule; Llama 3 replaces it.
    use_regex = rule not in _LLAMA3_RULES
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex))
    return pre_tokenizers.Sequence(steps)
