"""Pieces joined are the decoded text, wherever the tokens end."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds

from gls_jax.models import Detokenizer
from gls_jax.models import tokenizer as tokenizers

TEXT = "naïve café — 你好 世界 🙂🏳️‍🌈 and a long tail of plain words, " * 4


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*alphabet, "<|end|>"],
        "token_type": [1] * 256 + [3],
    }
    return tokenizers.from_gguf({f"tokenizer.ggml.{name}": value for name, value in fields.items()})


def byte_fallback():
    """As in Llama 2: spaces are marked, the first one is dropped, unknown characters fall back on bytes."""
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz,",
        "é",
    ]
    tokenizer = Tokenizer(
        kinds.BPE(
            {word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def pieces(tokenizer, tokens, context=()):
    text = Detokenizer(tokenizer, context)
    return [*map(text.push, tokens), text.finish()]


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_pieces_joined_are_the_text(build):
    tokenizer = build()
    tokens = tokenizer.encode(TEXT).ids
    given = pieces(tokenizer, tokens)
    assert "".join(given) == tokenizer.decode(tokens) == TEXT
    assert "" in given  # tokens do end inside a character
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in given)


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize("cut", [5, 9, 40])
def test_a_text_goes_on_with_its_spaces(build, cut):
    tokenizer = build()
    before, after = tokenizer.encode(TEXT[:cut]).ids, tokenizer.encode(TEXT).ids
    after = after[len(before) :]
    assert "".join(pieces(tokenizer, after, before)) == TEXT[cut:]


def test_random_bytes_and_special_tokens():
    """Bytes that are no text: whatever the decoder makes of all of them, the pieces make of each."""
    tokenizer = byte_level()
    tokens = np.random.default_rng(0).integers(0, 257, 600).tolist()
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)
    unfinished = tokenizer.encode("é").ids[:1]
    assert pieces(tokenizer, unfinished) == ["", "\N{REPLACEMENT CHARACTER}"]
