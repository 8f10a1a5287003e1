"""GGUF files: header, metadata and dequantised weights in the layout of the original checkpoint.

The header is read here and not by `gguf.GGUFReader`, which makes a memory-map slice of every metadata string: 2.5 s for
a vocabulary of 49,152 against 0.1 s, and a truncated file ends in whatever NumPy says. Dequantisation is the package's.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

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

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Entry(NamedTuple):
    """Where one tensor lies: `shape` in NumPy order, `kind` ggml's number of its quantisation, bytes from the start."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class File(NamedTuple):
    """An opened GGUF file: metadata, its tensors, and the bytes they lie in."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, Entry]
    data: np.ndarray


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
    if path.stat().st_size < 24:
        raise ValueError(f"{path}: expected a GGUF file, got {path.stat().st_size} bytes")
    data = np.memmap(path, mode="r")
    if bytes(data[:4]) != b"GGUF":
        raise ValueError(f"{path}: expected a GGUF file, got one that starts with {bytes(data[:4])!r}")
    try:
        metadata, entries = _header(_Reader(data.data), gguf)
    except (struct.error, LookupError, TypeError, UnicodeDecodeError, MemoryError, ArithmeticError) as error:
        raise ValueError(f"{path}: truncated or corrupt GGUF header ({type(error).__name__})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, entry in entries.items():
        if entry.start + entry.size > data.size:
            raise ValueError(f"{path}: truncated: {name} ends at byte {entry.start + entry.size}, file at {data.size}")
    return File(path, metadata, entries, data)


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

    shapes = {name: entry.shape for name, entry in file.entries.items() if name != ROPE_FACTORS}
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
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    entry = file.entries[name]
    kind = GGMLQuantizationType(entry.kind)
    raw = np.asarray(file.data[entry.start : entry.start + entry.size])
    rows = math.prod(entry.shape[:-1])
    # Blocks never cross rows, so joining rows is harmless: the package loops over groups of 16 rows, six times slower.
    joined = raw.reshape(rows // math.gcd(rows, 32), -1)
    try:
        return dequantize(joined, kind).reshape(entry.shape)
    except NotImplementedError as error:
        raise ValueError(f"{file.path}: {name}: cannot dequantise {kind.name}") from error


class _Reader:
    """Cursor over the header; running off the end raises `struct.error` or `IndexError`."""

    def __init__(self, view: memoryview):
        self.view, self.at = view, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        if self.at + size > len(self.view):
            raise IndexError("string runs off the end of the file")
        self.at += size
        return str(self.view[self.at - size : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if item not in _SCALARS:
            return [self.value(item) for _ in range(count)]
        code = f"<{count}{_SCALARS[item]}"
        values = struct.unpack_from(code, self.view, self.at)
        self.at += struct.calcsize(code)
        return list(values)


def _header(reader: _Reader, gguf: Any) -> tuple[dict[str, Any], dict[str, Entry]]:
    reader.at = 4
    if (version := reader.scalar("I")) not in (2, 3):
        raise ValueError(f"expected GGUF version 2 or 3, got {version}")
    tensors, pairs = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(pairs):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    raw = []
    for _ in range(tensors):
        name, rank = reader.string(), reader.scalar("I")
        # ggml counts dimensions from the fastest moving one, NumPy from the slowest.
        shape = tuple(reader.scalar("Q") for _ in range(rank))[::-1]
        raw.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    base = -(-reader.at // alignment) * alignment
    entries = {}
    for name, shape, kind, offset in raw:
        block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if shape and shape[-1] % block:
            raise ValueError(f"{name}: expected rows of a multiple of {block} numbers, got {shape[-1]}")
        entries[name] = Entry(shape, kind, base + offset, math.prod(shape) // block * width)
    return metadata, entries
