"""Folder of a training run: its newest state as an orbax checkpoint, with its configuration."""

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
from gls_jax.runs import files

__all__ = ["RUN_CONFIGURATION", "NewestCheckpoint", "find", "load_vae", "restore", "save"]

_OPTIONS = orbax.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
# The key of the run's configuration in the metadata. The word is that of the first version: another
# one would make its checkpoints unreadable.
RUN_CONFIGURATION = "asked"
# The other keys: `config` has the sizes of the model, `epochs` the number of epochs to train,
# `losses` the losses of every finished epoch.
_METADATA_FIELDS = {RUN_CONFIGURATION, "config", "epochs", "losses"}


@dataclasses.dataclass(frozen=True)
class NewestCheckpoint:
    """The newest checkpoint of a folder, without its arrays.

    Attributes:
        epoch: number of finished epochs.
        metadata: stored together with the arrays: :data:`RUN_CONFIGURATION`, `config`, `epochs`,
            `losses`.
    """

    epoch: int
    metadata: dict[str, Any]


def find(folder: Path) -> NewestCheckpoint | None:
    """The newest checkpoint in the folder, None if there is none.

    Raises:
        ValueError: a checkpoint that cannot be read, or of anything but an image model.
    """
    if not folder.is_dir():
        return None
    with _opened(folder) as manager:
        epoch = manager.latest_step()
        if epoch is None:
            return None
        arguments = orbax.args.Composite(about=orbax.args.JsonRestore())
        metadata = manager.restore(epoch, args=arguments).about
    if not isinstance(metadata, dict) or not metadata.keys() >= _METADATA_FIELDS:
        raise ValueError(
            f"{folder}: expected a training run of an image model, got another checkpoint"
        )
    return NewestCheckpoint(epoch=epoch, metadata=metadata)


def save(folder: Path, epoch: int, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a state and its metadata, then remove the checkpoint before it.

    A run that is killed while writing keeps the older checkpoint.
    """
    arguments = {
        part_name: orbax.args.StandardSave(_by_path(part)) for part_name, part in state.items()
    }
    arguments["about"] = orbax.args.JsonSave(metadata)
    with _opened(folder) as manager:
        manager.save(epoch, args=orbax.args.Composite(**arguments))


def restore(folder: Path, epoch: int, like: dict[str, Any]) -> dict[str, Any]:
    """The parts of a stored state that `like` has, in its structure.

    Raises:
        ValueError: they cannot be read, or their arrays have other shapes.
    """
    templates = {}
    arguments = {}
    for part_name, part in like.items():
        leaves = _by_path(part)
        template = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
        templates[part_name] = template
        arguments[part_name] = orbax.args.StandardRestore(template)
    with _opened(folder) as manager:
        stored = manager.restore(epoch, args=orbax.args.Composite(**arguments))
        # Looked up in here, where a missing array becomes an error that names the folder.
        arrays = {
            part_name: [stored[part_name][path] for path in template]
            for part_name, template in templates.items()
        }
    restored = {}
    for part_name, template in templates.items():
        shapes = [array.shape for array in arrays[part_name]]
        if shapes != [leaf.shape for leaf in template.values()]:
            raise ValueError(
                f"{folder}: expected arrays of the shapes of its configuration, got others"
            )
        structure = jax.tree.structure(like[part_name])
        restored[part_name] = jax.tree.unflatten(structure, map(jnp.asarray, arrays[part_name]))
    return restored


def load_vae(folder: str | Path) -> ImageModel:
    """The trained image model of a folder that :func:`gls_jax.models.train_vae` finished.

    Args:
        folder: of the training run.

    Returns:
        Model adapter for `gls_jax.compression.ImageCodec`.

    Raises:
        FileNotFoundError: no training run in the folder.
        ValueError: the run is not finished, or cannot be read. One line, naming the folder.
    """
    folder = Path(folder)
    newest = find(folder)
    if newest is None:
        raise FileNotFoundError(
            f"{folder}: expected the folder of a trained image model, found no checkpoint in it"
        )
    num_epochs = newest.metadata["epochs"]
    if newest.epoch < num_epochs:
        raise ValueError(
            f"{folder}: expected a finished training run, "
            f"got {newest.epoch} of {num_epochs} epochs; resume it first"
        )
    sizes: dict[str, Any] = dict(newest.metadata["config"])
    # JSON has lists in place of tuples.
    for name in ("source_shape", "side_shape"):
        sizes[name] = tuple(sizes[name])
    config = VaeConfig(**sizes)
    graph, params = nnx.split(abstract(config))
    state = restore(folder, newest.epoch, {"params": params})
    return image_model(nnx.merge(graph, state["params"]), config)


@contextmanager
def _opened(folder: Path) -> Iterator[orbax.CheckpointManager]:
    """Checkpoint manager of a folder; whatever it raises becomes one line that names the folder."""
    try:
        with orbax.CheckpointManager(folder.absolute(), options=_OPTIONS) as manager:
            yield manager
    except (ValueError, KeyError, TypeError, OSError) as error:
        # The messages of orbax span many lines.
        reason = files.one_line(error)[:200]
        raise ValueError(
            f"{folder}: expected a checkpoint of a training run, "
            f"got one that cannot be read ({reason})"
        ) from None


def _by_path(state) -> dict[str, Any]:
    """Arrays by the path of each leaf: independent of how later versions build their containers."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
