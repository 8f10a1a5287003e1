"""Read and write images: `.png` files, folders of them, and `.npy` arrays.

In memory images are `f32[n, height, width, channels]` in [-1, 1].
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from gls_jax import extras
from gls_jax.compression.images.image_checks import check_pixels, size_text
from gls_jax.runs import files

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError:
    extras.require("images")
    raise

__all__ = [
    "check_path",
    "from_pixels",
    "read_images",
    "to_pixels",
    "write_images",
]


def read_images(path: str | Path) -> np.ndarray:
    """All images of one file or folder, without a split.

    Args:
        path: a .png file; a folder of .png files of one size, in the order of their names; or an
            .npy array `[n, height, width]` or `[n, height, width, channels]`, uint8, or floats in
            [-1, 1].

    Returns:
        `f32[n, height, width, channels]` in [-1, 1].

    Raises:
        FileNotFoundError: nothing there; the message says what belongs there.
        ValueError: a broken file, images of several sizes, floats outside [-1, 1].
    """
    path = Path(path)
    if path.is_dir():
        png_files = sorted(path.glob("*.png"))
        if not png_files:
            raise FileNotFoundError(f"{path}: expected .png files of one size, found none")
        return from_pixels(_read_png_files(png_files))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file or folder; "
            "expected a .png file, a folder of them or an .npy array"
        )
    if path.suffix == ".png":
        return from_pixels(_read_png_files([path]))
    if path.suffix == ".npy":
        return _read_array(path)
    raise ValueError(
        f"{path}: expected a .png file, an .npy array or a folder, got a file of another kind"
    )


def write_images(path: str | Path, images: np.ndarray) -> None:
    """Write images so that :func:`read_images` reads them.

    Args:
        path: an .npy file, for the floats themselves; a .png file, for one image; or a folder, made
            if missing, for .png files named by their numbers.
        images: `f32[n, height, width, channels]` in [-1, 1], one or three channels in .png files.

    Raises:
        ValueError: a file of another kind, several images for one .png file, or a number of
            channels that it cannot hold.
        OSError: the path cannot be written.
    """
    path, images = Path(path), np.asarray(images, np.float32)
    check_path(path, len(images), images.shape[3])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        files.write_whole(path, lambda file: np.save(file, images))
        return
    # Anything without a suffix is a folder.
    if path.suffix == "":
        path.mkdir(exist_ok=True)
    # Leading zeros: names in alphabetical order are in the order of the images.
    num_digits = len(str(len(images) - 1))
    for number, pixels in enumerate(to_pixels(images)):
        is_grey = pixels.shape[2] == 1
        # Pillow takes grey levels without an axis of channels.
        picture = Image.fromarray(pixels.squeeze(2) if is_grey else pixels)
        file_path = path if path.suffix else path / f"{number:0{num_digits}d}.png"
        files.write_whole(file_path, partial(picture.save, format="PNG"))


def check_path(path: Path, count: int, channels: int) -> None:
    """Raise what :func:`write_images` would raise for `count` images; nothing is written."""
    if path.suffix not in (".npy", ".png", ""):
        raise ValueError(
            f"{path}: expected an .npy file, a .png file or a folder to write images to"
        )
    if path.suffix != ".npy" and channels not in (1, 3):
        raise ValueError(
            f"{path}: expected one or three channels for .png, got {channels}; "
            "write to an .npy file"
        )
    if path.suffix == ".png" and count != 1:
        raise ValueError(
            f"{path}: expected one image for a .png file, got {count}; write to a folder"
        )
    if path.suffix:
        files.check_file(path)
    else:
        files.check_folder(path)


def from_pixels(pixels: np.ndarray) -> np.ndarray:
    """Bytes `u8[...]` as `f32[...]` in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def to_pixels(images: np.ndarray) -> np.ndarray:
    """`f32[...]` in [-1, 1] as the nearest bytes `u8[...]`."""
    return np.clip(np.rint((np.asarray(images) + 1) * 127.5), 0, 255).astype(np.uint8)


def _read_png_files(paths: list[Path]) -> np.ndarray:
    """`u8[n, height, width, channels]` of files of one size."""
    images = [_read_png(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{path}: expected an image of {size_text(images[0].shape)} like {paths[0].name}, "
                f"got {size_text(image.shape)}"
            )
    return np.stack(images)


def _read_png(path: Path) -> np.ndarray:
    """`u8[height, width, channels]`: one channel for a file of grey levels, else three."""
    try:
        # Transparency is dropped, palettes become colours.
        with Image.open(path, formats=["PNG"]) as image:
            is_grey = image.mode in ("1", "L", "LA")
            pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    except (FileNotFoundError, PermissionError):
        raise
    # What Pillow raises for damaged files.
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(
            f"{path}: expected a .png image, got a file that cannot be read ({error})"
        ) from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _read_array(path: Path) -> np.ndarray:
    images = files.read_array(path, "an .npy array of images")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"{path}: expected an array [n, height, width] or [n, height, width, channels], "
            f"got {list(images.shape)}"
        )
    # Adds the axis of channels if there is none.
    images = images.reshape(*images.shape[:3], -1)
    if images.dtype == np.uint8:
        return from_pixels(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{path}: expected uint8 or floats, got dtype {images.dtype}")
    check_pixels(images, path)
    return images.astype(np.float32)
