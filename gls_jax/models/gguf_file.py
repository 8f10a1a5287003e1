"""GGUF files: metadata and dequantised weights in the layout of the original checkpoint, read by the package `gguf`."""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gls_jax.models import config as configs
from gls_jax.models.config import Config
from gls_jax.models.packages import require
from gls_jax.models.weights import Tensors

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
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's divisors of the rotary frequencies: a constant, not a weight


class File(NamedTuple):
    """An opened GGUF file: its metadata, and its tensors as the package's `ReaderTensor`."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, Any]


def open_file(path: str | Path) -> File:
    """Read the header of a GGUF file; tensor data stay on disk.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GGUF file, of another version, or cut off.
        ModuleNotFoundError: the package `gguf` is not installed.
    """
    path = Path(path)
    gguf = require("gguf")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a GGUF file")
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise ValueError(f"{path}: expected a GGUF file, got one that starts with {magic!r}")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (struct.error, LookupError, TypeError, ValueError, MemoryError, ArithmeticError) as error:
        # The package lets NumPy say what it meets beyond the end of a file.
        raise ValueError(f"{path}: truncated or corrupt GGUF file ({type(error).__name__})") from error
    return File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def read_config(file: File) -> Config:
    """Config of an opened file, with Llama 3's frequency table where the file has one.

    Raises:
        ValueError: another architecture, or metadata that do not describe a model.
    """
    try:
        config = configs.from_gguf(file.metadata, tie_embeddings=NAMES["head"] not in file.entries)
        if ROPE_FACTORS in file.entries:
            factors = tuple(_dequantise(file, ROPE_FACTORS).tolist())
            config = dataclasses.replace(config, rope_factors=factors)
    except TypeError as error:
        raise ValueError(f"{file.path}: a field has the wrong type: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    return config


def read_tensors(file: File, config: Config) -> Tensors:
    """The weights of an opened file, for `weights.build`."""
    heads = {NAMES["blocks.attention.query.weight"]: config.num_heads}
    heads |= {NAMES["blocks.attention.key.weight"]: config.num_kv_heads}
    permuted = {name.format(layer): count for name, count in heads.items() for layer in range(config.num_layers)}

    def read(name: str) -> np.ndarray:
        weight = _dequantise(file, name)
        return half_split(weight, permuted[name]) if name in permuted else weight

    shapes = {name: _shape(entry) for name, entry in file.entries.items() if name != ROPE_FACTORS}
    return Tensors(str(file.path), shapes, NAMES, read)


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix back from interleaved to half-split RoPE: llama.cpp permutes them for Llama.

    Args:
        weight: `[heads * D, M]` with the two coordinates of a rotated pair next to each other.
        heads: how many heads share the rows.

    Returns:
        `[heads * D, M]` with the pair `D / 2` apart.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _dequantise(file: File, name: str) -> np.ndarray:
    from gguf.quants import dequantize

    entry = file.entries[name]
    shape = _shape(entry)
    rows = math.prod(shape[:-1])
    # Blocks never cross rows, so joining rows is harmless: the package loops over groups of 16 rows, six times slower.
    joined = entry.data.reshape(rows // math.gcd(rows, 32), -1)
    try:
        return dequantize(joined, entry.tensor_type).reshape(shape)
    except NotImplementedError as error:
        raise ValueError(f"{file.path}: {name}: cannot dequantise {entry.tensor_type.name}") from error


def _shape(entry: Any) -> tuple[int, ...]:
    """ggml counts dimensions from the fastest moving one, NumPy from the slowest."""
    return tuple(int(size) for size in reversed(entry.shape))
