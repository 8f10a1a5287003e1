"""Source and side information of an image: its right half, and crops of its left half."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gls_jax import checks, races

__all__ = ["crops", "halves"]

Images = TypeVar("Images", np.ndarray, jax.Array)


def halves(images: Images) -> tuple[Images, Images]:
    """Left and right half of every image, `[n, height, width, channels]`.

    For an odd width the middle column belongs to the right half.

    Raises:
        ValueError: not a batch of images at least two pixels wide.

    >>> import numpy as np
    >>> from gls_jax.compression import halves
    >>> left, right = halves(np.zeros((3, 28, 28, 1), np.float32))
    >>> left.shape, right.shape
    ((3, 28, 14, 1), (3, 28, 14, 1))
    """
    shape = np.shape(images)
    if len(shape) != 4 or shape[2] < 2:
        raise ValueError(
            f"images: expected shape [n, height, width >= 2, channels], got {list(shape)}"
        )
    middle = shape[2] // 2
    return images[:, :, :middle], images[:, :, middle:]


def crops(
    key: PRNGKeyArray, images: Float[Array, "n h w c"], count: int, size: int
) -> Float[Array, "n k s s c"]:
    """Square crops of every image, each placed uniformly and independently where it fits.

    A decoder gets the pixels of its crop, not the position. The GLS paper does not say how crops
    are placed.

    Args:
        key: of the positions. That of crop `k` of image `i` does not depend on `count`.
        images: left halves, `[n, height, width, channels]`.
        count: crops of each image, one per decoder.
        size: height and width of a crop.

    Returns:
        `[n, count, size, size, channels]`.

    Raises:
        ValueError: a crop that does not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.compression import crops
    >>> crops(jax.random.key(0), jnp.zeros((5, 28, 14, 1)), 2, 7).shape
    (5, 2, 7, 7, 1)
    """
    checks.key(key)
    images = jnp.asarray(images)
    count, size = checks.count(count, "count"), checks.count(size, "size")
    if images.ndim != 4 or size > min(images.shape[1:3]):
        raise ValueError(
            f"images: expected shape [n, h, w, channels], h and w at least {size}, "
            f"got {list(images.shape)}"
        )
    num_images, height, width, num_channels = images.shape
    # Rows and columns where a crop can start.
    num_places = jnp.array([height - size + 1, width - size + 1], jnp.int32)
    # One key per crop number, so that more crops move none of the others.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))

    def draw_corners(key):
        return jax.random.randint(key, (num_images, 2), 0, num_places, jnp.int32)

    # The same positions for every setting of jax_threefry_partitionable.
    with races.keys.partitionable_bits():
        corners = jax.vmap(draw_corners, out_axes=1)(keys)

    def cut(image, corner):
        start = (*corner, jnp.zeros((), corner.dtype))
        return jax.lax.dynamic_slice(image, start, (size, size, num_channels))

    return jax.vmap(jax.vmap(cut, (None, 0)))(images, corners)
