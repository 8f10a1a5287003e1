"""A folder of a training run: its newest state as an orbax checkpoint, and what was asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
from flax import nnx

from gls_jax.compression.images.image_model import ImageModel
from gls_jax.models.vae import VaeConfig, abstract, image_model

__all__ = ["Found", "find", "load_vae", "restore", "save"]

_OPTIONS = orbax.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)


@dataclasses.dataclass(frozen=True)
class Found:
    """The newest checkpoint of a folder.

    Attributes:
        epoch: epochs behind it.
        about: what was written beside the arrays: `asked`, `config`, `epochs` that were wanted,
            `losses`.
    """

    epoch: int
    about: dict[str, Any]


def find(folder: Path) -> Found | None:
    """The newest checkpoint in the folder, None where there is none.

    Raises:
        ValueError: there is one that cannot be read.
    """
    if not folder.is_dir():
        return None
    with _opened(folder) as manager:
        epoch = manager.latest_step()
        if epoch is None:
            return None
        about = manager.restore(
            epoch, args=orbax.args.Composite(about=orbax.args.JsonRestore())
        ).about
    if not isinstance(about, dict) or not {"asked", "config", "epochs", "losses"} <= about.keys():
        raise ValueError(
            f"{folder}: expected a training run of an image model, got another checkpoint"
        )
    return Found(epoch, about)


def save(folder: Path, epoch: int, state: dict[str, Any], about: dict[str, Any]) -> None:
    """Write a state whole, then drop the one before: a run that is killed while writing keeps the
    old one.
    """
    items = {name: orbax.args.StandardSave(_named(part)) for name, part in state.items()}
    with _opened(folder) as manager:
        manager.save(epoch, args=orbax.args.Composite(about=orbax.args.JsonSave(about), **items))


def restore(folder: Path, epoch: int, like: dict[str, Any]) -> dict[str, Any]:
    """Those parts of a state that `like` has, in its shapes.

    Raises:
        ValueError: they cannot be read, or have other arrays.
    """
    templates = {
        part: {name: np.empty(x.shape, x.dtype) for name, x in _named(like[part]).items()}
        for part in like
    }
    with _opened(folder) as manager:
        wanted = {
            part: orbax.args.StandardRestore(template) for part, template in templates.items()
        }
        found = manager.restore(epoch, args=orbax.args.Composite(**wanted))
        arrays = {
            part: [found[part][name] for name in template] for part, template in templates.items()
        }
    for part, template in templates.items():
        if [array.shape for array in arrays[part]] != [leaf.shape for leaf in template.values()]:
            raise ValueError(
                f"{folder}: expected arrays of the shapes of its configuration, got others"
            )
    rebuilt = {part: map(jnp.asarray, arrays[part]) for part in like}
    return {
        part: jax.tree.unflatten(jax.tree.structure(like[part]), rebuilt[part]) for part in like
    }


def load_vae(folder: str | Path) -> ImageModel:
    """The trained image model of a folder that :func:`gls_jax.models.train_vae` finished.

    Args:
        folder: of the training run.

    Returns:
        The bundle that `gls_jax.compression.ImageCodec` takes.

    Raises:
        FileNotFoundError: no training run there.
        ValueError: it is not finished, or cannot be read. One line, naming the folder.
    """
    folder = Path(folder)
    found = find(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder}: expected the folder of a trained image model, found no checkpoint in it"
        )
    if found.epoch < found.about["epochs"]:
        raise ValueError(
            f"{folder}: expected a finished training run, got {found.epoch} of {found.about['epochs']} epochs; "
            "resume it first"
        )
    sizes: dict[str, Any] = dict(found.about["config"])
    for name in ("source_shape", "side_shape"):
        sizes[name] = tuple(sizes[name])  # JSON has lists
    config = VaeConfig(**sizes)
    graph, params = nnx.split(abstract(config))
    params = restore(folder, found.epoch, {"params": params})["params"]
    return image_model(nnx.merge(graph, params), config)


@contextmanager
def _opened(folder: Path) -> Iterator[orbax.CheckpointManager]:
    try:
        with orbax.CheckpointManager(folder.absolute(), options=_OPTIONS) as manager:
            yield manager
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{folder}: expected a checkpoint of a training run, got one that cannot be read ({reason})"
        ) from None


def _named(state) -> dict[str, Any]:
    """Arrays under the path of each leaf: what a later version of a container type cannot break."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
