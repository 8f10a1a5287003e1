"""Images to bytes and back, with side information at K decoders: a list code over the latent of an image model.

Rowan, Phan, Khisti 2025 (arXiv 2506.05632), its experiment on MNIST. The encoder's weights are the Gaussian law that the
model gives a source against the latent's prior; a decoder's are the model's estimate of what its side information says
about the latent. Each decoder rebuilds the image from the candidate it finds and its side information.

Searches are dense: nobody knows how large a network's weights can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax import checks
from gls_jax.compression import container, list_code
from gls_jax.compression.code import Density, ListCode, Normal, gaussian_density
from gls_jax.compression.groups import Progress
from gls_jax.compression.image_model import ImageModel
from gls_jax.compression.list_code import Received, Sent

__all__ = ["BATCH", "ImageCodec", "Reconstruction"]

BATCH = 64  # images of one call of a network; part of the format: a row's last bits depend on the batch's shape


class Reconstruction(NamedTuple):
    """What one decoder makes of a blob.

    Attributes:
        estimate: `f32[n, h, w, c]` in [-1, 1], the images.
        index: `i32[n]`, of the candidates the decoder found; whether they are the encoder's it cannot know.
    """

    estimate: Float[np.ndarray, "n h w c"]
    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # not tuple.index


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """A codec that writes log2 L bits an image.

    Attributes:
        model: what encoder and decoders have trained, or loaded with `gls_jax.models.load_vae`.
        num_decoders: `K`.
        num_candidates: `N`; about two to the bits of information that the latent holds, or more.
        num_bins: `L`.
        scheme: `gls`, or `baseline`: all decoders share one stream of clocks.

    Raises:
        ValueError: sizes that are not positive, or more bins than candidates.

    >>> import numpy as np
    >>> from flax import nnx
    >>> from gls_jax import models
    >>> from gls_jax.compression import ImageCodec
    >>> config = models.VaeConfig(source_shape=(6, 4, 1), side_shape=(3, 3, 1), channels=4, hidden=8, features=6)
    >>> model = models.image_model(models.ImageVae(config, rngs=nnx.Rngs(0)), config)  # untrained
    >>> codec = ImageCodec(model, num_decoders=2, num_candidates=64, num_bins=8)
    >>> blob = codec.encode(0, np.zeros((5, 6, 4, 1), np.float32))
    >>> codec.decode(blob, np.zeros((5, 3, 3, 1), np.float32), decoder=1).estimate.shape
    (5, 6, 4, 1)
    """

    model: ImageModel
    num_decoders: int
    num_candidates: int
    num_bins: int
    scheme: str = "gls"

    def __post_init__(self):
        _ = self.code

    @property
    def code(self) -> ListCode:
        """The list code over the model's latent."""
        sizes = self.num_decoders, self.num_candidates, self.num_bins
        return ListCode(*sizes, dimension=self.model.latent, scheme=self.scheme, search="dense")

    @classmethod
    def of(cls, blob: bytes, model: ImageModel) -> ImageCodec:
        """The codec that wrote a blob.

        Raises:
            ValueError: not a whole blob of images, or one that another model wrote.
        """
        return _codec(container.unpack(blob), model)

    def encode(self, seed: int, source, *, progress: Progress | None = None) -> bytes:
        """Compress images.

        Args:
            seed: of the randomness shared with the decoders, 0 to 2^32 - 1; it travels in the blob.
            source: `f[n, h, w, c]` in [-1, 1], of the size that the model was trained on.
            progress: called with `(images done, n)`.

        Returns:
            The blob, see :mod:`gls_jax.compression.container`.

        Raises:
            ValueError: images of another size, or values that are not finite.
        """
        checks.index(seed, "seed", last=2**32 - 1)
        laws = self.laws(source)
        sent = self.send(list_code.symbol_keys(jax.random.key(seed), len(laws.mean)), laws, progress=progress)
        return container.pack(
            container.Container(
                kind="images",
                prng="threefry2x32",
                seed=int(seed),
                num_candidates=self.num_candidates,
                num_bins=self.num_bins,
                num_decoders=self.num_decoders,
                scheme=self.scheme,
                search="dense",
                block=BATCH,
                parameters={"model": self.model.fingerprint},
                messages=sent.message,
            )
        )

    def decode(self, blob: bytes, side, decoder: int, *, progress: Progress | None = None) -> Reconstruction:
        """What one decoder sees.

        Args:
            blob: what `encode` wrote.
            side: side information of this decoder, `f[n, sh, sw, c]` in [-1, 1], one an image.
            decoder: which of the `K` it is, from 0.
            progress: called with `(images done, n)`.

        Raises:
            ValueError: a blob that is broken or from another codec or model, side information of another size or
                number, a decoder that does not exist.
        """
        read = container.unpack(blob)
        if (wrote := _codec(read, self.model)) != self:
            for name in ("num_decoders", "num_candidates", "num_bins", "scheme"):
                if (got := getattr(wrote, name)) != (wanted := getattr(self, name)):
                    raise ValueError(f"blob: expected {name} {wanted}, as this codec has, got {got}")
        self.code.stream(decoder)
        features = self.features(side)
        if len(features) != len(read.messages):
            raise ValueError(f"side: expected one for each of {len(read.messages)} images, got {len(features)}")
        keys = list_code.symbol_keys(jax.random.key(read.seed), len(features))
        found = self.receive(keys, read.messages, features, decoder, progress=progress)
        return Reconstruction(self.rebuild(found.candidate, features), found.index)

    def laws(self, source) -> Normal:
        """Law of the latent for every source `f[n, h, w, c]`: what the encoder gives `send`."""
        source = _images(source, self.model.source_shape, "source")
        return Normal(*_in_batches(self.model.encode, self.model.params, source))

    def features(self, side) -> Float[np.ndarray, "n f"]:
        """Features of all side information `f[n, sh, sw, c]`: what a decoder gives `receive` and `rebuild`."""
        side = _images(side, self.model.side_shape, "side")
        return _in_batches(self.model.project, self.model.params, side)

    def send(self, keys: Key[Array, " n"], laws: Normal, *, progress: Progress | None = None) -> Sent:
        """Indices and messages, with one key an image."""
        return list_code.encode(self.code, keys, gaussian_density, (), laws, progress=progress)

    def receive(self, keys, message, features, decoder: int, *, progress: Progress | None = None) -> Received:
        """Indices and latents of one decoder, with the encoder's keys."""
        density = Density(self.model.score)
        params = self.model.params
        return list_code.decode(self.code, keys, message, decoder, density, params, features, progress=progress)

    def rebuild(self, latents, features) -> Float[np.ndarray, "n h w c"]:
        """Images from latents and features."""
        return _in_batches(self.model.reconstruct, self.model.params, latents, features)


