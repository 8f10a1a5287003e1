"""The image VAE of the GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), in Flax nnx.

Four networks that are trained together. The encoder maps a source to a Gaussian over the latent
`w`; the projection network maps a decoder's side image to features; the decoder rebuilds the source
from `w` and features; the estimator tells pairs (w, features) of one image from pairs of two, so
that its logit is an estimate of `log p(w | side) / p(w)`.

What the paper leaves open is chosen here: the projection network and the estimator's layers, and
dropout after the decoder's hidden layer. Its encoder ends in 6,272 = 128 x 7 x 7 numbers, which is
a source of 28 x 28; a half of a digit is 28 x 14 and gives 128 x 7 x 4.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.compression.images.image_crops import halves
from gls_jax.compression.images.image_model import ImageModel

__all__ = ["ImageVae", "VaeConfig", "abstract", "image_model", "new_vae"]

_LOG_VARIANCES = (
    -12.0,
    4.0,
)  # far outside of what a trained encoder says; keeps exp and its gradient finite


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """Sizes of an :class:`ImageVae`; the defaults are the paper's for halves of digits.

    Attributes:
        source_shape: height, width and channels of the source.
        side_shape: height, width and channels of the side information.
        latent: dimensions of `w`.
        channels: of the encoder's convolutions; the decoder's have this, a half and a quarter of
            it.
        hidden: units of the fully connected layers.
        features: that the side information is projected to.
        dropout: share of the decoder's hidden units that are dropped in training.
    """

    source_shape: tuple[int, ...] = (28, 14, 1)
    side_shape: tuple[int, ...] = (7, 7, 1)
    latent: int = 4
    channels: int = 128
    hidden: int = 512
    features: int = 128
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("source_shape", "side_shape"):
            sizes = tuple(getattr(self, name))
            if len(sizes) != 3:
                raise ValueError(f"{name}: expected height, width and channels, got {sizes}")
            object.__setattr__(self, name, tuple(checks.count(size, name) for size in sizes))
        for name in ("latent", "channels", "hidden", "features"):
            checks.count(getattr(self, name), name)
        if self.channels % 4:
            raise ValueError(f"channels: expected a multiple of 4, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number within [0, 1), got {self.dropout}")

    @classmethod
    def of_images(
        cls,
        images: np.ndarray,
        crop: int = 7,
        *,
        latent: int = latent,
        channels: int = channels,
        hidden: int = hidden,
        features: int = features,
        dropout: float = dropout,
    ) -> VaeConfig:
        """Sizes for whole images `[n, height, width, channels]`: right halves, and square crops of
        left ones.

        The other sizes, and their defaults, are those of the class.

        >>> import numpy as np
        >>> from gls_jax.models import VaeConfig
        >>> VaeConfig.of_images(np.zeros((1, 32, 32, 3)), crop=16, latent=8).side_shape
        (16, 16, 3)
        """
        left, right = halves(images)
        if checks.count(crop, "crop") > min(left.shape[1:3]):
            raise ValueError(
                f"crop: expected at most {min(left.shape[1:3])}, what left halves have, got {crop}"
            )
        return cls(
            source_shape=right.shape[1:],
            side_shape=(crop, crop, right.shape[3]),
            latent=latent,
            channels=channels,
            hidden=hidden,
            features=features,
            dropout=dropout,
        )


class ImageVae(nnx.Module):
    """Encoder, projection network, decoder and estimator; images are `[B, height, width, channels]`
    in [-1, 1].

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import models
    >>> config = models.VaeConfig(
    ...     source_shape=(5, 3, 1), side_shape=(2, 2, 1), channels=4, hidden=8, features=6
    ... )
    >>> vae = models.new_vae(config, jax.random.key(0))
    >>> mean, variance = vae.encode(jnp.zeros((7, 5, 3, 1)))
    >>> vae.reconstruct(mean, vae.project(jnp.zeros((7, 2, 2, 1)))).shape
    (7, 5, 3, 1)
    """

    size: tuple[int, int]
    rate: float
    grid: tuple[int, int, int]
    encoder: nnx.List[nnx.Conv | nnx.Linear]
    law: nnx.Linear
    projection: nnx.List[nnx.Conv]
    to_features: nnx.Linear
    hidden: nnx.Linear
    to_grid: nnx.Linear
    upward: nnx.List[nnx.ConvTranspose]
    pixels: nnx.Conv
    estimator_latent: nnx.Linear
    estimator_features: nnx.Linear
    estimator_hidden: nnx.Linear
    estimator_logit: nnx.Linear

    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs) -> None:
        height, width, colours = config.source_shape
        side_height, side_width, side_colours = config.side_shape
        wide, half, quarter = config.channels, config.channels // 2, config.channels // 4
        self.size, self.rate = (height, width), config.dropout
        self.grid = (-(-height // 4), -(-width // 4), wide)  # after two convolutions of stride 2
        cells, side_cells = (
            self.grid[0] * self.grid[1] * wide,
            -(-side_height // 2) * -(-side_width // 2) * half,
        )
        self.encoder = nnx.List(
            [
                _convolution(colours, wide, 1, rngs),
                _convolution(wide, wide, 2, rngs),
                _convolution(wide, wide, 2, rngs),
                nnx.Linear(cells, config.hidden, rngs=rngs),
            ]
        )
        self.law = nnx.Linear(config.hidden, 2 * config.latent, rngs=rngs)
        self.projection = nnx.List(
            [_convolution(side_colours, quarter, 1, rngs), _convolution(quarter, half, 2, rngs)]
        )
        self.to_features = nnx.Linear(side_cells, config.features, rngs=rngs)
        self.hidden = nnx.Linear(config.latent + config.features, config.hidden, rngs=rngs)
        self.to_grid = nnx.Linear(config.hidden, cells, rngs=rngs)
        self.upward = nnx.List([_doubling(wide, half, rngs), _doubling(half, quarter, rngs)])
        self.pixels = _convolution(quarter, colours, 1, rngs)
        self.estimator_latent = nnx.Linear(config.latent, config.features, rngs=rngs)
        self.estimator_features = nnx.Linear(
            config.features, config.features, use_bias=False, rngs=rngs
        )
        self.estimator_hidden = nnx.Linear(config.features, config.features, rngs=rngs)
        self.estimator_logit = nnx.Linear(config.features, 1, rngs=rngs)

    def encode(
        self, source: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Mean and variance of the latent given the source."""
        *convolutions, flat = self.encoder
        for layer in convolutions:
            source = nnx.relu(layer(source))
        mean, log_variance = jnp.split(
            self.law(nnx.relu(flat(source.reshape(source.shape[0], -1)))), 2, -1
        )
        return mean, jnp.exp(jnp.clip(log_variance, *_LOG_VARIANCES))

    def project(self, side: Float[Array, "b sh sw c"]) -> Float[Array, "b f"]:
        """Features of the side information."""
        for layer in self.projection:
            side = nnx.relu(layer(side))
        return nnx.relu(self.to_features(side.reshape(side.shape[0], -1)))

    def score(
        self, features: Float[Array, "*#b f"], latents: Float[Array, "*#b d"]
    ) -> Float[Array, "*b"]:
        """Logit of "one image" against "two images" for each pair; leading axes broadcast."""
        # The first layer in two parts: that of the features is worked out once for all candidates
        # of a decoder.
        first = nnx.relu(self.estimator_latent(latents) + self.estimator_features(features))
        return self.estimator_logit(nnx.relu(self.estimator_hidden(first)))[..., 0]

    def reconstruct(
        self,
        latents: Float[Array, "b d"],
        features: Float[Array, "b f"],
        dropout: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w c"]:
        """The source as the decoder sees it; with a key of `dropout` hidden units are dropped, as
        in training.
        """
        hidden = nnx.relu(self.hidden(jnp.concatenate([latents, features], -1)))
        if dropout is not None:
            keep = jax.random.bernoulli(dropout, jnp.float32(1 - self.rate), hidden.shape)
            hidden = jnp.where(keep, hidden / (1 - self.rate), 0)
        image = nnx.relu(self.to_grid(hidden)).reshape(-1, *self.grid)
        for layer in self.upward:
            image = nnx.relu(layer(image))
        return jnp.tanh(self.pixels(image[:, : self.size[0], : self.size[1]]))


def new_vae(config: VaeConfig, key: PRNGKeyArray) -> ImageVae:
    """A network with random weights: normal of variance 2 / inputs (He et al. 2015), biases 0.

    One draw is cut up for all of them: a program for the shape of each would take ten seconds to
        compile.
    """
    graph, shapes = nnx.split(abstract(config))
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])
    with races.keys.partitionable_bits():
        draws = np.split(
            np.asarray(jax.random.normal(key, (int(ends[-1]),), jnp.float32)), ends[:-1]
        )
    weights = [
        jnp.asarray(draw.reshape(leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1])))
        if len(leaf.shape) > 1
        else jnp.zeros(leaf.shape, jnp.float32)
        for draw, leaf in zip(draws, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, weights))


