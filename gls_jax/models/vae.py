"""The image VAE of the GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), in Flax nnx.

Four networks that are trained together:

- the encoder maps a source to a Gaussian over the latent `w`;
- the projection network maps a decoder's side image to features;
- the decoder rebuilds the source from `w` and features;
- the estimator tells pairs (w, features) of one image from pairs of two images, so that its logit
  estimates `log p(w | side) / p(w)`.

The paper leaves open the projection network, the layers of the estimator, and where dropout goes:
they are chosen here, with dropout after the decoder's hidden layer. The paper's encoder ends in
6,272 = 128 x 7 x 7 numbers, which fits a source of 28 x 28; half a digit is 28 x 14 and gives
128 x 7 x 4.
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

# Far outside of what a trained encoder predicts; keeps exp and its gradient finite.
_MIN_LOG_VARIANCE = -12.0
_MAX_LOG_VARIANCE = 4.0


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """Sizes of an :class:`ImageVae`; the defaults are the paper's for halves of digits.

    Attributes:
        source_shape: height, width and channels of the source.
        side_shape: height, width and channels of the side information.
        latent: dimensions of `w`.
        channels: of the encoder's convolutions; those of the decoder have all, half and a quarter
            of them.
        hidden: units of the fully connected layers.
        features: number of features of the side information.
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
            shape = tuple(getattr(self, name))
            if len(shape) != 3:
                raise ValueError(f"{name}: expected height, width and channels, got {shape}")
            # A tuple of plain ints is hashable and can be written as JSON.
            object.__setattr__(self, name, tuple(checks.count(size, name) for size in shape))
        for name in ("latent", "channels", "hidden", "features"):
            object.__setattr__(self, name, checks.count(getattr(self, name), name))
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
        """Sizes for whole images `[n, height, width, channels]`.

        Right halves are the sources, square crops of left halves the side information. The other
        sizes, and their defaults, are those of the class.

        >>> import numpy as np
        >>> from gls_jax.models import VaeConfig
        >>> VaeConfig.of_images(np.zeros((1, 32, 32, 3)), crop=16, latent=8).side_shape
        (16, 16, 3)
        """
        left, right = halves(images)
        largest_crop = min(left.shape[1:3])
        if checks.count(crop, "crop") > largest_crop:
            raise ValueError(
                f"crop: expected at most {largest_crop}, what left halves have, got {crop}"
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


# The names of its layers are part of checkpoints and of model hashes: they must not change.
class ImageVae(nnx.Module):
    """Encoder, projection network, decoder and estimator.

    Images are `[B, height, width, channels]` in [-1, 1].

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

    image_size: tuple[int, int]
    dropout_rate: float
    grid_shape: tuple[int, int, int]
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
        height, width, num_colours = config.source_shape
        side_height, side_width, num_side_colours = config.side_shape
        wide = config.channels
        half = wide // 2
        quarter = wide // 4
        hidden = config.hidden
        features = config.features
        self.image_size = (height, width)
        self.dropout_rate = config.dropout
        # Convolutions of stride 2 halve a size and round up: the encoder has two, the projection
        # network one.
        self.grid_shape = (-(-height // 4), -(-width // 4), wide)
        grid_size = math.prod(self.grid_shape)
        side_grid_size = -(-side_height // 2) * -(-side_width // 2) * half
        # Encoder: `law` gives mean and log-variance of the latent, whose distribution it is. The
        # name is an old one, kept because checkpoints contain it.
        self.encoder = nnx.List(
            [
                _convolution(num_colours, wide, 1, rngs),
                _convolution(wide, wide, 2, rngs),
                _convolution(wide, wide, 2, rngs),
                nnx.Linear(grid_size, hidden, rngs=rngs),
            ]
        )
        self.law = nnx.Linear(hidden, 2 * config.latent, rngs=rngs)
        # Projection network.
        self.projection = nnx.List(
            [_convolution(num_side_colours, quarter, 1, rngs), _convolution(quarter, half, 2, rngs)]
        )
        self.to_features = nnx.Linear(side_grid_size, features, rngs=rngs)
        # Decoder: the encoder in reverse, from latent and features.
        self.hidden = nnx.Linear(config.latent + features, hidden, rngs=rngs)
        self.to_grid = nnx.Linear(hidden, grid_size, rngs=rngs)
        self.upward = nnx.List([_doubling(wide, half, rngs), _doubling(half, quarter, rngs)])
        self.pixels = _convolution(quarter, num_colours, 1, rngs)
        # Estimator: one bias serves both parts of its first layer, see `score`.
        self.estimator_latent = nnx.Linear(config.latent, features, rngs=rngs)
        self.estimator_features = nnx.Linear(features, features, use_bias=False, rngs=rngs)
        self.estimator_hidden = nnx.Linear(features, features, rngs=rngs)
        self.estimator_logit = nnx.Linear(features, 1, rngs=rngs)

    def encode(
        self, source: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Mean and variance of the latent given the source."""
        *convolutions, to_hidden = self.encoder
        image = source
        for convolution in convolutions:
            image = nnx.relu(convolution(image))
        hidden = nnx.relu(to_hidden(image.reshape(image.shape[0], -1)))
        mean, log_variance = jnp.split(self.law(hidden), 2, -1)
        log_variance = jnp.clip(log_variance, _MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE)
        return mean, jnp.exp(log_variance)

    def project(self, side: Float[Array, "b sh sw c"]) -> Float[Array, "b f"]:
        """Features of the side information."""
        image = side
        for convolution in self.projection:
            image = nnx.relu(convolution(image))
        return nnx.relu(self.to_features(image.reshape(image.shape[0], -1)))

    def score(
        self, features: Float[Array, "*#b f"], latents: Float[Array, "*#b d"]
    ) -> Float[Array, "*b"]:
        """Logit of "one image" against "two images" for each pair; leading axes broadcast."""
        # The first layer has two parts, so that the part of a decoder's features is computed once
        # for all candidates.
        first = nnx.relu(self.estimator_latent(latents) + self.estimator_features(features))
        second = nnx.relu(self.estimator_hidden(first))
        return self.estimator_logit(second)[..., 0]

    def reconstruct(
        self,
        latents: Float[Array, "b d"],
        features: Float[Array, "b f"],
        dropout: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w c"]:
        """The decoder's estimate of the source.

        With a key of `dropout`, hidden units are dropped as in training.
        """
        hidden = nnx.relu(self.hidden(jnp.concatenate([latents, features], -1)))
        if dropout is not None:
            kept_share = 1 - self.dropout_rate
            is_kept = jax.random.bernoulli(dropout, jnp.float32(kept_share), hidden.shape)
            hidden = jnp.where(is_kept, hidden / kept_share, 0)
        image = nnx.relu(self.to_grid(hidden)).reshape(-1, *self.grid_shape)
        for layer in self.upward:
            image = nnx.relu(layer(image))
        # The grid was rounded up, so that the image may be too large by up to three pixels.
        height, width = self.image_size
        return jnp.tanh(self.pixels(image[:, :height, :width]))


def new_vae(config: VaeConfig, key: PRNGKeyArray) -> ImageVae:
    """A network with random weights: normal of variance 2 / inputs (He et al. 2015), biases 0."""
    graph, shapes = nnx.split(abstract(config))
    leaves, structure = jax.tree.flatten(shapes)
    # One draw is cut up for all leaves: a program for the shape of each would take ten seconds to
    # compile.
    leaf_ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])
    num_weights = int(leaf_ends[-1])
    with races.keys.partitionable_bits():
        draws = np.asarray(jax.random.normal(key, (num_weights,), jnp.float32))
    weights = []
    for draw, leaf in zip(np.split(draws, leaf_ends[:-1]), leaves, strict=True):
        if len(leaf.shape) == 1:
            weights.append(jnp.zeros(leaf.shape, jnp.float32))
        else:
            # The last axis counts outputs, all others inputs.
            num_inputs = math.prod(leaf.shape[:-1])
            weights.append(jnp.asarray(draw.reshape(leaf.shape) * math.sqrt(2 / num_inputs)))
    return nnx.merge(graph, jax.tree.unflatten(structure, weights))


