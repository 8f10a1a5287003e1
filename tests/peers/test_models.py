"""The decoder, its loaders and its tokenizer against transformers on the same files (float32, CPU)."""

import os

# Before transformers is imported: nothing is ever downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from gls_jax import models
from gls_jax.models import model_location

pytestmark = [
    pytest.mark.peer,
    # Warnings of the peers about themselves are not ours to fix.
    pytest.mark.filterwarnings(
        "default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"
    ),
]

TEXT = (
    "When the first settlers reached the valley, they found a wide river that turned north between two low hills. They "
    "built a mill where the water was fastest, and within ten years a small town had grown around it. Most of the old "
    "houses are gone now, but the mill is still standing, and people visit it every summer to see the great wheel turn."
)


def ours(model, tokens):
    """Logits `[B, T, V]` without a cache, and those of the last eight tokens from a cache."""
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens, cache: nnx.merge(graph, params)(tokens, cache=cache))
    tokens = jnp.asarray(np.asarray(tokens), jnp.int32)
    logits, _ = forward(params, tokens, None)
    _, cache = forward(params, tokens[:, :-8], model.init_cache(*tokens.shape))
    last_logits, _ = forward(params, tokens[:, -8:], cache)
    return np.asarray(logits), np.asarray(last_logits)


def theirs(model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens)), use_cache=False).logits.numpy()


def agree(model, peer, tokens, within):
    logits, last_logits = ours(model, tokens)
    expected = theirs(peer, tokens)
    # The logits are not all alike.
    assert expected.std() > 0.1
    assert np.abs(logits - expected).max() < within
    assert np.abs(last_logits - expected[:, -8:]).max() < within


@pytest.fixture(scope="module")
def smollm2():
    return models.load("smollm2")


