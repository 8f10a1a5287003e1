"""What a checkpoint says about its architecture, read from `config.json` (both dialects) or GGUF metadata.

Everything that would change the logits and that this library does not compute is refused here, by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

FAMILIES = ("llama",)
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
        rope_factors: `head_dim / 2` divisors of the rotary frequencies, None for plain RoPE. One representation for
            linear scaling, Llama 3 scaling and the table that GGUF files carry.
        norm_eps: added to the mean square in RMSNorm.
        tie_embeddings: whether the output head is the embedding matrix.
        max_positions: the context length that the checkpoint was trained for; nothing enforces it.
        bos_token_id: first token of a text, None where the checkpoint names none.
        eos_token_ids: the tokens that end a text, possibly none.
        family: architecture, one of `FAMILIES`.

    Raises:
        ValueError: a size that is not a positive integer, or sizes that do not fit each other.

    >>> from gls_jax.models import Config
    >>> Config(vocab_size=32, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, num_kv_heads=1).head_dim
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
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    max_positions: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    family: str = "llama"

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"model family {self.family!r} is not supported; expected one of: {', '.join(FAMILIES)}")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            _positive(getattr(self, name), name)
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        _positive(self.head_dim, "head_dim")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ValueError(f"expected {self.head_dim // 2} rope_factors, got {len(self.rope_factors)}")


def from_huggingface(fields: Mapping[str, Any]) -> Config:
    """Config from the fields of a Hugging Face `config.json`.

    Both dialects are read: `rope_theta` beside `rope_scaling`, and transformers 5's `rope_parameters`. Fields left out
    take the defaults of transformers' `LlamaConfig`.

    Raises:
        ValueError: an unknown `model_type`, a missing or ill-typed field, or a feature that is not supported.

    >>> from gls_jax.models.config import from_huggingface
    >>> sizes = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    >>> from_huggingface(dict(sizes, model_type="llama", rope_parameters={"rope_theta": 5e5})).rope_theta
    500000.0
    """
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type {family!r} is not supported; expected one of: {', '.join(FAMILIES)}")
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise ValueError(f"{name}=true is not supported; expected a model without biases")
    if (activation := fields.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"hidden_act {activation!r} is not supported; expected 'silu'")
    heads = _field(fields, "num_attention_heads", int)
    hidden = _field(fields, "hidden_size", int)
    head_dim = fields.get("head_dim") or hidden // max(heads, 1)
    # transformers 5 moved theta into rope_parameters and kept rope_scaling's other keys beside it.
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if (partial := rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError(f"partial_rotary_factor {partial} is not supported; expected 1.0")
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    eos = fields.get("eos_token_id", 2)
    return Config(
        vocab_size=_field(fields, "vocab_size", int),
        hidden_size=hidden,
        intermediate_size=_field(fields, "intermediate_size", int),
        num_layers=_field(fields, "num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=_rope_factors(rope, theta, head_dim),
        norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        max_positions=int(fields.get("max_position_embeddings", 2048)),
        bos_token_id=fields.get("bos_token_id", 1),
        eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        family=family,
    )


def from_gguf(metadata: Mapping[str, Any], *, tie_embeddings: bool) -> Config:
    """Config from the metadata of a GGUF file, where Llama 3's frequency table is a tensor and not part of it.

    Args:
        metadata: the file's key-value pairs.
        tie_embeddings: True when the file has no output matrix of its own; nothing in the metadata tells.

    Raises:
        ValueError: an unknown `general.architecture`, a missing field, or a feature that is not supported.

    >>> from gls_jax.models.config import from_gguf
    >>> from_gguf({"general.architecture": "gpt2"}, tie_embeddings=True)
    Traceback (most recent call last):
    ...
    ValueError: general.architecture 'gpt2' is not supported; expected one of: llama
    """
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise ValueError(f"general.architecture {family!r} is not supported; expected one of: {', '.join(FAMILIES)}")
    own = {key.removeprefix(f"{family}."): value for key, value in metadata.items() if key.startswith(f"{family}.")}
    if own.get("expert_count"):
        raise ValueError(f"{family}.expert_count {own['expert_count']} is not supported; expected a dense model")
    heads = _field(own, "attention.head_count", int)
    hidden = _field(own, "embedding_length", int)
    head_dim = own.get("attention.key_length") or hidden // max(heads, 1)
    for name in ("rope.dimension_count", "attention.value_length"):
        if (size := own.get(name, head_dim)) != head_dim:
            raise ValueError(f"{family}.{name} {size} is not supported; expected the head size, {head_dim}")
    theta = float(own.get("rope.freq_base", 10_000.0))
    kind = own.get("rope.scaling.type", "none")
    scaling = {"rope_type": "default" if kind == "none" else kind, "factor": own.get("rope.scaling.factor")}
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    return Config(
        vocab_size=own.get("vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ())),
        hidden_size=hidden,
        intermediate_size=_field(own, "feed_forward_length", int),
        num_layers=_field(own, "block_count", int),
        num_heads=heads,
        num_kv_heads=own.get("attention.head_count_kv") or heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=_rope_factors(scaling, theta, head_dim),
        norm_eps=_field(own, "attention.layer_norm_rms_epsilon", float),
        tie_embeddings=tie_embeddings,
        max_positions=int(own.get("context_length", 2048)),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (eos,),
        family=family,
    )


def _rope_factors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> tuple[float, ...] | None:
    """Divisors of the `head_dim / 2` rotary frequencies under a scaling rule, None where all are one."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise ValueError(f"rope scaling {kind!r} is not supported; expected one of: {', '.join(ROPE_KINDS)}")
    if theta <= 0:
        raise ValueError(f"rope_theta: expected a positive number, got {theta}")
    if kind == "default":
        return None
    if (factor := _field(scaling, "factor", float)) <= 0:
        raise ValueError(f"factor of rope scaling: expected a positive number, got {factor}")
    if kind == "linear":
        return (factor,) * (head_dim // 2)
    # Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended.
    low, high = _field(scaling, "low_freq_factor", float), _field(scaling, "high_freq_factor", float)
    context = _field(scaling, "original_max_position_embeddings", float)
    if high <= low:
        raise ValueError(f"high_freq_factor: expected more than low_freq_factor {low}, got {high}")
    divisors = []
    for index in range(head_dim // 2):
        turns = context / (2 * math.pi * theta ** (2 * index / head_dim))  # full turns within the original context
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (blend + (1 - blend) / factor))
    return tuple(divisors)


def _field(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    accepted = (int, float) if kind is float else int
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {'a number' if kind is float else 'an integer'}, got {value!r}")
    return kind(value)


def _positive(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
