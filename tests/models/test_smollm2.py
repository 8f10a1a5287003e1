"""The real model: it reads English, its tokenizer loses nothing, and its layers can be dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import models

TEXT = (
    "The sun is a star at the center of the solar system. It is a nearly perfect ball of hot plasma, and it is by far "
    "the most important source of energy for life on Earth. About three quarters of its mass is hydrogen, and the rest "
    "is mostly helium."
)


@pytest.fixture(scope="module")
def cross_entropy(tiny):
    def nats(checkpoint):
        ids = jnp.asarray(checkpoint.tokenizer.encode(TEXT).ids)[None]
        log_p = jax.nn.log_softmax(tiny.run(checkpoint.model, ids)[0][:, :-1])
        return -float(jnp.take_along_axis(log_p, ids[:, 1:, None], -1).mean())

    return nats


def test_reads_english(smollm2, cross_entropy):
    # Measured: 2.15 nats a token, and 3.28 with the rows of queries and keys as llama.cpp permuted
    # them.
    assert cross_entropy(smollm2) < 2.5


def test_the_limit_catches_permuted_rows(monkeypatch, cross_entropy):
    monkeypatch.setattr(models.gguf_file, "half_split", lambda weight, heads: weight)
    assert cross_entropy(models.load("smollm2")) > 2.5


def test_dropping_layers_costs_something(smollm2, cross_entropy):
    drafter = models.load(
        "smollm2", layers=[layer for layer in range(30) if layer not in range(12, 18)]
    )
    assert drafter.config.num_layers == 24
    assert cross_entropy(smollm2) + 0.2 < cross_entropy(drafter) < 5


def test_config(smollm2):
    config = smollm2.config
    assert (config.num_layers, config.hidden_size) == (30, 576)
    assert (config.num_heads, config.num_kv_heads) == (9, 3)
    assert (config.vocab_size, config.rope_theta) == (49_152, 100_000.0)
    assert config.tie_embeddings is True
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_continues_sensibly_from_the_cache(smollm2, tiny):
    ids = smollm2.tokenizer.encode("The capital of France is").ids
    cache = smollm2.model.init_cache(1, 16)
    tokens = [ids]
    new_tokens = []
    for _ in range(2):
        logits, cache = tiny.run(smollm2.model, tokens, cache=cache)
        tokens = logits[:, -1:].argmax(-1)
        new_tokens.append(int(tokens[0, 0]))
    assert smollm2.tokenizer.decode(new_tokens) == " Paris."


@pytest.mark.parametrize(
    "text", ["Hello, world!", "x = 10 ** 12\n\tif x:  pass", "naïve 你好 🙂", "", " 1  22   333"]
)
def test_tokenizer_round_trip(smollm2, text):
    ids = smollm2.tokenizer.encode(text).ids
    assert smollm2.tokenizer.decode(ids) == text
    assert all(0 <= token < 49_152 for token in ids)


def test_tokenizer_knows_the_chat_tokens(smollm2):
    encoded = smollm2.tokenizer.encode("<|im_start|>user\n42<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "user", "Ċ", "4", "2", "<|im_end|>"]
    assert np.array(encoded.ids)[[0, -1]].tolist() == [1, 2]
