"""The pieces, joined, are the decoded text, wherever tokens end."""

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
    """As in Llama 2: spaces are marked, the first is dropped, unknown characters become bytes."""
    bytes_as_words = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", *bytes_as_words, "▁", *"abcdefghijklmnopqrstuvwxyz,", "é"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def pieces(tokenizer, tokens, context=()):
    detokenizer = Detokenizer(tokenizer, context)
    return [*map(detokenizer.push, tokens), detokenizer.finish()]


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_pieces_joined_are_the_text(build):
    tokenizer = build()
    tokens = tokenizer.encode(TEXT).ids
    text_pieces = pieces(tokenizer, tokens)
    assert "".join(text_pieces) == tokenizer.decode(tokens) == TEXT
    # Some tokens do end inside a character.
    assert "" in text_pieces
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in text_pieces)


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize("cut", [5, 9, 40])
def test_a_continued_text_keeps_its_spaces(build, cut):
    tokenizer = build()
    before = tokenizer.encode(TEXT[:cut]).ids
    after = tokenizer.encode(TEXT).ids[len(before) :]
    assert "".join(pieces(tokenizer, after, before)) == TEXT[cut:]


def test_random_bytes_and_special_tokens():
    """For bytes that are no text, too, the pieces are what the decoder makes of the whole."""
    tokenizer = byte_level()
    tokens = np.random.default_rng(0).integers(0, 257, 600).tolist()
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)
    unfinished = tokenizer.encode("é").ids[:1]
    assert pieces(tokenizer, unfinished) == ["", "\N{REPLACEMENT CHARACTER}"]
