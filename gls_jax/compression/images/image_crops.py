"""What a decoder sees: the right half of an image is the source, a crop of the left half the side
information.
"""

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
    """Left and right half of every image, `[n, height, width, channels]`; of an odd width the
    middle goes to the right.

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
    """Square crops of every image, each placed uniformly and independently among all places where
    it fits.

    Where a crop was taken is not said: a decoder has its pixels alone. The GLS paper does not state
        the placement.

    Args:
        key: of the places; image `i` and crop `k` have a place that no other count changes.
        images: left halves, `[n, height, width, channels]`.
        count: crops of each image, one a decoder.
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
            f"images: expected shape [n, h, w, channels], h and w at least {size}, got {list(images.shape)}"
        )
    free = jnp.array([images.shape[1] - size + 1, images.shape[2] - size + 1], jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    place = lambda key: jax.random.randint(key, (images.shape[0], 2), 0, free, jnp.int32)  # noqa: E731
    with races.keys.partitionable_bits():
        places = jax.vmap(place, out_axes=1)(keys)

    def cut(image, place):
        return jax.lax.dynamic_slice(
            image, (*place, jnp.zeros((), place.dtype)), (size, size, image.shape[-1])
        )

    return jax.vmap(jax.vmap(cut, (None, 0)))(images, places)
