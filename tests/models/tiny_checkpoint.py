"""A tiny Llama checkpoint and its slow float64 forward pass.

Tensors have their Hugging Face names.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax.models import families, huggingface, weights

# Heads wider than hidden_size / num_heads, and groups of three queries: no two sizes agree by
# accident.
FIELDS = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}


def random_tensors(fields, seed=0):
    """Weights large enough that attention is far from uniform."""
    rng = np.random.default_rng(seed)
    hidden = fields["hidden_size"]
    ffn = fields["intermediate_size"]
    queries = fields["num_attention_heads"] * fields["head_dim"]
    keys = fields["num_key_value_heads"] * fields["head_dim"]

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) * 1.5 / math.sqrt(columns)).astype(np.float32)

    def norm():
        return rng.uniform(0.5, 1.5, hidden).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(fields["vocab_size"], hidden),
        "model.norm.weight": norm(),
    }
    if not fields["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(fields["vocab_size"], hidden)
    for layer in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = norm()
        tensors[prefix + "self_attn.q_proj.weight"] = matrix(queries, hidden)
        tensors[prefix + "self_attn.k_proj.weight"] = matrix(keys, hidden)
        tensors[prefix + "self_attn.v_proj.weight"] = matrix(keys, hidden)
        tensors[prefix + "self_attn.o_proj.weight"] = matrix(hidden, queries)
        tensors[prefix + "post_attention_layernorm.weight"] = norm()
        tensors[prefix + "mlp.gate_proj.weight"] = matrix(ffn, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = matrix(ffn, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = matrix(hidden, ffn)
    return tensors


def slow_logits(tensors, fields, tokens):
    """Logits `f64[T, V]` of one row of tokens: one head, one token, one earlier token at a time."""
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}
    size = fields["head_dim"]
    group = fields["num_attention_heads"] // fields["num_key_value_heads"]
    frequencies = fields["rope_theta"] ** (-2 * np.arange(size // 2) / size)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x * x) + fields["rms_norm_eps"]) * weight

    def rotate(head, position):
        # Coordinates i and i + size / 2 as a complex number.
        pairs = head[: size // 2] + 1j * head[size // 2 :]
        pairs = pairs * np.exp(1j * position * frequencies)
        return np.concatenate([pairs.real, pairs.imag])

    stream = [tensors["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(fields["num_hidden_layers"]):
        w = {
            name.split(f"layers.{layer}.")[-1]: value
            for name, value in tensors.items()
            if f".{layer}." in name
        }
        keys, values = [], []
        for position, x in enumerate(stream):
            # Attention over the tokens so far.
            h = norm(x, w["input_layernorm.weight"])
            key_heads = (w["self_attn.k_proj.weight"] @ h).reshape(-1, size)
            keys.append([rotate(head, position) for head in key_heads])
            values.append((w["self_attn.v_proj.weight"] @ h).reshape(-1, size))
            query_heads = (w["self_attn.q_proj.weight"] @ h).reshape(-1, size)
            attended = []
            for head, query in enumerate(query_heads):
                query = rotate(query, position)
                scores = np.array([query @ key[head // group] for key in keys]) / math.sqrt(size)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                attended.append(weights @ np.array([value[head // group] for value in values]))
            x = x + w["self_attn.o_proj.weight"] @ np.concatenate(attended)
            # Feed-forward, gated by silu.
            h = norm(x, w["post_attention_layernorm.weight"])
            gate = w["mlp.gate_proj.weight"] @ h
            units = gate / (1 + np.exp(-gate)) * (w["mlp.up_proj.weight"] @ h)
            stream[position] = x + w["mlp.down_proj.weight"] @ units
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return np.stack([head @ norm(x, tensors["model.norm.weight"]) for x in stream])


def paths_from_root(parents):
    """For each node of a tree, the nodes from the root to it."""
    paths = []
    for node, parent in enumerate(parents):
        before = [] if parent is None else paths[parent]
        paths.append([*before, node])
    return paths


def build(tensors, fields, dtype="float32"):
    """Model from tensors in memory."""
    config = families.from_huggingface(fields)
    shapes = {name: value.shape for name, value in tensors.items()}
    source = weights.Tensors("memory", shapes, huggingface.names(config), tensors.__getitem__)
    layers = range(fields["num_hidden_layers"])
    return weights.build(config, source, dtype=dtype, layers=layers)


def write_folder(folder, fields, tensors, shards=1):
    """Write a Hugging Face folder as transformers lays it out."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@functools.partial(jax.jit, static_argnums=0)
def _run(graph, params, *inputs):
    return nnx.merge(graph, params)(*inputs)


def run(model, tokens, positions=None, mask=None, cache=None):
    """The model as a jitted pure function: one compilation for all models of one shape."""
    graph, params = nnx.split(model)
    positions = None if positions is None else jnp.asarray(positions)
    mask = None if mask is None else jnp.asarray(mask)
    return _run(graph, params, jnp.asarray(tokens), positions, mask, cache)
