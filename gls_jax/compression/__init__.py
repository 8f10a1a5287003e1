"""Lossy compression with side information at K decoders.

One symbol by hand: six candidates in two bins, one encoder, two decoders. All of them share the
bins and exponential noise, one stream per decoder.

>>> import numpy as np
>>> from gls_jax import compression
>>> bins = np.array([0, 1, 0, 1, 0, 1])
>>> noise = np.array([[1.8, 0.6, 0.2, 1.1, 2.5, 0.4], [0.5, 1.3, 0.9, 0.1, 0.7, 2.0]])

The encoder knows the source. Its weights say which candidates are near the source, and the smallest
score ``noise / weight`` over both streams wins. That is candidate 1. Its bin, 1, is sent: one bit.

>>> encoder_weights = np.array([0.01, 0.9, 0.1, 0.02, 0.8, 0.01])
>>> (noise.min(axis=0) / encoder_weights).round(1)
array([50. ,  0.7,  2. ,  5. ,  0.9, 40. ])

The decoders know less, so their weights are flatter. Each one runs a separate race
among candidates 1, 3 and 5, the members of bin 1.

>>> decoder_weights = np.array(
...     [[0.02, 0.95, 0.45, 0.29, 0.99, 0.12], [0.01, 0.45, 0.09, 0.82, 0.64, 0.02]]
... )
>>> (noise / decoder_weights)[:, bins == 1].round(1)
array([[  0.6,   3.8,   3.3],
       [  2.9,   0.1, 100. ]])

The first decoder picks candidate 1, as the encoder did. Without the message it would have picked
candidate 2, whose score is 0.4. The second decoder picks candidate 3, which is wrong. One match is
enough, and a lemma guarantees a match with probability 0.39 here.

>>> result = compression.match(noise, np.log(encoder_weights), np.log(decoder_weights), bins)
>>> int(result.sent), int(result.message), result.received.tolist(), bool(result.matched)
(1, 1, [1, 3], True)
>>> round(float(result.bound), 2)
0.39

The codecs do this for every symbol, with up to 2^30 candidates that are never stored.

The package has three subjects:

* The list code. `list_code` says what it is, and `matching` has the definition used above.
  `densities` are weights of candidates. `symbol_coding` codes many symbols, by `dense_search` or
  `ordered_search`. `container` and `payload` turn messages into bytes.
* `gaussian/`: numbers. `GaussianCodec`, its estimators, and Monte Carlo estimates of distortion.
* `images/`: `ImageCodec`, a list code over the latent of an image model; crops, data sets, trials.

Where to add something: a new density of candidates is a `Density`, see `densities`. A new estimator
of a Gaussian decoder is a function like `plug_in` in `gaussian/estimators`, one line in the table
`ESTIMATORS` of `gaussian/gaussian_codec`, and a sentence in the help text of `cli/decompress.py`.
"""

from gls_jax.compression.container import Sizes, sizes
from gls_jax.compression.densities import Density, Normal, gaussian_density
from gls_jax.compression.gaussian.gaussian_codec import GaussianCodec, Reconstruction
from gls_jax.compression.gaussian.gaussian_source import (
    GaussianSource,
    best_of_converse,
    wyner_ziv,
)
from gls_jax.compression.gaussian.monte_carlo_distortion import Distortion, Simulation, simulate
from gls_jax.compression.images.image_codec import ImageCodec, ImageReconstruction
from gls_jax.compression.images.image_crops import crops, halves
from gls_jax.compression.images.image_model import ImageModel
from gls_jax.compression.images.image_trials import ImageErrors, ImageTrials, image_trials
from gls_jax.compression.list_code import ListCode
from gls_jax.compression.matching import ListMatch, match
from gls_jax.compression.symbol_coding import Received, Sent, decode, encode, symbol_keys

__all__ = [
    "Density",
    "Distortion",
    "GaussianCodec",
    "GaussianSource",
    "ImageCodec",
    "ImageErrors",
    "ImageModel",
    "ImageReconstruction",
    "ImageTrials",
    "ListCode",
    "ListMatch",
    "Normal",
    "Received",
    "Reconstruction",
    "Sent",
    "Simulation",
    "Sizes",
    "best_of_converse",
    "crops",
    "decode",
    "encode",
    "gaussian_density",
    "halves",
    "image_trials",
    "match",
    "simulate",
    "sizes",
    "symbol_keys",
    "wyner_ziv",
]
