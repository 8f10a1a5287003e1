"""Images to bytes and back, with side information at K decoders: a list code over the latent of an
image model.

Rowan, Phan, Khisti 2025 (arXiv 2506.05632), their experiment on MNIST. The encoder's weights are
the Gaussian law that the model gives a source against the latent's prior; a decoder's are the
model's estimate of what its side information says about the latent. Each decoder rebuilds the image
from the candidate it finds and its side information.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from gls_jax import checks, races
from gls_jax.compression import container, list_code, payload
from gls_jax.compression.code import Density, ListCode, Normal, gaussian_density
from gls_jax.compression.container import Container
from gls_jax.compression.groups import Progress
from gls_jax.compression.image_model import ImageModel
from gls_jax.typing import Numbers

__all__ = ["BATCH", "ImageCodec", "ImageReconstruction"]

BATCH = 64  # images of one call of a network; part of the format: a row's last bits depend on the batch's shape


@dataclasses.dataclass(frozen=True, eq=False)
class ImageReconstruction:
    """What a decoder makes of a blob of images.

    Attributes:
        estimate: `f32[n, h, w, c]` in [-1, 1], of the sources.
        index: `i32[n]`, of the candidate that this decoder chose.
        latent: `f32[n, D]`, that candidate: the encoder's where the indices match.
    """

    estimate: Float[np.ndarray, "n h w c"]
    index: Int[np.ndarray, " n"]
    latent: Float[np.ndarray, "n D"]


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """Lossy compression of images for `K` decoders, each with side information of its own; `log2 L`
    bits an image.

    The search is dense: nobody knows how large a network's weights can be.

    Attributes:
        model: encoder and decoders have the same, see :func:`gls_jax.models.load_vae`.
        num_decoders: `K`.
        num_candidates: `N`.
        num_bins: `L`, at most `N`.
        scheme: `gls`, or `baseline`: all decoders share one stream.

    >>> import jax, numpy as np
    >>> from gls_jax import models
    >>> from gls_jax.compression import ImageCodec
    >>> config = models.VaeConfig(
    ...     source_shape=(6, 4, 1), side_shape=(3, 3, 1), channels=4, hidden=8, features=6
    ... )
    >>> model = models.image_model(models.new_vae(config, jax.random.key(0)), config)  # untrained
    >>> codec = ImageCodec(model, num_decoders=2, num_candidates=64, num_bins=8)
    >>> blob = codec.encode(0, np.zeros((5, 6, 4, 1)))
    >>> codec.decode(blob, np.zeros((5, 3, 3, 1)), decoder=1).estimate.shape
    (5, 6, 4, 1)
    """

    model: ImageModel
    num_decoders: int
    num_candidates: int
    num_bins: int
    scheme: str = "gls"

    def __post_init__(self) -> None:
        for name in (
            "num_decoders",
            "num_candidates",
            "num_bins",
        ):  # the code checks, and turns NumPy's into Python's
            object.__setattr__(self, name, getattr(self.code, name))
        payload.check_num_bins(self.num_bins)

    @property
    def code(self) -> ListCode:
        """The list code behind it."""
        sizes = (self.num_decoders, self.num_candidates, self.num_bins)
        return ListCode(*sizes, dimension=self.model.latent, scheme=self.scheme, search="dense")

    @classmethod
    def of(cls, blob: bytes, model: ImageModel) -> ImageCodec:
        """The codec that made a blob.

        Raises:
            ValueError: not a whole blob of images, or one that was made with another model.
        """
        found = container.unpack(blob)
        codec = cls(model, found.num_decoders, found.num_candidates, found.num_bins, found.scheme)
        container.check_header(found, codec._header())
        return codec

    @staticmethod
    def sizes(blob: bytes) -> container.Sizes:
        """Bits of header and payload, and the rate."""
        return container.sizes(blob)

    def encode(self, seed: int, source: ArrayLike, *, progress: Progress | None = None) -> bytes:
        """Compress.

        Args:
            seed: of the shared randomness, `0..2^32 - 1`; goes into the blob.
            source: `f[n, h, w, c]` in [-1, 1], of the size that the model was trained on.
            progress: called with `(images done, n)`.

        Raises:
            ValueError: images of another size, values outside of [-1, 1] or not finite.
        """
        checks.index(seed, "seed", last=2**32 - 1)
        laws = self.laws(source)
        sent = self.send(_keys(seed, len(laws.mean)), laws, progress=progress)
        return container.pack(Container(seed=int(seed), messages=sent.message, **self._header()))

    def decode(
        self, blob: bytes, side: ArrayLike, decoder: int, *, progress: Progress | None = None
    ) -> ImageReconstruction:
        """Decompress with one decoder's side information.

        Args:
            blob: of :meth:`encode` of an equal codec.
            side: `f[n, sh, sw, c]` in [-1, 1], one an image.
            decoder: which, `0..K - 1`: its own stream of clocks.
            progress: called with `(images done, n)`.

        Raises:
            ValueError: a blob that is broken or of another codec or model, side information of
                another size or number, a decoder that does not exist.
        """
        found = container.unpack(blob)
        container.check_header(found, self._header())
        self.code.stream(decoder)
        features = self.features(side)
        if len(features) != len(found.messages):
            raise ValueError(
                f"side: expected one for each image ({len(found.messages)}), got {len(features)}"
            )
        keys = _keys(found.seed, len(features))
        return self.receive(keys, found.messages, features, decoder, progress=progress)

    def laws(self, source: ArrayLike) -> Normal:
        """Law of the latent for every source, `f[n, h, w, c]`: the encoder's network, what
        :meth:`send` takes.
        """
        source = _images(source, self.model.source_shape, "source")
        return Normal(*_in_batches(self.model.encode, self.model.params, source))

    def features(self, side: ArrayLike) -> Float[np.ndarray, "n F"]:
        """Features of side information, `f[n, sh, sw, c]`: what :meth:`receive` takes."""
        side = _images(side, self.model.side_shape, "side")
        return _in_batches(self.model.project, self.model.params, side)

    def send(
        self, keys: Key[Array, " n"], laws: Normal, *, progress: Progress | None = None
    ) -> list_code.Sent:
        """The encoder's indices and messages, one key an image: what :meth:`encode` packs."""
        return list_code.encode(self.code, keys, gaussian_density, (), laws, progress=progress)

    def receive(
        self,
        keys: Key[Array, " n"],
        message: Numbers,
        features: Float[np.ndarray, "n F"],
        decoder: int,
        *,
        progress: Progress | None = None,
    ) -> ImageReconstruction:
        """What :meth:`decode` makes of the messages `i32[n]`."""
        density, params = Density(self.model.score), self.model.params
        found = list_code.decode(
            self.code, keys, message, decoder, density, params, features, progress=progress
        )
        latent = np.where(
            found.index[:, None] < 0, np.float32(0), found.candidate
        )  # an empty bin says nothing
        return ImageReconstruction(self.rebuild(latent, features), found.index, latent)

    def rebuild(
        self, latent: Float[np.ndarray, "n D"], features: Float[np.ndarray, "n F"]
    ) -> Float[np.ndarray, "n h w c"]:
        """Images from latents `f32[n, D]` and features."""
        return _in_batches(self.model.reconstruct, self.model.params, latent, features)

    def _header(self) -> dict:
        return container.header("images", self.code, BATCH, {"model": self.model.fingerprint})


