"""Folder of a training run: its newest state as an orbax checkpoint, with metadata."""

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

from gls_jax.runs import files

__all__ = ["NewestCheckpoint", "find", "restore", "save"]

_OPTIONS = orbax.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)


@dataclasses.dataclass(frozen=True)
class NewestCheckpoint:
    """The newest checkpoint of a folder, without its arrays.

    Attributes:
        step: its number, such as the number of finished epochs.
        metadata: stored together with the arrays.
    """

    step: int
    metadata: dict[str, Any]


def find(folder: Path, run: str, fields: set[str]) -> NewestCheckpoint | None:
    """The newest checkpoint in the folder, None if there is none.

    Args:
        folder: of the run.
        run: the kind of run, such as "a training run of an image model", for the errors.
        fields: what its metadata must have.

    Raises:
        ValueError: a checkpoint that cannot be read, or of another kind of run.
    """
    if not folder.is_dir():
        return None
    with _opened(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        arguments = orbax.args.Composite(about=orbax.args.JsonRestore())
        metadata = manager.restore(step, args=arguments).about
    if not isinstance(metadata, dict) or not metadata.keys() >= fields:
        raise ValueError(f"{folder}: expected {run}, got another checkpoint")
    return NewestCheckpoint(step=step, metadata=metadata)


def save(folder: Path, step: int, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a state and its metadata, then remove the checkpoint before it.

    A run that is killed while writing keeps the older checkpoint.
    """
    arguments = {
        part_name: orbax.args.StandardSave(_by_path(part)) for part_name, part in state.items()
    }
    arguments["about"] = orbax.args.JsonSave(metadata)
    with _opened(folder) as manager:
        manager.save(step, args=orbax.args.Composite(**arguments))


def restore(folder: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
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
        stored = manager.restore(step, args=orbax.args.Composite(**arguments))
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
