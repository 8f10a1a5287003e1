"""GGUF files: metadata and dequantised weights in the layout of the original checkpoint, read by
the package `gguf`.
"""

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
from gls_jax.models.config import Config, field, rope_factors
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
ROPE_FACTORS = (
    "rope_freqs.weight"  # Llama 3's divisors of the rotary frequencies: a constant, not a weight
)


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
    extras.module("gguf", "lm")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a GGUF file")
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise ValueError(f"{path}: expected a GGUF file, got one that starts with {magic!r}")
    status = path.stat()
    return _read(path, (status.st_mtime_ns, status.st_size))


@lru_cache(
    maxsize=1
)  # a model and its chat template are in one file, and its vocabulary takes a second or two
def _read(path: Path, version: tuple[int, int]) -> File:
    gguf = extras.module("gguf", "lm")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (
        struct.error,
        LookupError,
        TypeError,
        ValueError,
        MemoryError,
        ArithmeticError,
    ) as error:
        # The package lets NumPy say what it meets beyond the end of a file.
        raise ValueError(
            f"{path}: truncated or corrupt GGUF file ({type(error).__name__})"
        ) from error
    return File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def read_config(file: File) -> Config:
    """Config of an opened file, with Llama 3's frequency table where the file has one.

    Raises:
        ValueError: another architecture, or metadata that do not describe a model.
    """
    try:
        config = from_gguf(file.metadata, tie_embeddings=NAMES["head"] not in file.entries)
        if ROPE_FACTORS in file.entries:
            factors = tuple(_dequantise(file, ROPE_FACTORS).tolist())
            config = dataclasses.replace(config, rope_factors=factors)
    except TypeError as error:
        raise ValueError(f"{file.path}: a field has the wrong type: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    return config


def from_gguf(metadata: Mapping[str, Any], *, tie_embeddings: bool) -> Config:
    """Config from the metadata of a GGUF file, where Llama 3's frequency table is a tensor and not
    part of it.

    Args:
        metadata: the file's key-value pairs.
        tie_embeddings: True when the file has no output matrix of its own; nothing in the metadata
            tells.

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
    own = {
        key.removeprefix(f"{family}."): value
        for key, value in metadata.items()
        if key.startswith(f"{family}.")
    }
    if own.get("expert_count"):
        raise ValueError(
            f"{family}.expert_count {own['expert_count']} is not supported; expected a dense model"
        )
    heads = field(own, "attention.head_count", int)
    hidden = field(own, "embedding_length", int)
    head_dim = own.get("attention.key_length") or hidden // max(heads, 1)
    for name in ("rope.dimension_count", "attention.value_length"):
        if (size := own.get(name, head_dim)) != head_dim:
            raise ValueError(
                f"{family}.{name} {size} is not supported; expected the head size, {head_dim}"
            )
    theta = float(own.get("rope.freq_base", 10_000.0))
    kind = own.get("rope.scaling.type", "none")
    scaling = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": own.get("rope.scaling.factor"),
    }
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    return Config(
        vocab_size=own.get("vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ())),
        hidden_size=hidden,
        intermediate_size=field(own, "feed_forward_length", int),
        num_layers=field(own, "block_count", int),
        num_heads=heads,
        num_kv_heads=own.get("attention.head_count_kv") or heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=rope_factors(scaling, theta, head_dim),
        norm_eps=field(own, "attention.layer_norm_rms_epsilon", float),
        tie_embeddings=tie_embeddings,
        max_positions=int(own.get("context_length", 2048)),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (eos,),
        family=family,
    )


def read_tensors(file: File, config: Config) -> Tensors:
    """The weights of an opened file, for `weights.build`."""
    heads = {NAMES["blocks.attention.query.weight"]: config.num_heads}
    heads |= {NAMES["blocks.attention.key.weight"]: config.num_kv_heads}
    permuted = {
        name.format(layer): count
        for name, count in heads.items()
        for layer in range(config.num_layers)
    }

    def read(name: str) -> np.ndarray:
        weight = _dequantise(file, name)
        return half_split(weight, permuted[name]) if name in permuted else weight

    shapes = {name: _shape(entry) for name, entry in file.entries.items() if name != ROPE_FACTORS}
    return Tensors(str(file.path), shapes, NAMES, read)


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix back from interleaved to half-split RoPE: llama.cpp permutes
    them for Llama.

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
    # Blocks never cross rows, so joining rows is harmless: the package loops over groups of 16
    # rows, six times slower.
    joined = entry.data.reshape(rows // math.gcd(rows, 32), -1)
    try:
        return dequantize(joined, entry.tensor_type).reshape(shape)
    except NotImplementedError as error:
        raise ValueError(
            f"{file.path}: {name}: cannot dequantise {entry.tensor_type.name}"
        ) from error


def _shape(entry: Any) -> tuple[int, ...]:
    """ggml counts dimensions from the fastest moving one, NumPy from the slowest."""
    return tuple(int(size) for size in reversed(entry.shape))
