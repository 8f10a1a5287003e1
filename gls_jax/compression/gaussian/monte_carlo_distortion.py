"""Match probability and distortion of a Gaussian codec over many symbols, with standard errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from gls_jax import bounds, checks, races
from gls_jax.compression import symbol_coding
from gls_jax.compression.gaussian.gaussian_codec import ESTIMATORS, GaussianCodec
from gls_jax.compression.gaussian.gaussian_source import GaussianSource
from gls_jax.estimate import Estimate
from gls_jax.typing import Progress

__all__ = ["Distortion", "Simulation", "distortion", "draw_symbols", "simulate"]


class Distortion(NamedTuple):
    """Distortion in decibels, in two readings.

    Attributes:
        mean_of_db: mean of ``10 log10(squared error)``, which the paper's tables report. A few very
            small errors outweigh any number of misses.
        db_of_mean: ``10 log10(mean squared error)``, the usual meaning.
    """

    mean_of_db: Estimate
    db_of_mean: Estimate


class Simulation(NamedTuple):
    """The result of :func:`simulate`.

    Attributes:
        match: how often some decoder has the encoder's index.
        one_match: how often the first decoder has it.
        distortion: of the best of `K` decoders.
        one_distortion: of the first decoder alone.
        bound: lower bound on `match` for `gls` (Proposition 4), averaged over as many draws of the
            joint distribution.
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
    estimator: str = "plug_in",
    progress: Progress | None = None,
) -> Simulation:
    """Send `num_trials` symbols to all decoders.

    Source and side information come from the key's private branch, shared noise from its positions:
    codecs that differ in `L`, variance or scheme are compared on the same draws.

    Args:
        codec: the codec.
        key: one typed threefry key.
        num_trials: number of symbols.
        estimator: as for :meth:`GaussianCodec.decode`.
        progress: called with `(passes over the symbols done, K + 1)`.

    >>> import jax
    >>> from gls_jax.compression import GaussianCodec, simulate
    >>> result = simulate(GaussianCodec(2, 2**10, 8, 0.01, 0.5), jax.random.key(0), 1000)
    >>> bool(result.match.mean > result.bound.mean)
    True
    """
    report = progress or (lambda done, total: None)
    num_trials = checks.count(num_trials, "num_trials")
    checks.one_of(estimator, tuple(ESTIMATORS), "estimator")
    joint, num_decoders = codec.joint_distribution, codec.num_decoders
    source, sides, target = draw_symbols(joint, key, num_trials, num_decoders)
    keys = symbol_coding.symbol_keys(key, num_trials)
    sent = codec.send(keys, source)
    matches, squared_errors = [], []
    for decoder, side in enumerate(sides):
        report(decoder + 1, num_decoders + 1)
        received = codec.receive(keys, sent.message, side, decoder, estimator=estimator)
        matches.append(received.index == sent.index)
        squared_errors.append((received.estimate - source) ** 2)
    report(num_decoders + 1, num_decoders + 1)
    # One decoder is enough for the bound: all have the same distribution.
    information_density = joint.information_density(source, sides[0], target)
    bound = bounds.list_decoding(information_density, num_decoders, codec.num_bins)
    return Simulation(
        match=_mean(np.any(matches, axis=0)),
        one_match=_mean(matches[0]),
        distortion=distortion(np.min(squared_errors, axis=0)),
        one_distortion=distortion(squared_errors[0]),
        bound=_mean(bound),
    )


def draw_symbols(
    joint: GaussianSource, key: PRNGKeyArray, count: int, num_decoders: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "K n"], Float[np.ndarray, " n"]]:
    """Source `f64[n]`, side information `f64[K, n]` and a target `f64[n]` of `count` symbols."""
    # The same numbers for every setting of jax_threefry_partitionable. The private branch is
    # independent of the candidates and their noise.
    with races.keys.partitionable_bits():
        private_key, shape = races.private_key(key), (num_decoders + 2, count)
        normals = jax.random.normal(private_key, shape, jnp.float32)
    source, target_noise, *side_noise = np.asarray(normals, np.float64)
    sides = source + np.asarray(side_noise) * joint.side_variance**0.5
    return source, sides, source + target_noise * joint.target_variance**0.5


def distortion(squared_errors: Float[np.ndarray, " n"]) -> Distortion:
    """Both readings in decibels of squared errors, `f[n]`."""
    # An estimate may be exact, and the logarithm of 0 is infinite.
    squared_errors = np.maximum(np.asarray(squared_errors, np.float64), 1e-30)
    mean = _mean(squared_errors)
    # Standard error of a logarithm by the delta method.
    db_error = 10 / np.log(10) * mean.standard_error / mean.mean
    db_of_mean = Estimate(10 * np.log10(mean.mean), db_error, mean.num_trials)
    mean_of_db = _mean(10 * np.log10(squared_errors))
    return Distortion(mean_of_db=mean_of_db, db_of_mean=db_of_mean)


def _mean(values) -> Estimate:
    values = np.asarray(values, np.float64)
    deviation = np.std(values, ddof=1) if len(values) > 1 else np.inf
    return Estimate(
        mean=np.asarray(np.mean(values)),
        standard_error=np.asarray(deviation / len(values) ** 0.5),
        num_trials=np.asarray(len(values)),
    )
