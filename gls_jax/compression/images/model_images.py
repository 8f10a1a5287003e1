"""Images in files: what `gls-jax compress` and `gls-jax decompress` read where a model is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gls_jax.compression import ImageModel

__all__ = ["sides", "sources"]


def sources(path: Path, model: ImageModel) -> np.ndarray:
    """Sources `f32[n, h, w, c]` of an image model: whole images, of which the right half is taken,
    or those halves.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: other files, or images of another size.
    """
    from gls_jax.compression import datasets, halves

    images = datasets.read_images(path)
    if images.shape[1:] == model.source_shape:
        return images
    right = halves(images)[1] if images.shape[2] > 1 else images
    if right.shape[1:] == model.source_shape:
        return right
    wanted = _size(model.source_shape)
    raise ValueError(
        f"{path}: expected images of {wanted}, or with such a right half, got {_size(images.shape[1:])}"
    )


def sides(path: Path, model: ImageModel, decoder: int, crop_seed: int) -> np.ndarray:
    """Side information `f32[n, sh, sw, c]` of one decoder: crops, or whole images of whose left
    half one is drawn.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: other files, or images of another size.
    """
    import jax

    from gls_jax import checks, races
    from gls_jax.compression import crops, datasets, halves

    images = datasets.read_images(path)
    if images.shape[1:] == model.side_shape:
        return images
    left, right = halves(images) if images.shape[2] > 1 else (images, images)
    if right.shape[1:] == model.source_shape:
        key = races.new_key(checks.index(crop_seed, "crop_seed", last=2**32 - 1))
        return np.asarray(
            crops(key, jax.numpy.asarray(left), decoder + 1, model.side_shape[0])[:, decoder]
        )
    wanted = _size(model.side_shape)
    raise ValueError(
        f"{path}: expected crops of {wanted}, or whole images, got {_size(images.shape[1:])}"
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
