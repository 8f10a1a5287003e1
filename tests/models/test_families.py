"""What the families add to the decoder, without a peer.

Windows by position, soft-caps, trees in the cache, and the model adapter.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gls_jax import decoding, models
from gls_jax.decoding import cache as caches
from gls_jax.models import families, layers
from tests.models.tiny_checkpoint import paths_from_root

pytestmark = pytest.mark.usefixtures("quick_compilation")

BASE = models.Config(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=500.0,
)
GEMMA = dataclasses.replace(
    BASE,
    norm_offset=1.0,
    post_norms=True,
    qk_norm=True,
    activation="gelu_pytorch_tanh",
    attention_softcap=3.0,
    logit_softcap=4.0,
    scale_embeddings=True,
    query_scale=0.5,
    local_layers=(True, False, True, False),
    window=5,
    local_rope_theta=50.0,
)
TOKENS = np.random.default_rng(1).integers(0, 61, (3, 12)).astype(np.int32)
SLOTS = 24
# Float32 on both sides, sums in another order: observed differences are below 1e-5.
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4)


def random_model(config, seed=0):
    """Weights large enough that attention is far from uniform; norms and biases are not trivial."""
    graph, state = nnx.split(models.Transformer(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)

    def draw(x):
        # Norms and biases are vectors, stacked over layers if they belong to a block.
        is_vector = x.ndim < 2 or (x.shape[0] == config.num_layers and x.ndim == 2)
        scale = 0.3 if is_vector else 1.5 / np.sqrt(x.shape[-2])
        noise = rng.standard_normal(x.shape) * scale
        return jnp.asarray(noise + (x if x.ndim < 3 else 0), x.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))


def same_weights(model, config):
    """The model of another config with the same parameters."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: models.Transformer(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, nnx.state(model))


@pytest.fixture(scope="module")
def gemma():
    return random_model(GEMMA)


def band(window, count=12):
    distance = np.arange(count)[:, None] - np.arange(count)
    return np.tile((distance >= 0) & (distance < window), (3, 1, 1))


# Windows


def test_window_equals_a_mask(tiny):
    model = random_model(BASE)
    windowed = same_weights(model, dataclasses.replace(BASE, local_layers=(True,) * 4, window=5))
    logits, _ = tiny.run(windowed, TOKENS)
    close(logits, tiny.run(model, TOKENS, None, band(5))[0])
    assert np.abs(logits - tiny.run(model, TOKENS)[0]).max() > 0.1
    # By position, not by cache slot: at every third position the same window has two tokens.
    apart = np.tile(3 * np.arange(12), (3, 1))
    close(tiny.run(windowed, TOKENS, apart)[0], tiny.run(model, TOKENS, apart, band(2))[0])


def test_each_layer_stays_local_or_global(tiny, gemma):
    # Models of one layer show every layer's own window and rotary base.
    global_only = dataclasses.replace(GEMMA, local_layers=(), window=None, local_rope_theta=None)
    local_only = dataclasses.replace(GEMMA, local_layers=(True,) * 4)
    for layer, local in enumerate(GEMMA.local_layers):
        single = models.keep_layers(gemma, [layer])
        assert single.config.local_layers == (local,)
        uniform = same_weights(gemma, local_only if local else global_only)
        expected, _ = tiny.run(models.keep_layers(uniform, [layer]), TOKENS)
        close(tiny.run(single, TOKENS)[0], expected)
    all_local, _ = tiny.run(same_weights(gemma, local_only), TOKENS)
    assert np.abs(all_local - tiny.run(gemma, TOKENS)[0]).max() > 0.1


@pytest.mark.parametrize("chunks", [(1,) * 12, (8, 4), (3, 9)])
def test_cached_in_chunks_equals_uncached(tiny, gemma, chunks):
    cache = gemma.init_cache(3, SLOTS)
    chunk_logits = []
    start = 0
    for size in chunks:
        logits, cache = tiny.run(gemma, TOKENS[:, start : start + size], cache=cache)
        chunk_logits.append(logits)
        start += size
    assert cache.positions[0, :, :12].tolist() == [list(range(12))] * 3
    close(jnp.concatenate(chunk_logits, 1), tiny.run(gemma, TOKENS)[0])