def abstract(config: VaeConfig) -> ImageVae:
    """The network without its weights: shapes alone."""
    return nnx.eval_shape(lambda: ImageVae(config, rngs=nnx.Rngs(0)))


# A static argument of compiled functions: equal for models of one architecture, so that a second
# one reuses the compiled program.
@dataclasses.dataclass(frozen=True)
class NetworkMethod:
    """A method of :class:`ImageVae` as a pure function of the weights.

    Attributes:
        graph: the network without its weights.
        name: of the method.
    """

    graph: Any
    name: str

    def __call__(self, params: Any, *inputs: ArrayLike) -> Any:
        """The method on these weights."""
        method = getattr(nnx.merge(self.graph, params), self.name)
        return method(*map(jnp.asarray, inputs))


def image_model(model: ImageVae, config: VaeConfig) -> ImageModel:
    """Model adapter for `gls_jax.compression.ImageCodec`; the weights are shared, not copied."""
    graph, params = nnx.split(model)
    return ImageModel(
        params,
        encode=NetworkMethod(graph, "encode"),
        project=NetworkMethod(graph, "project"),
        score=NetworkMethod(graph, "score"),
        reconstruct=NetworkMethod(graph, "reconstruct"),
        latent=config.latent,
        source_shape=config.source_shape,
        side_shape=config.side_shape,
        model_hash=_model_hash(params, config),
    )


def _model_hash(params, config: VaeConfig) -> str:
    """SHA-256 of sizes and weights, which encoder and decoder must have in common."""
    sizes = json.dumps(dataclasses.asdict(config), sort_keys=True)
    digest = hashlib.sha256(sizes.encode())
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(leaf_path)}{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _convolution(num_inputs: int, num_outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    # Padded by one pixel on each side: the size stays, or is halved and rounded up.
    padding = ((1, 1), (1, 1))
    strides = (stride, stride)
    return nnx.Conv(num_inputs, num_outputs, (3, 3), strides=strides, padding=padding, rngs=rngs)


def _doubling(num_inputs: int, num_outputs: int, rngs: nnx.Rngs) -> nnx.ConvTranspose:
    return nnx.ConvTranspose(num_inputs, num_outputs, (3, 3), strides=(2, 2), rngs=rngs)
