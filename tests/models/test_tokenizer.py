"""Tokenizers rebuilt from GGUF metadata split text by the rule that the file names."""

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from gls_jax import models
from gls_jax.models import tokenizer as tokenizers

ALPHABET = sorted(ByteLevel.alphabet())
TEXTS = [
    "Hello, world!",
    "  two  spaces\n\n\tand a tab ",
    "def f(x):\n    return x**2 + 3.14159",
    "naïve café — 你好 世界 🙂🏳️‍🌈",
    "In 2024, 1,234,567 people\r\nsaw it's so.",
    "",
]


def metadata(pre, merges=(), tokens=(), **changes):
    vocabulary = [*ALPHABET, *(merge.replace(" ", "") for merge in merges), *tokens]
    fields = {"model": "gpt2", "pre": pre, "tokens": vocabulary, "merges": list(merges)}
    return {f"tokenizer.ggml.{name}": value for name, value in (fields | changes).items()}


def pieces(pre, text, **options):
    built = tokenizers.from_gguf(metadata(pre, **options))
    return built.encode(text).tokens


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_survive(pre, text):
    built = tokenizers.from_gguf(metadata(pre, ["Ġ a", "1 2", "Ġa n", "Ġan d"]))
    assert built.decode(built.encode(text).ids) == text


def test_each_rule_splits_its_own_way():
    merges = ["1 2", "12 3", "123 4", "Ġ 1", "Ġ Ġ"]
    assert pieces("smollm", "1234", merges=merges) == ["1", "2", "3", "4"]
    assert pieces("gpt-2", "1234", merges=merges) == ["1234"]
    assert pieces("llama-bpe", "1234", merges=merges) == ["123", "4"]
    # Digits are split off first, so that the spaces before a digit stay together, as in llama.cpp.
    assert pieces("smollm", "  1", merges=merges) == ["ĠĠ", "1"]
    assert pieces("gpt-2", "  1", merges=merges) == ["Ġ", "Ġ1"]


def test_llama3_takes_known_words_whole():
    assert pieces("llama-bpe", "xyz", tokens=["xyz"]) == ["xyz"]
    assert pieces("gpt-2", "xyz", tokens=["xyz"]) == ["x", "y", "z"]


def test_marked_tokens_stay_whole():
    kinds = [1] * len(ALPHABET) + [3, 4]
    built = tokenizers.from_gguf(metadata("gpt-2", tokens=["<|end|>", "<think>"], token_type=kinds))
    ids = built.encode("a<|end|>b<think>").ids
    assert [ids[1], ids[3]] == [256, 257]
    assert built.get_vocab_size() == 258
    assert built.decode(ids) == "ab<think>"
    assert built.decode(ids, skip_special_tokens=False) == "a<|end|>b<think>"


def test_first_token_is_added_where_the_file_says_so():
    options = {"tokens": ["<s>"], "token_type": [1] * 256 + [3], "bos_token_id": 256}
    assert pieces("gpt-2", "a", **options) == ["a"]
    assert pieces("gpt-2", "a", add_bos_token=True, **options) == ["<s>", "a"]
    assert pieces("llama-bpe", "a", **options) == ["<s>", "a"]
    assert pieces("llama-bpe", "a", add_bos_token=False, **options) == ["a"]


@pytest.mark.parametrize(
    "fields",
    [
        metadata("gpt-2", model="llama"),
        metadata("unheard-of"),
        metadata(None),
        metadata("gpt-2") | {"tokenizer.ggml.tokens": []},
        {},
    ],
)
def test_what_cannot_be_rebuilt_is_none(fields):
    assert tokenizers.from_gguf(fields) is None


def test_merges_outside_the_vocabulary_are_one_line():
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.merges: .*out of vocabulary") as caught:
        fields = metadata("gpt-2", merges=["a b"]) | {"tokenizer.ggml.tokens": ALPHABET}
        tokenizers.from_gguf(fields)
    assert "\n" not in str(caught.value)


def test_folder(tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    tokenizers.from_gguf(metadata("gpt-2", ["a b"])).save(str(folder / "tokenizer.json"))
    assert models.load(folder).tokenizer.encode("abba").tokens == ["ab", "b", "a"]
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as caught:
        models.load(folder)
    assert "\n" not in str(caught.value)