@pytest.fixture(scope="module")
def peer_smollm2():
    """The same GGUF file through transformers' own reader, which checks its row permutation."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = model_location.smollm2()
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    keys = model.load_state_dict(tensors, strict=False)
    # The head is tied.
    assert keys.missing_keys == ["lm_head.weight"]
    assert not keys.unexpected_keys
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def tokens(smollm2):
    ids = smollm2.tokenizer.encode(TEXT).ids[:64]
    assert len(ids) == 64
    return [ids]


def test_smollm2_logits(smollm2, peer_smollm2, tokens):
    agree(smollm2.model, peer_smollm2, tokens, 2e-3)


def test_smollm2_without_middle_layers(peer_smollm2, tokens):
    kept = [layer for layer in range(30) if not 12 <= layer <= 17]
    all_layers = peer_smollm2.model.layers
    peer_smollm2.model.layers = torch.nn.ModuleList([all_layers[layer] for layer in kept])
    peer_smollm2.config.num_hidden_layers = len(kept)
    try:
        agree(models.load("smollm2", layers=kept).model, peer_smollm2, tokens, 2e-3)
    finally:
        peer_smollm2.model.layers = all_layers
        peer_smollm2.config.num_hidden_layers = len(all_layers)


TEXTS = [
    TEXT,
    "",
    " ",
    "Hello",
    " Hello  world   and    more\n\n\nlines \t tabs ",
    "In 1999 he paid $1,234.56 for 3x7 = 21 items (40% off); 0x7f, 1e-5.",
    'def f(x: int) -> str:\n    """Doc."""\n\treturn f"{x!r:>10}" if x != 0 else None\n\n\nclass A(B): pass\n',
    "She'll say it's John's, they've we're I'd I'M DON'T",
    "naïve café Straße Ελλάδα Привет мир 你好 世界 こんにちは 한국어 עברית مرحبا हिन्दी",
    "🙂🏳️\u200d🌈👨\u200d👩\u200d👧 zero\u200bwidth\ufeff nul\x00byte \u00a0nbsp \u3000wide \r\n crlf\r",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|><|endoftext|>",
    "<|im_start|> <|im_end|>x<|unknown|>",
    "https://example.org/a_b-c?d=e&f=%20#g ~/.ssh/id_rsa --flag=value C:\\path\\to",
    "a" * 200 + " " * 50 + "!" * 30,
]


@pytest.fixture(scope="module")
def peer_tokenizer():
    path = model_location.smollm2()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_token_ids(smollm2, peer_tokenizer, text):
    assert smollm2.tokenizer.encode(text).ids == peer_tokenizer(text)["input_ids"]


@pytest.mark.parametrize("text", ["a  12 3", "x = 1234\n  5", "½ and ² and ٣", *TEXTS])
def test_smollm2_token_ids_where_digits_follow_spaces(smollm2, peer_tokenizer, text):
    # transformers ignores the file's rule `smollm`. It makes a difference only where several spaces
    # meet a digit, and for numerals that are no digits: llama.cpp and the original tokenizer split
    # these off first. The peer gets the same rule as one regular expression.
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    peer = Tokenizer.from_str(peer_tokenizer.backend_tokenizer.to_str())
    rule = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    spell_bytes = pre_tokenizers.ByteLevel(False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([split, spell_bytes])
    assert smollm2.tokenizer.encode(text).ids == peer.encode(text).ids


SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("change", "shard"),
    [
        ({}, "5GB"),
        ({"tie_word_embeddings": True}, "5GB"),
        ({}, "60KB"),
        ({"num_key_value_heads": 4}, "5GB"),
        ({"num_key_value_heads": 1, "head_dim": 24}, "5GB"),
        ({"rope_parameters": LLAMA3}, "5GB"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}, "5GB"),
        ({"rms_norm_eps": 1e-2, "num_hidden_layers": 1}, "5GB"),
    ],
    ids=["plain", "tied", "sharded", "all-heads", "one-key-head", "llama3", "linear", "one-layer"],
)
@pytest.mark.parametrize("old_dialect", [False, True], ids=["v5", "v4"])
def test_saved_by_transformers(tmp_path, change, shard, old_dialect):
    fields = SIZES | change
    torch.manual_seed(0)
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    for name, weight in peer.named_parameters():
        # After initialisation, all weights of a norm are one.
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "60KB")
    if old_dialect:
        rewrite_as_v4(tmp_path / "config.json")
    tokens = np.random.default_rng(0).integers(0, 97, (2, 100))
    agree(models.load(tmp_path).model, peer, tokens, 1e-4)


def rewrite_as_v4(path):
    """The same config as transformers 4 wrote it."""
    import json

    fields = json.loads(path.read_text())
    rope = fields.pop("rope_parameters")
    if "full_attention" in rope:
        # Gemma 3 had a pattern and a second base before it had tables by layer type.
        fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        kinds = fields.pop("layer_types")
        fields["sliding_window_pattern"] = kinds.index("full_attention") + 1
    elif fields["model_type"] != "llama":
        # Each family has a separate rule.
        fields.pop("layer_types")
    fields["rope_theta"] = rope.pop("rope_theta")
    fields["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    fields["torch_dtype"] = fields.pop("dtype")
    path.write_text(json.dumps(fields))


QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
GEMMA = {"head_dim": 24, "sliding_window": 12, "query_pre_attn_scalar": 10}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
FAMILIES = {
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", QWEN_WINDOWS),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
    "qwen3-windows": ("Qwen3", QWEN_WINDOWS),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-untied": ("Gemma2", GEMMA | {"tie_word_embeddings": False}),
    "gemma3": (
        "Gemma3",
        GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3-scaled": (
        "Gemma3",
        GEMMA
        | {"num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE, "tie_word_embeddings": False},
    ),
}


def save_family(folder, name):
    """Random checkpoint of a family, with no weight left at its trivial start."""
    family, change = FAMILIES[name]
    config_name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, config_name)(**(SIZES | change))
    model_class = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    # The default attention leaves out soft-caps.
    peer = model_class._from_config(config, attn_implementation="eager").eval()
    # Gemma adds one to the weights of its norms.
    norm_range = (-0.5, 0.5) if family.startswith("Gemma") else (0.5, 1.5)
    for path, weight in peer.named_parameters():
        # After initialisation, all weights of a norm are alike, and all biases are zero.
        if "norm" in path:
            torch.nn.init.uniform_(weight, *norm_range)
        elif path.endswith("bias"):
            torch.nn.init.normal_(weight)
    peer.save_pretrained(folder)
    return peer


@pytest.mark.parametrize("old_dialect", [False, True], ids=["v5", "v4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(tmp_path, name, old_dialect):
    peer = save_family(tmp_path, name)
    if old_dialect:
        rewrite_as_v4(tmp_path / "config.json")
    tokens = np.random.default_rng(0).integers(0, 97, (2, 60))
    agree(models.load(tmp_path).model, peer, tokens, 1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3-scaled", "qwen2-windows"])
def test_kept_layers_stay_local_or_global(tmp_path, name):
    peer = save_family(tmp_path, name)
    count = len(peer.model.layers)
    kept = [layer for layer in range(count) if layer != 1]
    peer.model.layers = torch.nn.ModuleList([peer.model.layers[layer] for layer in kept])
    peer.config.layer_types = [peer.config.layer_types[layer] for layer in kept]
    peer.config.num_hidden_layers = peer.model.config.num_hidden_layers = len(kept)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 60))
    agree(models.load(tmp_path, layers=kept).model, peer, tokens, 1e-4)


def test_saved_in_bfloat16(tmp_path):
    fields = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    torch.manual_seed(1)
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**fields, num_attention_heads=4, initializer_range=0.2)
    )
    peer.to(torch.bfloat16).save_pretrained(tmp_path)
    # Loaded anew, because the first model's rotary frequencies were rounded with its weights.
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    agree(models.load(tmp_path).model, peer, np.arange(60)[None] % 97, 1e-4)
