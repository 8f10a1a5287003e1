"""Folder of a trained image model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax import nnx

from gls_jax.compression.images.image_model import ImageModel
from gls_jax.models import training_checkpoints
from gls_jax.models.training_checkpoints import NewestCheckpoint
from gls_jax.models.vae import VaeConfig, abstract, image_model

__all__ = ["RUN_CONFIGURATION", "find", "load_vae"]

# The key of the run's configuration in the metadata. The word is that of the first version: another
# one would make its checkpoints unreadable.
RUN_CONFIGURATION = "asked"
# The other keys: `config` has the sizes of the model, `epochs` the number of epochs to train,
# `losses` the losses of every finished epoch. The number of a checkpoint counts finished epochs.
_METADATA_FIELDS = {RUN_CONFIGURATION, "config", "epochs", "losses"}


def find(folder: Path) -> NewestCheckpoint | None:
    """The newest checkpoint in the folder, None if there is none; see `training_checkpoints`."""
    run = "a training run of an image model"
    return training_checkpoints.find(folder, run, _METADATA_FIELDS)


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
    if newest.step < num_epochs:
        raise ValueError(
            f"{folder}: expected a finished training run, "
            f"got {newest.step} of {num_epochs} epochs; resume it first"
        )
    sizes: dict[str, Any] = dict(newest.metadata["config"])
    # JSON has lists in place of tuples.
    for name in ("source_shape", "side_shape"):
        sizes[name] = tuple(sizes[name])
    config = VaeConfig(**sizes)
    graph, params = nnx.split(abstract(config))
    state = training_checkpoints.restore(folder, newest.step, {"params": params})
    return image_model(nnx.merge(graph, state["params"]), config)