def _codec(read: container.Container, model: ImageModel) -> ImageCodec:
    if read.kind != "images":
        raise ValueError(f"blob: expected one of images, got one of kind {read.kind!r}")
    if (wrote := read.parameters.get("model")) != model.fingerprint:
        raise ValueError(f"blob: expected one of model {model.fingerprint[:12]}, got model {str(wrote)[:12]}")
    if (read.search, read.block) != ("dense", BATCH):
        raise ValueError(f"blob: expected dense search in batches of {BATCH}, got {read.search} in {read.block}")
    return ImageCodec(model, read.num_decoders, read.num_candidates, read.num_bins, read.scheme)


def _images(value, shape: tuple[int, int, int], name: str) -> np.ndarray:
    images = np.asarray(value)
    if images.ndim != 4 or images.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected shape [n, {wanted}], as the model was trained on, got {list(images.shape)}")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name}: expected floats in [-1, 1], got dtype {images.dtype}")
    if not (np.abs(images) <= 1).all():  # also of NaN
        raise ValueError(f"{name}: expected values within [-1, 1], got {np.min(images)} to {np.max(images)}")
    return images.astype(np.float32)


def _in_batches(function: Callable, params, *rows: np.ndarray):
    """``function(params, *rows)`` in batches of one shape, zeros behind the last row."""
    results = []
    for first in range(0, max(len(rows[0]), 1), BATCH):
        parts = [np.asarray(row[first : first + BATCH], np.float32) for row in rows]
        count = len(parts[0])
        padded = [np.concatenate([part, np.zeros((BATCH - count, *part.shape[1:]), np.float32)]) for part in parts]
        results.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], _run(params, *padded, function=function)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


@partial(jax.jit, static_argnames="function")
def _run(params, *rows, function: Callable):
    return function(params, *map(jnp.asarray, rows))