# Trees


def test_tree_in_the_cache_equals_its_paths(tiny, gemma):
    # Eight nodes after prefixes of 12, 10 and 11 tokens; the tree is deep enough for a window that
    # ends among a node's ancestors.
    paths = paths_from_root([None, 0, 0, 1, 3, 4, 5, 2])
    nodes, lengths = np.arange(40, 48, dtype=np.int32), np.array([12, 10, 11])
    _, cache = tiny.run(gemma, TOKENS, cache=gemma.init_cache(3, SLOTS))
    cache = caches.with_length(cache, jnp.asarray(lengths, jnp.int32))
    mask = np.zeros((3, 8, SLOTS), bool)
    for row, length in enumerate(lengths):
        mask[row, :, :length] = True
        for node, path in enumerate(paths):
            mask[row, node, [length + step for step in path]] = True
    positions = lengths[:, None] + np.array([len(path) - 1 for path in paths])

    def alone(text):
        # Padded, so that all texts have one shape.
        padded = [*text, *[0] * (SLOTS - len(text))]
        logits, _ = tiny.run(gemma, np.array([padded]))
        return logits[0, : len(text)]

    logits, cache = tiny.run(gemma, np.tile(nodes, (3, 1)), positions, mask, cache)
    # The paths of the two leaves contain all other nodes.
    for row, length in enumerate(lengths):
        for path in paths[6:]:
            expected = alone([*TOKENS[row, :length], *nodes[path]])
            close(logits[row, path], expected[-len(path) :])

    # The engine keeps the path 0, 2, 7, whose slots differ from its positions, and continues.
    path = paths[7]
    start = jnp.asarray(lengths, jnp.int32)
    cache = caches.keep(cache, start[:, None] + jnp.array([path]), start, jnp.full((3,), len(path)))
    following = TOKENS[:, 4:8]
    logits, cache = tiny.run(gemma, following, cache=cache)
    for row, length in enumerate(lengths):
        close(logits[row], alone([*TOKENS[row, :length], *nodes[path], *following[row]])[-4:])
        assert cache.positions[0, row, : length + 7].tolist() == list(range(length + 7))


def test_speculation_changes_no_greedy_text(gemma):
    # Drafts of a tree, windows of five positions, prompts shorter and longer than a window.
    target = models.language_model(gemma)
    drafter = models.language_model(models.keep_layers(gemma, [0, 3]))
    prompts = [TOKENS[0, :2], TOKENS[1, :9], TOKENS[2, :6]]
    generate = functools.partial(
        decoding.generate,
        jax.random.key(0),
        target,
        prompts=prompts,
        max_new_tokens=12,
        temperature=0.0,
    )
    plain = generate(drafters=None)
    drafted = generate(drafters=drafter, num_drafts=2, draft_length=3)
    assert drafted.tokens.tolist() == plain.tokens.tolist()


# Soft-caps


def test_logit_softcap(tiny, gemma):
    free = same_weights(gemma, dataclasses.replace(GEMMA, logit_softcap=None))
    logits, _ = tiny.run(free, TOKENS)
    assert np.abs(logits).max() > 4
    close(tiny.run(gemma, TOKENS)[0], 4 * np.tanh(logits / 4))


