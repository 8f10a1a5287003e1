"""What the `config.json` of each family says, in the dialects of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gls_jax.models.config import FAMILIES, Config, field, rope_factors

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
# What transformers assumes where a config.json says nothing.
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
    | {"max_position_embeddings": 131_072, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0}
    | {"sliding_window_pattern": 6},
}
# What would change the logits and is not computed.
_REFUSED = ("attention_bias", "mlp_bias", "use_bidirectional_attention", "quantization_config")
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def from_huggingface(fields: Mapping[str, Any]) -> Config:
    """Config from the fields of a Hugging Face `config.json`.

    Both dialects are read: `rope_theta` beside `rope_scaling`, and transformers 5's
    `rope_parameters`. Fields left out take the defaults of transformers' config of that family.

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
    >>> from_huggingface(
    ...     dict(sizes, model_type="llama", rope_parameters={"rope_theta": 5e5})
    ... ).rope_theta
    500000.0
    >>> from_huggingface(dict(sizes, model_type="gemma2", num_key_value_heads=1)).local_layers
    (True, False)
    """
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"model_type {family!r} is not supported; expected one of: {', '.join(FAMILIES)}"
        )
    fields = _DEFAULTS[family] | dict(fields)
    gemma = family.startswith("gemma")
    for name in _REFUSED:
        if fields.get(name):
            raise ValueError(f"{name}={fields[name]!r} is not supported; expected none")
    activation, expected = (
        ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    )
    if fields[activation] != expected:
        raise ValueError(
            f"{activation} {fields[activation]!r} is not supported; expected {expected!r}"
        )
    if family == "gemma3_text" and fields.get("attn_logit_softcapping") is not None:
        raise ValueError(
            "attn_logit_softcapping of a gemma3_text model is not supported; expected null"
        )
    heads = field(fields, "num_attention_heads", int)
    hidden = field(fields, "hidden_size", int)
    layers = field(fields, "num_hidden_layers", int)
    head_dim = fields.get("head_dim") or hidden // max(heads, 1)
    scaling, theta, local_theta = _rope(fields)
    local = _local_layers(fields, layers)
    eos = fields.get("eos_token_id")
    return Config(
        vocab_size=field(fields, "vocab_size", int),
        hidden_size=hidden,
        intermediate_size=field(fields, "intermediate_size", int),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=rope_factors(scaling, theta, head_dim),
        local_layers=local,
        window=field(fields, "sliding_window", int) if local else None,
        local_rope_theta=local_theta,
        norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        norm_offset=1.0 if gemma else 0.0,
        post_norms=gemma,
        qk_norm=family in ("qwen3", "gemma3_text"),
        qkv_bias=family == "qwen2",
        activation=expected,
        query_scale=_positive(fields, "query_pre_attn_scalar") ** -0.5 if gemma else 0.0,
        attention_softcap=_cap(fields, "attn_logit_softcapping") if gemma else None,
        logit_softcap=_cap(fields, "final_logit_softcapping") if gemma else None,
        scale_embeddings=gemma,
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        max_positions=int(fields["max_position_embeddings"]),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        family=family,
    )


def _rope(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], float, float | None]:
    """Scaling rule and base of the rotary frequencies, and the base of local layers where they have
    their own.
    """
    # transformers 5 moved theta into rope_parameters and kept rope_scaling's other keys beside it.
    rope = fields.get("rope_parameters") or {}
    keyed, two = bool({_LOCAL, _GLOBAL} & set(rope)), fields["model_type"] == "gemma3_text"
    if rope and keyed != two:
        raise ValueError(
            f"rope_parameters: expected {'one table a layer type' if two else 'one table'}, got {rope!r}"
        )
    local = rope.get(_LOCAL) or {}
    rope = {**((rope.get(_GLOBAL) or {}) if keyed else rope), **(fields.get("rope_scaling") or {})}
    for table in (rope, local):
        if (
            partial := table.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
        ) != 1.0:
            raise ValueError(f"partial_rotary_factor {partial} is not supported; expected 1.0")
    if (kind := local.get("rope_type", "default")) != "default":
        raise ValueError(
            f"rope scaling {kind!r} of local layers is not supported; expected 'default'"
        )
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    return (
        rope,
        theta,
        float(local.get("rope_theta", fields["rope_local_base_freq"])) if two else None,
    )


def _local_layers(fields: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """For each layer whether it sees a sliding window only; empty where none does."""
    family, kinds = fields["model_type"], fields.get("layer_types")
    if family == "llama":
        return ()
    qwen = family.startswith("qwen")
    window = fields["sliding_window"] if not qwen or fields.get("use_sliding_window") else None
    if kinds is not None:
        if unknown := set(kinds) - {_LOCAL, _GLOBAL}:
            raise ValueError(
                f"layer_types {sorted(unknown)} are not supported; expected {_GLOBAL} or {_LOCAL}"
            )
        if len(kinds) != layers:
            raise ValueError(f"layer_types: expected {layers} of them, got {len(kinds)}")
        local = tuple(kind == _LOCAL for kind in kinds)
    elif qwen:
        local = tuple(
            window is not None and layer >= fields["max_window_layers"] for layer in range(layers)
        )
    else:
        period = 2 if family == "gemma2" else _positive(fields, "sliding_window_pattern")
        local = tuple((layer + 1) % period != 0 for layer in range(layers))
    if any(local) and window is None:
        raise ValueError(
            "sliding_window: expected a number of positions for the sliding layers, got none"
        )
    return local if any(local) else ()


def _positive(fields: Mapping[str, Any], name: str) -> float:
    if (value := field(fields, name, float)) <= 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return value


def _cap(fields: Mapping[str, Any], name: str) -> float | None:
    return None if fields.get(name) is None else _positive(fields, name)
