"""Configuration of a decoder, the same for every family and file format.

The readers refuse, by name, every feature that would change the logits and that is not computed
here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gls_jax import checks

__all__ = ["ACTIVATIONS", "FAMILIES", "Config", "errors_with_path", "number_field", "rope_factors"]

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_ROPE_KINDS = ("default", "linear", "llama3")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and constants of a decoder; hashable, so it may be a static argument of `jax.jit`.

    Attributes:
        vocab_size: number of token ids, and of logits.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward part.
        num_layers: number of blocks.
        num_heads: query heads.
        num_kv_heads: key-value heads; divides `num_heads`.
        head_dim: width of one head; even.
        rope_theta: base of the rotary frequencies.
        rope_factors: `head_dim / 2` divisors of the rotary frequencies, None for plain RoPE. Linear
            scaling, Llama 3 scaling and the table of GGUF files all take this form.
        local_layers: for each layer whether it is local, that is, sees the last `window` positions
            only. Empty: all are global.
        window: a local layer's query sees keys with ``query position - key position < window``.
        local_rope_theta: base of the rotary frequencies of local layers, never scaled; None: as in
            global layers.
        norm_eps: added to the mean square in RMSNorm.
        norm_offset: added to the weights of RMSNorm: 1 if they are stored around zero (Gemma).
        post_norms: whether the outputs of attention and feed-forward are normalised too (Gemma:
            four norms a block).
        qk_norm: whether each head's queries and keys are normalised before the rotation (Qwen 3,
            Gemma 3).
        qkv_bias: whether query, key and value have biases (Qwen 2).
        activation: of the feed-forward gate, one of `ACTIVATIONS`.
        query_scale: factor of the attention scores; 0: ``head_dim ** -0.5``.
        attention_softcap: scores become ``cap * tanh(scores / cap)``; None: no cap.
        logit_softcap: the same for the logits.
        scale_embeddings: whether embeddings are multiplied by ``sqrt(hidden_size)`` (Gemma).
        tie_embeddings: whether the output head is the embedding matrix.
        max_positions: context length that the checkpoint was trained for; not enforced.
        bos_token_id: first token of a text, None if the checkpoint names none.
        eos_token_ids: tokens that end a text, possibly none.
        family: architecture, one of `FAMILIES`; used by errors and file formats only.

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
    head_dim: int = 0  # 0: hidden_size / num_heads
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
                f"model family {self.family!r} is not supported; "
                f"expected one of: {', '.join(FAMILIES)}"
            )
        for name in _SIZES:
            self._set(name, checks.count(getattr(self, name), name))
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_heads "
                    f"{self.num_heads}"
                )
            self._set("head_dim", self.hidden_size // self.num_heads)
        self._set("head_dim", checks.count(self.head_dim, "head_dim"))
        # RoPE rotates pairs of coordinates.
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        # Grouped-query attention: equally many query heads share each key-value head.
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        num_frequencies = self.head_dim // 2
        if self.rope_factors is not None and len(self.rope_factors) != num_frequencies:
            raise ValueError(
                f"expected {num_frequencies} rope_factors, got {len(self.rope_factors)}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        if self.local_layers:
            if len(self.local_layers) != self.num_layers:
                raise ValueError(
                    f"local_layers: expected {self.num_layers} of them, "
                    f"got {len(self.local_layers)}"
                )
            self._set("window", checks.count(self.window, "window of local layers"))
        if not self.query_scale:
            self._set("query_scale", self.head_dim**-0.5)

    def _set(self, name: str, value: Any) -> None:
        # The class is frozen.
        object.__setattr__(self, name, value)

    def keep(self, layers: Sequence[int]) -> Config:
        """Config of the same model with these layers only; each stays local or global."""
        local_layers: tuple[bool, ...] = ()
        if self.local_layers:
            local_layers = tuple(self.local_layers[layer] for layer in layers)
        return dataclasses.replace(self, num_layers=len(layers), local_layers=local_layers)


def rope_factors(
    scaling: Mapping[str, Any], theta: float, head_dim: int
) -> tuple[float, ...] | None:
    """Divisors of the `head_dim / 2` rotary frequencies under a scaling rule.

    Args:
        scaling: the rule as a `config.json` has it under `rope_scaling`.
        theta: base of the frequencies.
        head_dim: width of one head.

    Returns:
        The divisors, None if all are one.

    Raises:
        ValueError: a rule that is not supported, or numbers missing or out of range.
    """
    # Early configs of transformers name the rule `type`.
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise ValueError(
            f"rope scaling {kind!r} is not supported; expected one of: {', '.join(_ROPE_KINDS)}"
        )
    if theta <= 0:
        raise ValueError(f"rope_theta: expected a positive number, got {theta}")
    if kind == "default":
        return None
    factor = number_field(scaling, "factor", float)
    if factor <= 0:
        raise ValueError(f"factor of rope scaling: expected a positive number, got {factor}")
    if kind == "linear":
        return (factor,) * (head_dim // 2)
    # Llama 3.1 divides frequencies of long wavelength by `factor` and keeps those of short
    # wavelength. The limits count full turns within the context length of the first training;
    # between them the frequencies are interpolated.
    low_turns = number_field(scaling, "low_freq_factor", float)
    high_turns = number_field(scaling, "high_freq_factor", float)
    context_length = number_field(scaling, "original_max_position_embeddings", float)
    if high_turns <= low_turns:
        raise ValueError(
            f"high_freq_factor: expected more than low_freq_factor {low_turns}, got {high_turns}"
        )
    divisors = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        num_turns = context_length / wavelength
        kept_share = (num_turns - low_turns) / (high_turns - low_turns)
        kept_share = min(max(kept_share, 0.0), 1.0)
        divisors.append(1 / (kept_share + (1 - kept_share) / factor))
    return tuple(divisors)


def number_field(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """Number of type `kind`, `int` or `float`, among a checkpoint's configuration fields.

    Raises:
        ValueError: the field is missing or no number.
    """
    value = fields.get(name)
    expected = "an integer" if kind is int else "a number"
    # In Python a bool is an int; in a configuration it is a mistake.
    if not isinstance(value, (int, kind)) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return kind(value)


@contextmanager
def errors_with_path(path: Path) -> Iterator[None]:
    """Errors of the block about a configuration become one `ValueError` that names the file.

    A field of another type than expected fails wherever it is first used.
    """
    try:
        yield
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: a field has the wrong type: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
