"""Halves and crops of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gls_jax.compression import crops, halves


def test_halves():
    images = np.arange(30).reshape(1, 2, 5, 3)
    left, right = halves(images)
    assert (np.concatenate([left, right], axis=2) == images).all() and left.shape[2] == 2
    with pytest.raises(
        ValueError, match=r"expected shape \[n, height, width >= 2, channels\], got \[2, 5, 3\]"
    ):
        halves(images[0])


def test_crops_are_parts_of_the_image_placed_uniformly():
    """Chi-square over the 4 x 3 places, and over pairs of places of two decoders; false failures 2e-6 in all."""
    images = jnp.broadcast_to(jnp.arange(30.0).reshape(1, 6, 5, 1), (6000, 6, 5, 1))
    cut = np.asarray(crops(jax.random.key(0), images, 2, 3))
    corner = cut[:, :, 0, 0, 0]
    expected = corner[..., None, None] + 5 * np.arange(3)[:, None] + np.arange(3)
    assert (cut[..., 0] == expected).all()
    row, column = np.divmod(corner.astype(int), 5)
    place = 3 * row + column
    assert row.max() == 3 and column.max() == 2
    for counts in (
        np.bincount(place.ravel(), minlength=12),
        np.bincount(12 * place[:, 0] + place[:, 1], minlength=144),
    ):
        assert stats.chisquare(counts).pvalue > 1e-6


def test_more_crops_move_no_other():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6, 5, 2)).astype(np.float32))
    few, many = (np.asarray(crops(jax.random.key(3), images, count, 2)) for count in (2, 4))
    assert (many[:, :2] == few).all() and (many[:, 2] != many[:, 3]).any()
    # A crop as wide as the image starts in row 0 or row 1.
    cut = crops(jax.random.key(3), images, 1, 5)[:, 0]
    is_upper, is_lower = ((cut == part).all((1, 2, 3)) for part in (images[:, :5], images[:, 1:]))
    assert (is_upper | is_lower).all()
    with pytest.raises(ValueError, match=r"h and w at least 6, got \[5, 6, 5, 2\]"):
        crops(jax.random.key(3), images, 1, 6)