def test_attention_softcap():
    rng = np.random.default_rng(0)
    query = rng.standard_normal((2, 5, 4, 4)).astype(np.float32) * 3
    keys = rng.standard_normal((2, 2, 4, 5)).astype(np.float32) * 3
    values = rng.standard_normal((2, 2, 5, 4)).astype(np.float32) * 3
    visible = np.tril(np.ones((2, 5, 5), bool))
    attended = layers.attend(
        jnp.asarray(query),
        [(jnp.asarray(keys), jnp.asarray(values))],
        jnp.asarray(visible),
        softcap=2.0,
    )
    for row in range(2):
        for head in range(4):
            scores = 2 * np.tanh(query[row, :, head] @ keys[row, head // 2] / 2)
            weights = np.where(visible[row], np.exp(scores), 0)
            weights /= weights.sum(-1, keepdims=True)
            close(attended[row, :, head], weights @ values[row, head // 2])


def test_bfloat16_weights_give_float32_logits(gemma, tiny):
    graph, state = nnx.split(gemma)
    half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    logits, cache = tiny.run(half, TOKENS, cache=half.init_cache(3, SLOTS))
    assert logits.dtype == jnp.float32 and cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert 1e-3 < np.abs(logits - tiny.run(gemma, TOKENS)[0]).mean() < 0.3


# Configs that are refused

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("qwen2", {"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ("qwen3", {"attention_bias": True}, ["attention_bias"]),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": None,
                "layer_types": ["sliding_attention"] * 4,
            },
            ["sliding_window"],
        ),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, ["sliding_window"]),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, ["layer_types", "4", "3"]),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, ["chunked_attention"]),
        ("gemma2", {"hidden_activation": "gelu"}, ["hidden_activation", "'gelu'"]),
        ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ("gemma2", {"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar", "0"]),
        ("gemma2", {"attn_logit_softcapping": -1}, ["attn_logit_softcapping", "-1"]),
        ("gemma2", {"sliding_window": 0}, ["window", "0"]),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 1e6}},
            ["rope_parameters", "layer type"],
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            ["'linear'", "local"],
        ),
        ("gemma3_text", {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, ["'yarn'"]),
        ("gemma3_text", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ("gemma3", {}, ["'gemma3'", "gemma3_text"]),
    ],
)
def test_configs_that_are_refused(family, change, words):
    with pytest.raises(ValueError) as caught:
        families.from_huggingface(SIZES | {"model_type": family} | change)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# The model adapter


def test_models_of_one_architecture_compile_once(gemma, tiny):
    step = jax.jit(
        lambda model, tokens: model.apply(
            model.params, tokens, None, None, model.init_cache(3, SLOTS)
        )
    )
    logits, cache = step(models.language_model(gemma), TOKENS)
    other, _ = step(models.language_model(random_model(GEMMA, seed=1)), TOKENS)
    assert step._cache_size() == 1 and cache.keys.shape == (4, 3, 2, 6, SLOTS)
    close(logits, tiny.run(gemma, TOKENS)[0])
    assert np.abs(logits - other).max() > 0.1
    step(models.language_model(models.keep_layers(gemma, [0, 1])), TOKENS)
    assert step._cache_size() == 2


def test_mask_none_with_positions(gemma, tiny):
    model, positions = models.language_model(gemma), jnp.tile(2 * jnp.arange(12), (3, 1))
    logits, _ = model.apply(model.params, TOKENS, positions, None, model.init_cache(3, SLOTS))
    close(logits, tiny.run(gemma, TOKENS, positions)[0])


def test_the_adapter_knows_the_vocabulary_of_the_tokenizer(smollm2):
    target = smollm2.language_model
    drafter = models.load("smollm2", layers=[0]).language_model
    assert target.vocabulary == drafter.vocabulary is not None
    assert models.language_model(smollm2.model).vocabulary is None
    assert target.vocab_size == 49_152


def test_keep_layers_shares_and_equals_loading(smollm2, tiny):
    drafter = models.keep_layers(smollm2.model, [0, 29])
    loaded = models.load("smollm2", layers=[0, 29])
    assert drafter.config == loaded.config
    assert drafter.embedding[...] is smollm2.model.embedding[...]
    close(tiny.run(drafter, TOKENS)[0], tiny.run(loaded.model, TOKENS)[0])
    with pytest.raises(ValueError, match="0 to 29"):
        models.keep_layers(smollm2.model, [30])
