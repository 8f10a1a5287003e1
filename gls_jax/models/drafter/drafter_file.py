"""A trained drafter as one safetensors file, and back.

The file holds the trained weights in float16, and the tokens of the output head. Embedding and head
are the target's, and are taken from it when the drafter is loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax import extras
from gls_jax.decoding.model import LanguageModel
from gls_jax.models.config import Config
from gls_jax.models.drafter.drafter_adapter import drafter_model
from gls_jax.models.drafter.network import DrafterConfig, DrafterNetwork
from gls_jax.runs import files

if TYPE_CHECKING:
    from gls_jax.models import Checkpoint

__all__ = [
    "FILE_NAME",
    "DrafterFile",
    "is_drafter",
    "load_drafter",
    "read_drafter",
    "save_drafter",
    "shipped_drafter",
]

FILE_NAME = "drafter.safetensors"
"""Name of the file in the folder of a training run."""
# Drafters of this package, by the name of their target.
_SHIPPED = {"smollm2": Path(__file__).with_name("smollm2_drafter.safetensors")}
_FORMAT = "gls_jax drafter 2"
_TOKENS = "tokens"
_ABOUT = "gls_jax"  # the only entry of the metadata
# Taken from the target.
_NOT_STORED = ("embedding", "head")
# A file has at most this many bytes of metadata, which include the report of the training.
_LARGEST_HEADER = 2**20


class DrafterFile(NamedTuple):
    """The content of a file.

    Attributes:
        config: sizes.
        tokens: `i32[R]`, of the output head.
        weights: trained weights by their path.
        vocabulary: hash of the target's tokenizer, None if unknown.
        report: how it was trained, as JSON.
    """

    config: DrafterConfig
    tokens: np.ndarray
    weights: Mapping[str, np.ndarray]
    vocabulary: str | None
    report: dict[str, Any]


def save_drafter(
    path: str | Path,
    network: DrafterNetwork,
    tokens: np.ndarray,
    *,
    vocabulary: str | None,
    report: Mapping[str, Any],
) -> None:
    """Write a drafter's file, in one step: it is never half written.

    Args:
        path: of the file.
        network: with trained weights.
        tokens: of its output head.
        vocabulary: hash of the target's tokenizer, None if unknown.
        report: how it was trained, as JSON.
    """
    safetensors = extras.module("safetensors.numpy", "lm")
    tensors = {_TOKENS: np.asarray(tokens, np.int32)}
    for name, leaf in _by_path(nnx.state(network)).items():
        if name not in _NOT_STORED:
            tensors[name] = np.asarray(leaf[...], np.float16)
    about = {
        "format": _FORMAT,
        "config": dataclasses.asdict(network.config),
        "vocabulary": vocabulary,
        "report": dict(report),
    }
    # One entry, because safetensors writes several in any order: equal drafters are equal files.
    content = safetensors.save(tensors, {_ABOUT: json.dumps(about)})
    files.write_whole(Path(path), lambda file: file.write(content))


def shipped_drafter(target_name: str) -> Path | None:
    """The file of the drafter that comes with this package for a target; None if there is none.

    `SHIPPED.md` beside it says how it was trained, and under which licence it is.
    """
    path = _SHIPPED.get(target_name)
    return path if path is not None and path.is_file() else None


def is_drafter(path: str | Path) -> bool:
    """Whether a path is a drafter's file, or the folder of a training run that has one."""
    path = Path(path)
    if path.is_dir():
        return (path / FILE_NAME).is_file()
    return path.is_file() and path.suffix == ".safetensors"


