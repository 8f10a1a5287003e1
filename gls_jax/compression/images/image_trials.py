"""The error of an image codec on images, for every decoder, without packing bytes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from gls_jax import checks, races
from gls_jax.compression import symbol_coding
from gls_jax.compression.densities import Normal
from gls_jax.compression.images.image_codec import ImageCodec
from gls_jax.compression.images.image_crops import crops, halves
from gls_jax.compression.symbol_validation import check_seed
from gls_jax.typing import Progress

__all__ = ["ImageErrors", "ImageTrials", "image_trials"]


class ImageErrors(NamedTuple):
    """Results of every decoder, repeat and image.

    Attributes:
        squared_error: `f32[K, R, n]`, mean over the pixels, which are in [-1, 1].
        matched: `bool[K, R, n]`, whether the decoder picked the encoder's candidate.
    """

    squared_error: Float[np.ndarray, "K R n"]
    matched: Bool[np.ndarray, "K R n"]

    def best(self, num_decoders: int) -> Float[np.ndarray, "R n"]:
        """Squared error of the best among the first `num_decoders`."""
        return self.squared_error[:num_decoders].min(axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTrials:
    """Images and crops that went through the networks once, for all codecs of one model.

    All codecs see the same crops, candidates and noise, so their errors are compared in pairs.

    Attributes:
        source: `f32[n, h, w, c]`.
        keys: of the `R n` symbols.
        latents: distributions of the symbols' latents.
        features: of every decoder's crops, `f32[K, R n, F]`.
    """

    source: Float[np.ndarray, "n h w c"]
    keys: Key[Array, " rn"]
    latents: Normal
    features: Float[np.ndarray, "K rn F"]

    def run(self, codec: ImageCodec, *, progress: Progress | None = None) -> ImageErrors:
        """Errors of a codec that has at most as many decoders as there are crops.

        Args:
            codec: of the model that the trials were made with.
            progress: called with `(decoders done, K)`.
        """
        # Sent once: the message does not depend on who receives it.
        sent = codec.send(self.keys, self.latents)
        squared_errors, matches = [], []
        for decoder in range(codec.num_decoders):
            received = codec.receive(self.keys, sent.message, self.features[decoder], decoder)
            estimate = received.estimate.reshape(-1, *self.source.shape)
            pixel_errors = np.square(estimate - self.source)
            squared_errors.append(np.mean(pixel_errors, axis=(2, 3, 4)))
            is_match = received.index == sent.index
            matches.append(is_match.reshape(-1, len(self.source)))
            if progress is not None:
                progress(decoder + 1, codec.num_decoders)
        return ImageErrors(squared_error=np.stack(squared_errors), matched=np.stack(matches))


def image_trials(
    codec: ImageCodec, seed: int, images: np.ndarray, *, repeats: int = 1
) -> ImageTrials:
    """Send right halves to decoders that each have a crop of the left half.

    Crops and candidates are drawn anew in every repeat.

    Args:
        codec: for its model and number of decoders.
        seed: of crops and codec.
        images: `f32[n, height, width, channels]` in [-1, 1], whole images.
        repeats: `R`.

    Raises:
        ValueError: images of another size than the model was trained on.

    >>> import jax, numpy as np
    >>> from gls_jax import models
    >>> from gls_jax.compression import ImageCodec, image_trials
    >>> images = np.zeros((5, 6, 8, 1), np.float32)
    >>> config = models.VaeConfig.of_images(images, crop=3, channels=4, hidden=8, features=6)
    >>> model = models.image_model(models.new_vae(config, jax.random.key(0)), config)
    >>> codec = ImageCodec(model, num_decoders=2, num_candidates=64, num_bins=8)
    >>> image_trials(codec, 0, images, repeats=3).run(codec).best(2).shape
    (3, 5)
    """
    check_seed(seed)
    checks.count(repeats, "repeats")
    left, source = halves(np.asarray(images, np.float32))
    key, crop_size = races.new_key(seed), codec.model.side_shape[0]
    latents = codec.latent_distributions(source)
    side_parts = []
    for repeat in range(repeats):
        # From the private branch: independent of the candidates and their noise.
        crop_key = jax.random.fold_in(races.private_key(key), repeat)
        side_parts.append(crops(crop_key, jnp.asarray(left), codec.num_decoders, crop_size))
    side = np.concatenate(side_parts)
    # Networks see each image once per decoder, whatever the number of codecs that are compared.
    features = [codec.features(side[:, decoder]) for decoder in range(codec.num_decoders)]
    return ImageTrials(
        source=source,
        keys=symbol_coding.symbol_keys(key, repeats * len(source)),
        latents=Normal(
            mean=np.tile(latents.mean, (repeats, 1)),
            variance=np.tile(latents.variance, (repeats, 1)),
        ),
        features=np.stack(features),
    )
