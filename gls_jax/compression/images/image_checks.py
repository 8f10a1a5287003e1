"""Checks of images in memory, and their sizes as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["check_pixels", "size_text"]


def check_pixels(images: np.ndarray, name: str | Path) -> None:
    """Raise `ValueError` unless all pixels are within [-1, 1]."""
    if not (np.abs(images) <= 1).all():  # also true for NaN
        raise ValueError(
            f"{name}: expected values within [-1, 1], got {np.min(images)} to {np.max(images)}"
        )


def size_text(shape: tuple[int, ...]) -> str:
    """The size of an image, of its shape `(height, width, channels)`, for error messages."""
    height, width, channels = shape
    return f"{height} x {width} pixels, {channels} channel{'s' * (channels > 1)}"
