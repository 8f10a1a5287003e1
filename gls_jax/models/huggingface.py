"""Hugging Face folders: `config.json`, and safetensors in one file or in shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gls_jax import extras
from gls_jax.models.config import Config, errors_with_path
from gls_jax.models.families import from_huggingface
from gls_jax.models.weights import Tensors
from gls_jax.runs import files

__all__ = ["NAMES", "names", "read_config", "read_tensors"]

# Our parameter path to the tensor's name; `{}` is the layer's index.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head": "lm_head.weight",
    "blocks.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
    "blocks.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
    "blocks.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
    "blocks.attention.output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.attention.query_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.attention.key_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.feed_forward_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.feed_forward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.feed_forward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.feed_forward.down.weight": "model.layers.{}.mlp.down_proj.weight",
}
# Trap: `post_attention_layernorm` is the norm before feed-forward in Llama and Qwen. In Gemma, with
# four norms a block, it is what its name says, a norm of the output of attention.
_FOUR_NORMS = {
    "blocks.attention_post_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.feed_forward_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "blocks.feed_forward_post_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_FLOAT_TYPES = ("F16", "BF16", "F32", "F64")


def read_config(folder: Path) -> Config:
    """Config of a folder, from its `config.json`.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
        ValueError: the file is not a JSON object, or the model is not supported.
    """
    path = folder / "config.json"
    fields = _read_json(path)
    with errors_with_path(path):
        return from_huggingface(fields)


def read_tensors(folder: Path, config: Config) -> Tensors:
    """The weights of a folder, for `weights.build`; only headers are read here.

    Raises:
        FileNotFoundError: no weights, or a shard of the index is missing.
        ValueError: a truncated or corrupt file, an index that does not match its shards, or integer
            weights.
    """
    shard_names, shards = _open_shards(folder)
    # As sets and made once, because `keys()` builds a list of all names.
    held_names = {shard_name: set(shard.keys()) for shard_name, shard in shards.items()}
    shapes = {}
    for tensor_name, shard_name in shard_names.items():
        path = folder / shard_name
        if tensor_name not in held_names[shard_name]:
            raise ValueError(
                f"{path}: the index expects tensor {tensor_name} here, which is missing"
            )
        # Two tensors are not parameters: the frequency table that old conversions saved, and the
        # second copy of an embedding that is also the output head.
        is_second_copy = config.tie_embeddings and tensor_name == NAMES["head"]
        if is_second_copy or tensor_name.endswith("rotary_emb.inv_freq"):
            continue
        header = shards[shard_name].get_slice(tensor_name)
        if header.get_dtype() not in _FLOAT_TYPES:
            raise ValueError(
                f"{path}: {tensor_name}: expected a float tensor, got {header.get_dtype()}"
            )
        shapes[tensor_name] = tuple(header.get_shape())
    return Tensors(
        source=str(folder),
        shapes=shapes,
        names=names(config),
        read=lambda tensor_name: shards[shard_names[tensor_name]].get_tensor(tensor_name),
    )


def names(config: Config) -> dict[str, str]:
    """Our parameter paths to the names in a folder; `{}` is the layer's index."""
    return NAMES | _FOUR_NORMS if config.post_norms else NAMES


def _open_shards(folder: Path) -> tuple[Mapping[str, str], dict[str, Any]]:
    """File name of every tensor, and the opened files by their names."""
    index_path = folder / _INDEX_FILE
    if index_path.is_file():
        weight_map = _read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(shard_name, str) for shard_name in weight_map.values()
        ):
            raise ValueError(
                f"{index_path}: expected an object weight_map of file names, got something else"
            )
        shard_names = sorted(set(weight_map.values()))
        return weight_map, {name: _open_shard(folder / name) for name in shard_names}
    if (folder / _SINGLE_FILE).is_file():
        shard = _open_shard(folder / _SINGLE_FILE)
        return dict.fromkeys(shard.keys(), _SINGLE_FILE), {_SINGLE_FILE: shard}
    raise FileNotFoundError(f"{folder}: no weights; expected {_SINGLE_FILE} or {_INDEX_FILE}")


def _open_shard(path: Path) -> Any:
    safetensors = extras.module("safetensors", "lm")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a shard that the index names")
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: truncated or corrupt safetensors file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    fields = files.read_json(path, "a JSON file of a Hugging Face model folder")
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields
