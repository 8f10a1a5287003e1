"""SmolLM2 as a model of transformers, where that is installed."""

from __future__ import annotations

from typing import Any

from experiments import shared
from gls_jax.models import model_location

__all__ = ["load", "load_pair"]


def load() -> Any | None:
    """A model from the configuration and the tensors of the GGUF file; None without peers."""
    try:
        import torch
        import transformers
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    except ModuleNotFoundError:
        return None
    path = model_location.smollm2()
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(load_gguf_checkpoint(str(path), True, model)["tensors"], strict=False)
    model.tie_weights()
    return model


def load_pair(dropped_layers: tuple[int, int], draft_length: int) -> tuple[Any, Any] | None:
    """The model, and itself without some layers as its assistant; None without peers.

    Args:
        dropped_layers: the first and the last.
        draft_length: the assistant always drafts chains of this length.
    """
    target = load()
    if target is None:
        return None
    import torch

    assistant = load()
    assert assistant is not None
    # The assistant loses the layers that our drafter leaves out.
    all_layers = assistant.model.layers
    kept_layers = shared.remaining_layers(dropped_layers, len(all_layers))
    assistant.model.layers = torch.nn.ModuleList([all_layers[i] for i in kept_layers])
    # A layer finds its part of the cache by its number, and still has the old one.
    for layer_index, layer in enumerate(assistant.model.layers):
        layer.self_attn.layer_idx = layer_index
    assistant.config.num_hidden_layers = len(kept_layers)
    generation_config = assistant.generation_config
    generation_config.num_assistant_tokens = draft_length
    generation_config.num_assistant_tokens_schedule = "constant"
    generation_config.assistant_confidence_threshold = 0.0
    return target, assistant
