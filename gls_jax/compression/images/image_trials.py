"""How well an image codec does on images: the error of every decoder, without packing bytes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from gls_jax import checks, races
from gls_jax.compression import list_code
from gls_jax.compression.code import Normal
from gls_jax.compression.crops import crops, halves
from gls_jax.compression.groups import Progress
from gls_jax.compression.image_codec import ImageCodec

__all__ = ["ImageErrors", "ImageTrials", "image_trials"]


class ImageErrors(NamedTuple):
    """Of every decoder, repeat and image.

    Attributes:
        squared_error: `f32[K, R, n]`, mean over the pixels, in units of the range [-1, 1].
        matched: `bool[K, R, n]`, whether the decoder found the encoder's candidate.
    """

    squared_error: Float[np.ndarray, "K R n"]
    matched: Bool[np.ndarray, "K R n"]

    def best(self, num_decoders: int) -> Float[np.ndarray, "R n"]:
        """Squared error of the best among the first `num_decoders`."""
        return self.squared_error[:num_decoders].min(axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTrials:
    """Images and crops that went through the networks once, for all codecs over one model.

    Codecs see the same crops, candidates and clocks: their errors differ by what the codecs do, not
        by luck.

    Attributes:
        source: `f32[n, h, w, c]`.
        keys: of the `R n` symbols.
        laws: of their latents.
        features: of every decoder's crops, `f32[K, R n, F]`.
    """

    source: Float[np.ndarray, "n h w c"]
    keys: Key[Array, " rn"]
    laws: Normal
    features: Float[np.ndarray, "K rn F"]

    def run(self, codec: ImageCodec, *, progress: Progress | None = None) -> ImageErrors:
        """Errors of a codec, which has at most as many decoders as there are crops.

        Args:
            codec: over the model that the trials were made with.
            progress: called with `(decoders done, K)`.
        """
        sent = codec.send(self.keys, self.laws)
        errors, matched = [], []
        for decoder in range(codec.num_decoders):
            found = codec.receive(self.keys, sent.message, self.features[decoder], decoder)
            estimate = found.estimate.reshape(-1, *self.source.shape)
            errors.append(np.mean(np.square(estimate - self.source), axis=(2, 3, 4)))
            matched.append((found.index == sent.index).reshape(-1, len(self.source)))
            if progress is not None:
                progress(decoder + 1, codec.num_decoders)
        return ImageErrors(np.stack(errors), np.stack(matched))


def image_trials(
    codec: ImageCodec, seed: int, images: np.ndarray, *, repeats: int = 1
) -> ImageTrials:
    """Right halves to send and crops of left halves for every decoder, other crops and candidates
    in every repeat.

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
    >>> codec = ImageCodec(
    ...     models.image_model(models.new_vae(config, jax.random.key(0)), config), 2, 64, 8
    ... )
    >>> image_trials(codec, 0, images, repeats=3).run(codec).best(2).shape
    (3, 5)
    """
    checks.index(seed, "seed", last=2**32 - 1)
    checks.count(repeats, "repeats")
    left, source = halves(np.asarray(images, np.float32))
    key, size = races.new_key(seed), codec.model.side_shape[0]
    laws = codec.laws(source)
    places = [jax.random.fold_in(races.private_key(key), repeat) for repeat in range(repeats)]
    side = np.concatenate(
        [crops(place, jnp.asarray(left), codec.num_decoders, size) for place in places]
    )
    return ImageTrials(
        source,
        list_code.symbol_keys(key, repeats * len(source)),
        Normal(*(np.tile(part, (repeats, 1)) for part in laws)),
        np.stack([codec.features(side[:, decoder]) for decoder in range(codec.num_decoders)]),
    )
