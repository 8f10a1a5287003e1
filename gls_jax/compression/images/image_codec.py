"""Images to bytes and back, with side information at K decoders, by a list code over a latent.

Source: Rowan, Phan, Khisti 2025 (arXiv 2506.05632), their experiment on MNIST. An image model
encodes a source to a Gaussian distribution of its latent; relative to the latent's prior that gives
the encoder's weights. A decoder's weights are the model's estimate of what its side information
says about the latent. Each decoder reconstructs the image from the candidate it picks and its side
information.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from gls_jax.compression import payload, symbol_coding
from gls_jax.compression.container import Container, Sizes, pack, sizes, unpack
from gls_jax.compression.container_fields import check_header, header
from gls_jax.compression.densities import Density, Normal, gaussian_density
from gls_jax.compression.images.image_checks import check_pixels
from gls_jax.compression.images.image_model import ImageModel
from gls_jax.compression.list_code import ListCode
from gls_jax.compression.symbol_groups import padded
from gls_jax.compression.symbol_validation import check_seed
from gls_jax.typing import Numbers, Progress

__all__ = ["BATCH_SIZE", "ImageCodec", "ImageReconstruction"]

# Images in one call of a network. Part of the blob format: the last bits of a row depend on the
# shape of the batch.
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ImageReconstruction:
    """The images that a decoder reconstructs from a blob.

    Attributes:
        estimate: `f32[n, h, w, c]` in [-1, 1], of the sources.
        index: `i32[n]`, of the candidate that this decoder picked.
        latent: `f32[n, D]`, that candidate: the encoder's where the indices match.
    """

    estimate: Float[np.ndarray, "n h w c"]
    index: Int[np.ndarray, " n"]
    latent: Float[np.ndarray, "n D"]


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """Lossy compression of images for `K` decoders, each with its side information.

    ``log2 L`` bits per image. The search is dense, because a network's weights have no known bound.

    Attributes:
        model: the same for encoder and decoders, see :func:`gls_jax.models.load_vae`.
        num_decoders: `K`.
        num_candidates: `N`.
        num_bins: `L`, at most `N`.
        scheme: `gls`, or `baseline`: all decoders share one stream of noise.

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
        # The list code checks its sizes, and turns NumPy's numbers into Python's.
        for name in ("num_decoders", "num_candidates", "num_bins"):
            object.__setattr__(self, name, getattr(self.code, name))
        payload.check_num_bins(self.num_bins)

    @property
    def code(self) -> ListCode:
        """Its list code."""
        counts = (self.num_decoders, self.num_candidates, self.num_bins)
        return ListCode(*counts, dimension=self.model.latent, scheme=self.scheme, search="dense")

    @classmethod
    def of(cls, blob: bytes | Container, model: ImageModel) -> ImageCodec:
        """The codec that made a blob, packed or unpacked.

        Raises:
            ValueError: not a whole blob of images, or one that was made with another model.
        """
        container = unpack(blob)
        codec = cls(
            model,
            container.num_decoders,
            container.num_candidates,
            container.num_bins,
            container.scheme,
        )
        check_header(container, codec._header())
        return codec

    @staticmethod
    def sizes(blob: bytes) -> Sizes:
        """Bits of header and payload, and the rate."""
        return sizes(blob)

    def encode(self, seed: int, source: ArrayLike, *, progress: Progress | None = None) -> bytes:
        """Compress.

        Args:
            seed: of the shared randomness, `0..2^32 - 1`; stored in the blob.
            source: `f[n, h, w, c]` in [-1, 1], of the size that the model was trained on.
            progress: called with `(images done, n)`.

        Raises:
            ValueError: images of another size, values outside [-1, 1] or not finite.
        """
        seed = check_seed(seed)
        latents = self.latent_distributions(source)
        keys = symbol_coding.keys_of_seed(seed, len(latents.mean))
        sent = self.send(keys, latents, progress=progress)
        return pack(Container(seed=seed, messages=sent.message, **self._header()))

    def decode(
        self,
        blob: bytes | Container,
        side: ArrayLike,
        decoder: int,
        *,
        progress: Progress | None = None,
    ) -> ImageReconstruction:
        """Decompress with one decoder's side information.

        Args:
            blob: of :meth:`encode` of an equal codec, packed or unpacked.
            side: `f[n, sh, sw, c]` in [-1, 1], one per image.
            decoder: `0..K - 1`; selects the stream of noise.
            progress: called with `(images done, n)`.

        Raises:
            ValueError: a blob that is damaged or of another codec or model, side information of
                another size or number, or no such decoder.
        """
        container = unpack(blob)
        check_header(container, self._header())
        # Features of many images take long: a decoder that does not exist is refused before.
        self.code.stream(decoder)
        message, features = container.messages, self.features(side)
        if len(features) != len(message):
            raise ValueError(
                f"side: expected one for each image ({len(message)}), got {len(features)}"
            )
        keys = symbol_coding.keys_of_seed(container.seed, len(features))
        return self.receive(keys, message, features, decoder, progress=progress)

    def latent_distributions(self, source: ArrayLike) -> Normal:
        """Distribution of the latent given each source `f[n, h, w, c]`: what :meth:`send` takes."""
        source = _check_images(source, self.model.source_shape, "source")
        mean, variance = _in_batches(self.model.encode, self.model.params, source)
        return Normal(mean=mean, variance=variance)

    def features(self, side: ArrayLike) -> Float[np.ndarray, "n F"]:
        """Features of side information `f[n, sh, sw, c]`: what :meth:`receive` takes."""
        side = _check_images(side, self.model.side_shape, "side")
        return _in_batches(self.model.project, self.model.params, side)

    def send(
        self, keys: Key[Array, " n"], latents: Normal, *, progress: Progress | None = None
    ) -> symbol_coding.Sent:
        """The encoder's indices and messages, one key per image: what :meth:`encode` packs."""
        return symbol_coding.encode(
            self.code, keys, gaussian_density, (), latents, progress=progress
        )

    def receive(
        self,
        keys: Key[Array, " n"],
        message: Numbers,
        features: Float[np.ndarray, "n F"],
        decoder: int,
        *,
        progress: Progress | None = None,
    ) -> ImageReconstruction:
        """The reconstruction of :meth:`decode`, from messages `i32[n]`."""
        received = symbol_coding.decode(
            self.code,
            keys,
            message,
            decoder,
            Density(self.model.score),
            self.model.params,
            features,
            progress=progress,
        )
        # An empty bin says nothing about the latent: take the prior's mean.
        is_empty = received.index[:, None] < 0
        latent = np.where(is_empty, np.float32(0), received.candidate)
        estimate = self.rebuild(latent, features)
        return ImageReconstruction(estimate=estimate, index=received.index, latent=latent)

    def rebuild(
        self, latent: Float[np.ndarray, "n D"], features: Float[np.ndarray, "n F"]
    ) -> Float[np.ndarray, "n h w c"]:
        """Images from latents `f32[n, D]` and features."""
        return _in_batches(self.model.reconstruct, self.model.params, latent, features)

    def _header(self) -> dict:
        return header("images", self.code, BATCH_SIZE, {"model": self.model.model_hash})


def _check_images(value: ArrayLike, shape: tuple[int, ...], name: str) -> np.ndarray:
    images = np.asarray(value)
    if images.ndim != 4 or images.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"{name}: expected shape [n, {expected}], as the model was trained on, "
            f"got {list(images.shape)}"
        )
    # Integers are likely to be pixels from 0 to 255.
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name}: expected floats in [-1, 1], got dtype {images.dtype}")
    check_pixels(images, name)
    return images.astype(np.float32)


def _in_batches(function: Callable, params, *rows: np.ndarray):
    """``function(params, *rows)`` in batches of one shape, filled up with zeros."""
    results = []
    # No rows at all still run one batch, for the shape of the result.
    for first in range(0, max(len(rows[0]), 1), BATCH_SIZE):
        parts = [np.asarray(row[first : first + BATCH_SIZE], np.float32) for row in rows]
        num_rows = len(parts[0])
        batches = [padded(part, BATCH_SIZE) for part in parts]
        result = _run(params, *batches, function=function)
        results.append(jax.tree.map(lambda x, n=num_rows: np.asarray(x)[:n], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


@partial(jax.jit, static_argnames="function")
def _run(params, *rows, function: Callable):
    return function(params, *rows)
