"""GGUF files: metadata, and weights dequantised by the package `gguf`."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gls_jax import extras
from gls_jax.models.config import Config, errors_with_path, number_field, rope_factors
from gls_jax.models.weights import Tensors

__all__ = [
    "NAMES",
    "ROPE_FACTORS",
    "File",
    "from_gguf",
    "half_split",
    "open_file",
    "read_config",
    "read_tensors",
]

# Our parameter path to the tensor's name; `{}` is the layer's index.
NAMES = {
    "embedding": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head": "output.weight",
    "blocks.attention_norm.weight": "blk.{}.attn_norm.weight",
    "blocks.attention.query.weight": "blk.{}.attn_q.weight",
    "blocks.attention.key.weight": "blk.{}.attn_k.weight",
    "blocks.attention.value.weight": "blk.{}.attn_v.weight",
    "blocks.attention.output.weight": "blk.{}.attn_output.weight",
    "blocks.feed_forward_norm.weight": "blk.{}.ffn_norm.weight",
    "blocks.feed_forward.gate.weight": "blk.{}.ffn_gate.weight",
    "blocks.feed_forward.up.weight": "blk.{}.ffn_up.weight",
    "blocks.feed_forward.down.weight": "blk.{}.ffn_down.weight",
}
# Llama 3's divisors of the rotary frequencies: a tensor in the file, but a constant of the model.
ROPE_FACTORS = "rope_freqs.weight"
# What the package raises for a broken file: it leaves it to NumPy to notice the end of the data.
_READ_ERRORS = (struct.error, LookupError, TypeError, ValueError, MemoryError, ArithmeticError)


class File(NamedTuple):
    """An opened GGUF file.

    Attributes:
        path: of the file.
        metadata: key-value pairs of its header.
        entries: its tensors by name, as the package's `ReaderTensor`.
    """

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, Any]


def open_file(path: str | Path) -> File:
    """Read the header of a GGUF file; tensor data stay on disk.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GGUF file, another version, or a truncated file.
        ModuleNotFoundError: the package `gguf` is not installed.
    """
    path = Path(path)
    extras.module("gguf", "lm")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a GGUF file")
    # The first bytes tell a file of another kind from a broken GGUF file.
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path}: expected a GGUF file, got one that starts with {magic!r}")
    status = path.stat()
    return _read_header(path, (status.st_mtime_ns, status.st_size))


# Parsing the vocabulary takes a second or two, and both the model and its chat template need it.
# `version` is a part of the cache's key: a file that was replaced is read again.
@lru_cache(maxsize=1)
def _read_header(path: Path, version: tuple[int, int]) -> File:
    gguf = extras.module("gguf", "lm")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except _READ_ERRORS as error:
        raise ValueError(
            f"{path}: truncated or corrupt GGUF file ({type(error).__name__})"
        ) from error
    entries = {tensor.name: tensor for tensor in reader.tensors}
    return File(path=path, metadata=metadata, entries=entries)


def read_config(file: File) -> Config:
    """Config of an opened file, with Llama 3's frequency table if the file has one.

    Raises:
        ValueError: another architecture, or metadata that do not describe a model.
    """
    with errors_with_path(file.path):
        config = from_gguf(file.metadata, tie_embeddings=NAMES["head"] not in file.entries)
        if ROPE_FACTORS in file.entries:
            divisors = tuple(_dequantise(file, ROPE_FACTORS).tolist())
            config = dataclasses.replace(config, rope_factors=divisors)
        return config


def from_gguf(metadata: Mapping[str, Any], *, tie_embeddings: bool) -> Config:
    """Config from the metadata of a GGUF file, without Llama 3's frequency table.

    Args:
        metadata: the file's key-value pairs.
        tie_embeddings: True if the file has no output matrix; the metadata do not tell.

    Raises:
        ValueError: an unknown `general.architecture`, a missing field, or a feature that is not
            supported.

    >>> from gls_jax.models.gguf_file import from_gguf
    >>> from_gguf({"general.architecture": "gpt2"}, tie_embeddings=True)
    Traceback (most recent call last):
    ...
    ValueError: general.architecture 'gpt2' is not supported in GGUF files; expected 'llama'
    """
    family = metadata.get("general.architecture")
    if family != "llama":
        raise ValueError(
            f"general.architecture {family!r} is not supported in GGUF files; expected 'llama'"
        )
    # The model's own fields are prefixed by its architecture.
    prefix = f"{family}."
    fields = {
        key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
    }
    if fields.get("expert_count"):
        raise ValueError(
            f"{family}.expert_count {fields['expert_count']} is not supported; "
            "expected a dense model"
        )
    num_heads = number_field(fields, "attention.head_count", int)
    hidden_size = number_field(fields, "embedding_length", int)
    # `max`: zero heads get the error of `Config`, not a division by zero.
    head_dim = fields.get("attention.key_length") or hidden_size // max(num_heads, 1)
    # Rotation of a part of each head, and values of another size than keys, are not computed.
    for name in ("rope.dimension_count", "attention.value_length"):
        size = fields.get(name, head_dim)
        if size != head_dim:
            raise ValueError(
                f"{family}.{name} {size} is not supported; expected the head size, {head_dim}"
            )
    theta = float(fields.get("rope.freq_base", 10_000.0))
    # llama.cpp writes `none` for plain RoPE. Llama 3's rule is not a scaling type: it is the tensor
    # ROPE_FACTORS, see `read_config`.
    scaling_type = fields.get("rope.scaling.type", "none")
    scaling = {
        "rope_type": "default" if scaling_type == "none" else scaling_type,
        "factor": fields.get("rope.scaling.factor"),
    }
    eos_token_id = metadata.get("tokenizer.ggml.eos_token_id")
    return Config(
        vocab_size=fields.get("vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ())),
        hidden_size=hidden_size,
        intermediate_size=number_field(fields, "feed_forward_length", int),
        num_layers=number_field(fields, "block_count", int),
        num_heads=num_heads,
        num_kv_heads=fields.get("attention.head_count_kv") or num_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=rope_factors(scaling, theta, head_dim),
        norm_eps=number_field(fields, "attention.layer_norm_rms_epsilon", float),
        tie_embeddings=tie_embeddings,
        max_positions=int(fields.get("context_length", 2048)),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos_token_id is None else (eos_token_id,),
        family=family,
    )


def read_tensors(file: File, config: Config) -> Tensors:
    """The weights of an opened file, for `weights.build`."""
    # Tensors whose rows llama.cpp permutes, and the heads that share these rows.
    permuted_heads = {}
    for layer in range(config.num_layers):
        query_name = NAMES["blocks.attention.query.weight"].format(layer)
        key_name = NAMES["blocks.attention.key.weight"].format(layer)
        permuted_heads[query_name] = config.num_heads
        permuted_heads[key_name] = config.num_kv_heads

    def read(name: str) -> np.ndarray:
        weight = _dequantise(file, name)
        if name in permuted_heads:
            weight = half_split(weight, permuted_heads[name])
        return weight

    shapes = {name: _shape(entry) for name, entry in file.entries.items() if name != ROPE_FACTORS}
    return Tensors(source=str(file.path), shapes=shapes, names=NAMES, read=read)


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix, from interleaved RoPE back to half-split RoPE.

    RoPE rotates pairs of coordinates of a head. Hugging Face checkpoints pair coordinate i with
    i + D / 2; for Llama, llama.cpp permutes the rows such that a pair is adjacent.

    Args:
        weight: `[heads * D, M]` with the two coordinates of a pair adjacent.
        heads: how many heads share the rows.

    Returns:
        `[heads * D, M]` with the two coordinates of a pair `D / 2` apart.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _dequantise(file: File, name: str) -> np.ndarray:
    from gguf.quants import dequantize

    entry = file.entries[name]
    shape = _shape(entry)
    # The package loops over groups of 16 rows. Up to 32 rows are joined here, which makes it six
    # times faster; quantised blocks never cross rows, so the values stay the same.
    num_rows = math.prod(shape[:-1])
    joined = entry.data.reshape(num_rows // math.gcd(num_rows, 32), -1)
    try:
        return dequantize(joined, entry.tensor_type).reshape(shape)
    except NotImplementedError as error:
        raise ValueError(
            f"{file.path}: {name}: cannot dequantise {entry.tensor_type.name}"
        ) from error


def _shape(entry: Any) -> tuple[int, ...]:
    """Shape in NumPy's order: ggml lists the fastest varying dimension first."""
    return tuple(int(size) for size in reversed(entry.shape))
