"""Shape and constants of a decoder, the same for every family and file format.

Everything that would change the logits and that this library does not compute is refused by the
readers, by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
ROPE_KINDS = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and constants of a decoder; hashable, so it may be a static argument of `jax.jit`.

    Attributes:
        vocab_size: number of token ids, and of logits.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward part.
        num_layers: number of blocks.
        num_heads: query heads.
        num_kv_heads: key-value heads; divides `num_heads`.
        head_dim: width of one head; even.
        rope_theta: base of the rotary frequencies.
        rope_factors: `head_dim / 2` divisors of the rotary frequencies, None for plain RoPE. One
            representation for linear scaling, Llama 3 scaling and the table that GGUF files carry.
        local_layers: for each layer whether it is local: sees the last `window` positions only.
            Empty = none is.
        window: a local layer's query sees keys with ``query position - key position < window``.
        local_rope_theta: base of the rotary frequencies of local layers, never scaled; None = those
            of all others.
        norm_eps: added to the mean square in RMSNorm.
        norm_offset: added to the weights of RMSNorm: 1 where they are stored around zero (Gemma).
        post_norms: whether the outputs of attention and feed-forward are normalised too (Gemma:
            four norms a block).
        qk_norm: whether queries and keys are normalised, head by head, before they are rotated
            (Qwen 3, Gemma 3).
        qkv_bias: whether query, key and value have biases (Qwen 2).
        activation: of the feed-forward gate, one of `ACTIVATIONS`.
        query_scale: factor of the attention scores; 0 = ``head_dim ** -0.5``.
        attention_softcap: scores become ``cap * tanh(scores / cap)``; None = no cap.
        logit_softcap: likewise the logits.
        scale_embeddings: whether embeddings are multiplied by ``sqrt(hidden_size)`` (Gemma).
        tie_embeddings: whether the output head is the embedding matrix.
        max_positions: the context length that the checkpoint was trained for; nothing enforces it.
        bos_token_id: first token of a text, None where the checkpoint names none.
        eos_token_ids: the tokens that end a text, possibly none.
        family: architecture, one of `FAMILIES`; only errors and file formats look at it.

    Raises:
        ValueError: a size that is not a positive integer, or sizes that do not fit each other.

    >>> from gls_jax.models import Config
    >>> Config(
    ...     vocab_size=32,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     num_kv_heads=1,
    ... ).head_dim
    4
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 0  # 0 = hidden_size / num_heads
    rope_theta: float = 10_000.0
    rope_factors: tuple[float, ...] | None = None
    local_layers: tuple[bool, ...] = ()
    window: int | None = None
    local_rope_theta: float | None = None
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    activation: str = "silu"
    query_scale: float = 0.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    scale_embeddings: bool = False
    tie_embeddings: bool = False
    max_positions: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    family: str = "llama"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(
                f"model family {self.family!r} is not supported; expected one of: {', '.join(FAMILIES)}"
            )
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
        ):
            _positive(getattr(self, name), name)
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        _positive(self.head_dim, "head_dim")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ValueError(
                f"expected {self.head_dim // 2} rope_factors, got {len(self.rope_factors)}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        if self.local_layers:
            if len(self.local_layers) != self.num_layers:
                raise ValueError(
                    f"local_layers: expected {self.num_layers} of them, got {len(self.local_layers)}"
                )
            _positive(self.window, "window of local layers")
        if not self.query_scale:
            object.__setattr__(self, "query_scale", self.head_dim**-0.5)

    def keep(self, layers: Sequence[int]) -> Config:
        """Config of the same model with only these layers, each of its own kind."""
        local = tuple(self.local_layers[layer] for layer in layers) if self.local_layers else ()
        return dataclasses.replace(self, num_layers=len(layers), local_layers=local)


def rope_factors(
    scaling: Mapping[str, Any], theta: float, head_dim: int
) -> tuple[float, ...] | None:
    """Divisors of the `head_dim / 2` rotary frequencies under a scaling rule, None where all are
    one.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise ValueError(
            f"rope scaling {kind!r} is not supported; expected one of: {', '.join(ROPE_KINDS)}"
        )
    if theta <= 0:
        raise ValueError(f"rope_theta: expected a positive number, got {theta}")
    if kind == "default":
        return None
    if (factor := field(scaling, "factor", float)) <= 0:
        raise ValueError(f"factor of rope scaling: expected a positive number, got {factor}")
    if kind == "linear":
        return (factor,) * (head_dim // 2)
    # Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended.
    low, high = field(scaling, "low_freq_factor", float), field(scaling, "high_freq_factor", float)
    context = field(scaling, "original_max_position_embeddings", float)
    if high <= low:
        raise ValueError(f"high_freq_factor: expected more than low_freq_factor {low}, got {high}")
    divisors = []
    for index in range(head_dim // 2):
        turns = context / (
            2 * math.pi * theta ** (2 * index / head_dim)
        )  # full turns within the original context
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (blend + (1 - blend) / factor))
    return tuple(divisors)


def field(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """A number of a checkpoint's metadata, or one line that says what is wrong with it."""
    value = fields.get(name)
    accepted = (int, float) if kind is float else int
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(
            f"{name}: expected {'a number' if kind is float else 'an integer'}, got {value!r}"
        )
    return kind(value)


def _positive(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
