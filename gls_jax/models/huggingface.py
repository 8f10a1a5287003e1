"""Hugging Face folders: `config.json` beside `model.safetensors`, in one file or in shards with an
index.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gls_jax import extras
from gls_jax.models.config import Config
from gls_jax.models.families import from_huggingface
from gls_jax.models.weights import Tensors

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head": "lm_head.weight",
    "blocks.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    **{
        f"blocks.attention.{ours}.{part}": f"model.layers.{{}}.self_attn.{theirs}_proj.{part}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
        for part in ("weight", "bias")
    },
    "blocks.attention.query_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.attention.key_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.feed_forward_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.feed_forward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.feed_forward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.feed_forward.down.weight": "model.layers.{}.mlp.down_proj.weight",
}
# With four norms a block, the name that is elsewhere the second norm's belongs to what follows
# attention.
_POST_NORMS = {
    "blocks.attention_post_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.feed_forward_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "blocks.feed_forward_post_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F16", "BF16", "F32", "F64")


def read_config(folder: Path) -> Config:
    """Config of a folder, from its `config.json`.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
        ValueError: it is no JSON object, or describes a model that is not supported.
    """
    path = folder / "config.json"
    fields = _json(path)
    try:
        return from_huggingface(fields)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: a field has the wrong type: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tensors(folder: Path, config: Config) -> Tensors:
    """The weights of a folder, for `weights.build`; only headers are read here.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing. ValueError: a
        truncated or corrupt file, an index that does not match its shards, or integer weights.
    """
    if (folder / _INDEX).is_file():
        where = _json(folder / _INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(
            isinstance(shard, str) for shard in where.values()
        ):
            raise ValueError(
                f"{folder / _INDEX}: expected an object weight_map of file names, got something else"
            )
        shards = {name: _open(folder / name) for name in sorted(set(where.values()))}
    elif (folder / _SINGLE).is_file():
        shards = {_SINGLE: _open(folder / _SINGLE)}
        where = dict.fromkeys(shards[_SINGLE].keys(), _SINGLE)
    else:
        raise FileNotFoundError(f"{folder}: no weights; expected {_SINGLE} or {_INDEX}")
    held = {shard: set(handle.keys()) for shard, handle in shards.items()}
    shapes = {}
    for name, shard in where.items():
        if name not in held[shard]:
            raise ValueError(
                f"{folder / shard}: the index expects tensor {name} here, which is missing"
            )
        # Tables of old conversions, and the second copy of a tied matrix, are no parameters.
        if name.endswith("rotary_emb.inv_freq") or (
            config.tie_embeddings and name == NAMES["head"]
        ):
            continue
        part = shards[shard].get_slice(name)
        if part.get_dtype() not in _FLOATS:
            raise ValueError(
                f"{folder / shard}: {name}: expected a float tensor, got {part.get_dtype()}"
            )
        shapes[name] = tuple(part.get_shape())
    return Tensors(
        str(folder), shapes, names(config), lambda name: shards[where[name]].get_tensor(name)
    )


def names(config: Config) -> dict[str, str]:
    """Our parameter paths to the names in a folder; `{}` stands for the layer's index."""
    return NAMES | _POST_NORMS if config.post_norms else NAMES


def _open(path: Path) -> Any:
    safetensors = extras.module("safetensors", "lm")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a shard that the index names")
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: truncated or corrupt safetensors file ({error})") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a Hugging Face model folder")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields
