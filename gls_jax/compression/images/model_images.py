"""Images in files that fit an image model: sources, side information, and decompressed images."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gls_jax import races
from gls_jax.compression.container import Container
from gls_jax.compression.images import image_files
from gls_jax.compression.images.image_checks import size_text
from gls_jax.compression.images.image_codec import ImageCodec
from gls_jax.compression.images.image_crops import crops, halves
from gls_jax.compression.images.image_model import ImageModel
from gls_jax.compression.symbol_validation import check_seed
from gls_jax.typing import Progress

__all__ = ["decompress_images", "read_sides", "read_sources"]

_PIXEL_RANGE = 2  # of pixels in [-1, 1]


def read_sources(path: Path, model: ImageModel) -> np.ndarray:
    """Sources `f32[n, h, w, c]` of an image model.

    The file holds them, or whole images, whose right halves are taken.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: other files, or images of another size.
    """
    images = image_files.read_images(path)
    if images.shape[1:] == model.source_shape:
        return images
    _, right = _halves(images)
    if right.shape[1:] == model.source_shape:
        return right
    raise ValueError(
        f"{path}: expected images of {size_text(model.source_shape)}, "
        f"or with such a right half, got {size_text(images.shape[1:])}"
    )


def read_sides(path: Path, model: ImageModel, decoder: int, crop_seed: int) -> np.ndarray:
    """Side information `f32[n, sh, sw, c]` of one decoder.

    The file holds crops, or whole images: a crop of each left half is then drawn.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: other files, or images of another size.
    """
    images = image_files.read_images(path)
    # Crops are recognised by their size.
    if images.shape[1:] == model.side_shape:
        return images
    left, right = _halves(images)
    if right.shape[1:] == model.source_shape:
        key = races.new_key(check_seed(crop_seed, "crop_seed"))
        # Crop number `decoder` is the same however many are drawn.
        drawn = crops(key, jnp.asarray(left), decoder + 1, model.side_shape[0])
        return np.asarray(drawn[:, decoder])
    raise ValueError(
        f"{path}: expected crops of {size_text(model.side_shape)}, or whole images, "
        f"got {size_text(images.shape[1:])}"
    )


def decompress_images(
    container: Container,
    model: ImageModel,
    side_path: Path,
    estimate_path: Path,
    *,
    decoder: int,
    crop_seed: int,
    source_path: Path | None = None,
    progress: Progress | None = None,
) -> tuple[int, dict[str, float]]:
    """Decode a container with side information from files, and write the images.

    Args:
        container: of an image codec.
        model: that the images were compressed with.
        side_path: crops or whole images, see :func:`read_sides`.
        estimate_path: what :func:`gls_jax.compression.images.image_files.write_images` takes.
        decoder: `0..K - 1`.
        crop_seed: of crops drawn from whole images.
        source_path: the images that were compressed, to measure the error.
        progress: called with `(images done, n)`.

    Returns:
        The number of images and, if the sources are known, `squared_error`, the mean over pixels in
        [-1, 1], and `psnr`, the peak signal-to-noise ratio in dB.

    Raises:
        OSError: a file that cannot be read or written.
        ValueError: bad content; nothing is written.
    """
    codec = ImageCodec.of(container, model)
    # A decoder that does not exist is refused before its crops are drawn.
    codec.code.stream(decoder)
    side = read_sides(side_path, model, decoder, crop_seed)
    source = None if source_path is None else read_sources(source_path, model)
    if source is not None and (len(source) != len(side) or not len(side)):
        raise ValueError(
            f"{source_path}: expected one image for each of {len(side)}, and at least one"
        )
    # Decoding may take long, so a path that cannot be written is refused before.
    image_files.check_path(estimate_path, len(side), model.source_shape[2])
    estimate = codec.decode(container, side, decoder, progress=progress).estimate
    image_files.write_images(estimate_path, estimate)
    if source is None:
        return len(side), {}
    squared_error = float(np.mean(np.square(estimate - source)))
    # The ratio of equal images would be infinite.
    psnr = float(10 * np.log10(_PIXEL_RANGE**2 / max(squared_error, 1e-12)))
    return len(side), {"squared_error": squared_error, "psnr": psnr}


def _halves(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves; images one pixel wide are not whole images and are returned as they are."""
    return halves(images) if images.shape[2] > 1 else (images, images)