def read_drafter(path: str | Path) -> DrafterFile:
    """Read a drafter's file, or that in a folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a drafter, or tensors that do not fit its configuration.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a drafter of gls-jax train-drafter"
        )
    try:
        about, tensors = _open(path)
        config = _config(about["config"])
        vocabulary, report = about["vocabulary"], about["report"]
        tokens = tensors.pop(_TOKENS)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a drafter of gls-jax train-drafter, got something else "
            f"({files.one_line(error)[:100]})"
        ) from None
    _check(path, config, tokens, tensors)
    return DrafterFile(config, tokens, tensors, vocabulary, report)


def load_drafter(path: str | Path, target: Checkpoint) -> LanguageModel:
    """A trained drafter, for the target that it was trained for.

    Args:
        path: of its file, or of the folder of a training run.
        target: the target. Embedding and output head are its own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a drafter, or one of another target.
    """
    stored = read_drafter(path)
    layers = stored.config.layers
    model = target.model
    sizes = (layers.hidden_size, layers.vocab_size, max(stored.config.observed_layers) + 1)
    of_target = (model.config.hidden_size, model.config.vocab_size, model.config.num_layers)
    vocabularies = {stored.vocabulary, target.language_model.vocabulary} - {None}
    if sizes != of_target or len(vocabularies) > 1:
        raise ValueError(
            f"{path}: expected a drafter of this target (its tokenizer, and hidden size, "
            f"vocabulary and layers {of_target}), got one of another with {sizes}"
        )
    dtype = model.embedding[...].dtype
    abstract = nnx.eval_shape(lambda: DrafterNetwork(stored.config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    embedding = model.embedding[...]
    head = embedding if model.config.tie_embeddings else model.head[...]
    values = {"embedding": embedding, "head": head[stored.tokens]}
    flat = []
    for name_parts, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, name_parts))
        value = values[name] if name in values else jnp.asarray(stored.weights[name], dtype)
        flat.append((name_parts, leaf.replace(value)))
    network = nnx.merge(graph, nnx.from_flat_state(flat))
    tokens = jnp.asarray(stored.tokens)
    return drafter_model(network, tokens, target.language_model.vocabulary)


def _open(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file of this format."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
    if header_size > _LARGEST_HEADER:
        raise ValueError(f"a header of {header_size} bytes")
    safetensors = extras.module("safetensors", "lm")
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            about = json.loads((opened.metadata() or {})[_ABOUT])
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']!r}")
            return about, {name: opened.get_tensor(name) for name in list(opened.keys())}
    except safetensors.SafetensorError as error:
        raise ValueError(f"truncated or corrupt safetensors file: {error}") from None


def _config(fields: dict[str, Any]) -> DrafterConfig:
    layers = dict(fields["layers"])
    # JSON has lists in place of tuples.
    for name, value in layers.items():
        if isinstance(value, list):
            layers[name] = tuple(value)
    observed_layers = tuple(int(layer) for layer in fields["observed_layers"])
    return DrafterConfig(Config(**layers), observed_layers, int(fields["num_tokens"]))


def _check(path: Path, config: DrafterConfig, tokens: np.ndarray, weights) -> None:
    """Refuse tensors of other names or shapes than the configuration says."""
    # Shapes are compared before anything of the configured sizes is made.
    num_values = sum(weight.size for weight in weights.values())
    if config.layers.hidden_size**2 > num_values or config.layers.num_layers > num_values:
        raise ValueError(f"{path}: expected the sizes of its tensors, got larger ones")
    abstract = nnx.eval_shape(lambda: DrafterNetwork(config, rngs=nnx.Rngs(0)))
    expected = {
        name: leaf.shape
        for name, leaf in _by_path(nnx.state(abstract)).items()
        if name not in _NOT_STORED
    }
    found = {name: weight.shape for name, weight in weights.items()}
    is_list = tokens.shape == (config.num_tokens,) and tokens.dtype.kind in "iu"
    if found != expected or not is_list:
        raise ValueError(f"{path}: expected tensors of its configuration, got others")
    if not all(np.isfinite(weight).all() for weight in weights.values()):
        raise ValueError(f"{path}: expected finite weights, got NaN or infinite ones")


def _by_path(state) -> dict[str, Any]:
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
