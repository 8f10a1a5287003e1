"""From the `config.json` of each family to a `Config`, in the dialects of transformers 4 and 5.

To add a family:

1. Name its `model_type` in `config.FAMILIES`.
2. Here, give transformers' defaults in `_DEFAULTS` and set its features in `from_huggingface`.
3. If its block differs, add a field to `config.Config` and compute it in `layers.py`.
4. If its weights have other names, map them in `huggingface.NAMES`.
5. Compare its logits with transformers in `tests/peers/test_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gls_jax.models.config import FAMILIES, Config, number_field, rope_factors

__all__ = ["from_huggingface"]

_QWEN = {
    "hidden_act": "silu",
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "head_dim": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
# Values that transformers gives to fields that a config.json leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "gemma2": _GEMMA
    | {
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": _GEMMA
    | {
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
}
# Features that would change the logits and are not computed here.
_REFUSED = ("attention_bias", "mlp_bias", "use_bidirectional_attention", "quantization_config")
_LOCAL = "sliding_attention"
_GLOBAL = "full_attention"


def from_huggingface(fields: Mapping[str, Any]) -> Config:
    """Config from the fields of a Hugging Face `config.json`.

    Both dialects are read: `rope_theta` and `rope_scaling` of transformers 4, and `rope_parameters`
    of transformers 5. Fields left out take transformers' defaults of the family.

    Raises:
        ValueError: an unknown `model_type`, a missing or ill-typed field, or a feature that is not
            supported.

    >>> from gls_jax.models.families import from_huggingface
    >>> sizes = dict(
    ...     vocab_size=32,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_hidden_layers=2,
    ...     num_attention_heads=2,
    ... )
    >>> llama = dict(sizes, model_type="llama", rope_parameters={"rope_theta": 5e5})
    >>> from_huggingface(llama).rope_theta
    500000.0
    >>> gemma = dict(sizes, model_type="gemma2", num_key_value_heads=1)
    >>> from_huggingface(gemma).local_layers
    (True, False)
    """
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"model_type {family!r} is not supported; expected one of: {', '.join(FAMILIES)}"
        )
    fields = _DEFAULTS[family] | dict(fields)
    is_gemma = family.startswith("gemma")
    activation = "gelu_pytorch_tanh" if is_gemma else "silu"
    _check_features(fields, activation)
    num_heads = number_field(fields, "num_attention_heads", int)
    hidden_size = number_field(fields, "hidden_size", int)
    num_layers = number_field(fields, "num_hidden_layers", int)
    # `max`: zero heads get the error of `Config`, not a division by zero.
    head_dim = fields.get("head_dim") or hidden_size // max(num_heads, 1)
    scaling, theta, local_theta = _rope_settings(fields)
    local_layers = _local_layers(fields, num_layers)
    return Config(
        vocab_size=number_field(fields, "vocab_size", int),
        hidden_size=hidden_size,
        intermediate_size=number_field(fields, "intermediate_size", int),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=rope_factors(scaling, theta, head_dim),
        local_layers=local_layers,
        window=number_field(fields, "sliding_window", int) if local_layers else None,
        local_rope_theta=local_theta,
        norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        # Gemma stores the weights of its norms around zero and adds one.
        norm_offset=1.0 if is_gemma else 0.0,
        post_norms=is_gemma,
        qk_norm=family in ("qwen3", "gemma3_text"),
        # The config of Qwen 2 does not mention its biases: they are part of the architecture.
        qkv_bias=family == "qwen2",
        activation=activation,
        # Gemma scales scores by a separate size instead of the head's; 0 is the usual scale.
        query_scale=_positive_number(fields, "query_pre_attn_scalar") ** -0.5 if is_gemma else 0.0,
        attention_softcap=_optional_cap(fields, "attn_logit_softcapping") if is_gemma else None,
        logit_softcap=_optional_cap(fields, "final_logit_softcapping") if is_gemma else None,
        scale_embeddings=is_gemma,
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        max_positions=int(fields["max_position_embeddings"]),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=_token_ids(fields.get("eos_token_id")),
        family=family,
    )


def _check_features(fields: Mapping[str, Any], activation: str) -> None:
    """Raise for a feature that would change the logits and is not computed here."""
    for name in _REFUSED:
        if fields.get(name):
            raise ValueError(f"{name}={fields[name]!r} is not supported; expected none")
    family = fields["model_type"]
    # Gemma configs may have `hidden_act` too, which transformers does not use.
    name = "hidden_activation" if family.startswith("gemma") else "hidden_act"
    if fields[name] != activation:
        raise ValueError(f"{name} {fields[name]!r} is not supported; expected {activation!r}")
    # Gemma 3 normalises queries and keys instead of capping the scores.
    if family == "gemma3_text" and fields.get("attn_logit_softcapping") is not None:
        raise ValueError(
            "attn_logit_softcapping of a gemma3_text model is not supported; expected null"
        )


def _rope_settings(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], float, float | None]:
    """Rotary frequencies: scaling rule and base, and the base of local layers if it differs."""
    # transformers 5 has all in `rope_parameters`. Gemma 3 has one table for each layer type there,
    # because its local layers have another base; the other families have one table.
    tables = fields.get("rope_parameters") or {}
    has_layer_types = bool({_LOCAL, _GLOBAL} & set(tables))
    needs_layer_types = fields["model_type"] == "gemma3_text"
    if tables and has_layer_types != needs_layer_types:
        expected = "one table per layer type" if needs_layer_types else "one table"
        raise ValueError(f"rope_parameters: expected {expected}, got {tables!r}")
    local_table = tables.get(_LOCAL) or {}
    global_table = (tables.get(_GLOBAL) or {}) if has_layer_types else tables
    # transformers 4 has the rule in `rope_scaling`, and the bases as separate fields.
    scaling = {**global_table, **(fields.get("rope_scaling") or {})}
    default_share = fields.get("partial_rotary_factor", 1.0)
    for table in (scaling, local_table):
        rotary_share = table.get("partial_rotary_factor", default_share)
        if rotary_share != 1.0:
            raise ValueError(f"partial_rotary_factor {rotary_share} is not supported; expected 1.0")
    local_kind = local_table.get("rope_type", "default")
    if local_kind != "default":
        raise ValueError(
            f"rope scaling {local_kind!r} of local layers is not supported; expected 'default'"
        )
    theta = float(scaling.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    local_theta = None
    if needs_layer_types:
        local_theta = float(local_table.get("rope_theta", fields["rope_local_base_freq"]))
    return scaling, theta, local_theta


def _local_layers(fields: Mapping[str, Any], num_layers: int) -> tuple[bool, ...]:
    """For each layer whether it sees a sliding window only; empty if none does."""
    family = fields["model_type"]
    layer_types = fields.get("layer_types")
    if family == "llama":
        return ()
    # Qwen configs name a window even where `use_sliding_window` switches it off.
    is_qwen = family.startswith("qwen")
    window = None
    if not is_qwen or fields.get("use_sliding_window"):
        window = fields["sliding_window"]
    if layer_types is not None:
        # transformers 5 lists the type of every layer.
        unknown_types = set(layer_types) - {_LOCAL, _GLOBAL}
        if unknown_types:
            raise ValueError(
                f"layer_types {sorted(unknown_types)} are not supported; "
                f"expected {_GLOBAL} or {_LOCAL}"
            )
        if len(layer_types) != num_layers:
            raise ValueError(f"layer_types: expected {num_layers} of them, got {len(layer_types)}")
        is_local = [layer_type == _LOCAL for layer_type in layer_types]
    elif is_qwen:
        # `max_window_layers` counts the first layers, which are global.
        first_local = fields["max_window_layers"]
        is_local = [window is not None and layer >= first_local for layer in range(num_layers)]
    else:
        # Gemma: the last layer of every period is global.
        period = 2 if family == "gemma2" else _positive_number(fields, "sliding_window_pattern")
        is_local = [(layer + 1) % period != 0 for layer in range(num_layers)]
    if not any(is_local):
        return ()
    if window is None:
        raise ValueError(
            "sliding_window: expected a number of positions for the sliding layers, got none"
        )
    return tuple(is_local)


def _positive_number(fields: Mapping[str, Any], name: str) -> float:
    value = number_field(fields, name, float)
    if value <= 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return value


def _optional_cap(fields: Mapping[str, Any], name: str) -> float | None:
    return None if fields.get(name) is None else _positive_number(fields, name)


def _token_ids(value: Any) -> tuple[int, ...]:
    """Token ids of a field that may be missing, one id or a list of them."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
