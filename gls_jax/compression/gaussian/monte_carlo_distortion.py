"""How good a Gaussian code is: match probability and distortion over many symbols, with standard
errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from gls_jax import bounds, checks, races
from gls_jax.compression import list_code
from gls_jax.compression.gaussian import GaussianSource
from gls_jax.compression.gaussian_codec import ESTIMATORS, GaussianCodec
from gls_jax.estimate import Estimate

__all__ = ["Distortion", "Simulation", "distortion", "draw", "simulate"]


class Distortion(NamedTuple):
    """Squared errors of the best decoder in the two readings of decibel.

    Attributes:
        mean_of_db: mean of ``10 log10(squared error)``, what the paper's tables report. A few hits
            of high precision outweigh any number of misses.
        db_of_mean: ``10 log10(mean squared error)``, what the field means.
    """

    mean_of_db: Estimate
    db_of_mean: Estimate


class Simulation(NamedTuple):
    """What `simulate` found.

    Attributes:
        match: how often some decoder has the encoder's index.
        one_match: how often the first decoder has it.
        distortion: of the best of `K` decoders.
        one_distortion: of the first decoder alone.
        bound: lower bound on `match` under `gls` (Proposition 4), averaged over as many draws of
            the joint law.
    """

    match: Estimate
    one_match: Estimate
    distortion: Distortion
    one_distortion: Distortion
    bound: Estimate


def simulate(
    codec: GaussianCodec,
    key: PRNGKeyArray,
    num_trials: int,
    *,
    estimator: str = "trusting",
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Send `num_trials` symbols to all decoders.

    Source and side information come from the key's private branch, shared noise from its positions:
    codecs that differ in `L`, variance or scheme are compared on the same draws.

    Args:
        codec: the code.
        key: one typed threefry key.
        num_trials: symbols.
        estimator: as for :meth:`GaussianCodec.decode`.
        progress: called with `(passes over the symbols done, K + 1)`.

    >>> import jax
    >>> from gls_jax.compression import GaussianCodec, simulate
    >>> found = simulate(GaussianCodec(2, 2**10, 8, 0.01, 0.5), jax.random.key(0), 1000)
    >>> bool(found.match.mean > found.bound.mean)
    True
    """
    report = progress or (lambda done, total: None)
    num_trials, law = checks.count(num_trials, "num_trials"), codec.source_law
    checks.one_of(estimator, ESTIMATORS, "estimator")
    source, sides, target = draw(law, key, num_trials, codec.num_decoders)
    keys = list_code.symbol_keys(key, num_trials)
    sent = codec.send(keys, source)
    matches, errors = [], []
    for decoder, side in enumerate(sides):
        report(decoder + 1, codec.num_decoders + 1)
        found = codec.receive(keys, sent.message, side, decoder, estimator=estimator)
        matches.append(found.index == sent.index)
        errors.append((found.estimate - source) ** 2)
    report(codec.num_decoders + 1, codec.num_decoders + 1)
    promised = bounds.list_decoding(
        law.information_density(source, sides[0], target), codec.num_decoders, codec.num_bins
    )
    return Simulation(
        _mean(np.any(matches, axis=0)),
        _mean(matches[0]),
        distortion(np.min(errors, axis=0)),
        distortion(errors[0]),
        _mean(promised),
    )


def draw(
    law: GaussianSource, key: PRNGKeyArray, count: int, num_decoders: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "K n"], Float[np.ndarray, " n"]]:
    """Source `f64[n]`, side information `f64[K, n]` and a target `f64[n]` of `count` symbols."""
    with races.keys.partitionable_bits():
        normals = jax.random.normal(races.private_key(key), (num_decoders + 2, count), jnp.float32)
    noise = np.asarray(normals, np.float64)
    source = noise[0]
    return (
        source,
        source + noise[2:] * law.side_variance**0.5,
        source + noise[1] * law.target_variance**0.5,
    )


def distortion(squared_error: Float[np.ndarray, " n"]) -> Distortion:
    """Both readings of decibel of `f[n]` squared errors."""
    error = np.asarray(squared_error, np.float64)
    mean = _mean(error)
    in_db = 10 * np.log10(mean.mean)
    spread = 10 / np.log(10) * mean.standard_error / mean.mean  # delta method
    return Distortion(
        _mean(10 * np.log10(np.maximum(error, 1e-30))), Estimate(in_db, spread, mean.num_trials)
    )


def _mean(values) -> Estimate:
    values = np.asarray(values, np.float64)
    spread = np.std(values, ddof=1) if len(values) > 1 else np.inf
    return Estimate(
        np.asarray(np.mean(values)),
        np.asarray(spread / len(values) ** 0.5),
        np.asarray(len(values)),
    )