def _keys(seed: int, count: int) -> Key[Array, " n"]:
    return list_code.symbol_keys(races.new_key(seed), count)


def _images(value, shape: tuple[int, ...], name: str) -> np.ndarray:
    images = np.asarray(value)
    if images.ndim != 4 or images.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"{name}: expected shape [n, {wanted}], as the model was trained on, got {list(images.shape)}"
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name}: expected floats in [-1, 1], got dtype {images.dtype}")
    if not (np.abs(images) <= 1).all():  # NaN is not either
        raise ValueError(
            f"{name}: expected values within [-1, 1], got {np.min(images)} to {np.max(images)}"
        )
    return images.astype(np.float32)


def _in_batches(function: Callable, params, *rows: np.ndarray):
    """``function(params, *rows)`` in batches of one shape, zeros behind the last row."""
    results = []
    for first in range(0, max(len(rows[0]), 1), BATCH):
        parts = [np.asarray(row[first : first + BATCH], np.float32) for row in rows]
        count = len(parts[0])
        padded = [
            np.concatenate([part, np.zeros((BATCH - count, *part.shape[1:]), np.float32)])
            for part in parts
        ]
        results.append(
            jax.tree.map(
                lambda x, n=count: np.asarray(x)[:n], _run(params, *padded, function=function)
            )
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


@partial(jax.jit, static_argnames="function")
def _run(params, *rows, function: Callable):
    return function(params, *rows)