def abstract(config: VaeConfig) -> ImageVae:
    """The network without its weights: shapes alone."""
    return nnx.eval_shape(lambda: ImageVae(config, rngs=nnx.Rngs(0)))


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the networks as a pure function; equal for models of one architecture, so that neither
    compiles twice.
    """

    graph: Any
    name: str

    def __call__(self, params: Any, *inputs: ArrayLike) -> Any:
        """The method of that name on these parameters."""
        return getattr(nnx.merge(self.graph, params), self.name)(*map(jnp.asarray, inputs))


def image_model(model: ImageVae, config: VaeConfig) -> ImageModel:
    """Bundle for `gls_jax.compression.ImageCodec`; the weights are shared, not copied."""
    graph, params = nnx.split(model)
    parts = {name: Part(graph, name) for name in ("encode", "project", "score", "reconstruct")}
    return ImageModel(
        params,
        **parts,
        latent=config.latent,
        source_shape=config.source_shape,
        side_shape=config.side_shape,
        fingerprint=_fingerprint(params, config),
    )


def _fingerprint(params, config: VaeConfig) -> str:
    """SHA-256 of sizes and weights, what two parties must have in common."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _convolution(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs, outputs, (3, 3), strides=(stride, stride), padding=((1, 1), (1, 1)), rngs=rngs
    )


def _doubling(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.ConvTranspose:
    return nnx.ConvTranspose(inputs, outputs, (3, 3), strides=(2, 2), rngs=rngs)
