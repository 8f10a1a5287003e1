"""Drafts from the key that verifies: the noise of a verifier must not be that of its drafter.

Each way is one in which people draw a sample from a key. A verifier whose test reads the same
random bits accepts or rejects by what was drafted, and its output is biased.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax import races
from gls_jax.conformance.calling import Noise, seeds_of
from gls_jax.conformance.problem_set import draws, first_arrivals

__all__ = ["Way", "drafts_of", "noise_of", "ways"]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to draw from a key, or from a seed.

    Attributes:
        name: as people write it.
        noise: ``(key, num_rows, num_categories) -> f[num_rows, N]`` exponential noise of a race in
            each row, or ``f[num_rows]`` uniforms to be inverted.
        is_finding: whether a verifier that shares this noise is wrong. Otherwise it is noted. Keys
            derived by `jax.random.split` are streams of a race too, and every verifier that splits
            its key would fail. A seed is rarely the drafter's too, and every verifier that makes a
            generator of it would fail.
    """

    name: str
    noise: Callable[[Any, int, int], Any]
    is_finding: bool


def _gumbel(key, num_rows: int, num_categories: int):
    # Of `jax.random.categorical`: the largest log p + g is the smallest exp(-g) / p.
    return jax.numpy.exp(-jax.random.gumbel(key, (num_rows, num_categories)))


_OF_KEYS = (
    Way("jax.random.categorical(key, ...)", _gumbel, True),
    Way(
        "jax.random.exponential(key, ...)", lambda k, r, n: jax.random.exponential(k, (r, n)), True
    ),
    Way("jax.random.uniform(key, ...)", lambda key, r, n: jax.random.uniform(key, (r,)), True),
    Way("gls_jax.races.exponentials(key, ...)", races.exponentials, False),
)
_OF_SEEDS = (
    Way(
        "np.random.default_rng(seed).choice(...)",  # which inverts uniforms
        lambda seed, r, n: np.random.default_rng(seed).random(r),
        False,
    ),
    Way(
        "np.random.RandomState(seed).choice(...)",
        lambda seed, r, n: np.random.RandomState(seed).random_sample(r),
        False,
    ),
    Way(
        "np.random.default_rng(seed).gumbel(...)",
        lambda seed, r, n: np.exp(-np.random.default_rng(seed).gumbel(size=(r, n))),
        False,
    ),
)


def ways(noise: Noise) -> tuple[Way, ...]:
    """The ways to draw from what the verifier takes."""
    return _OF_SEEDS if noise == "seed" else _OF_KEYS


def drafts_of(
    way: Way,
    keys: Key[Array, " T"],
    noise: Noise,
    rows: Float[np.ndarray, "K N"],
) -> Int[np.ndarray, "T K"]:
    """A draft of every row from each key."""
    num_rows, num_categories = rows.shape
    drawn = noise_of(way, keys, noise, num_rows, num_categories)
    if drawn.ndim == 2:
        return np.stack([draws(drawn[:, k], row) for k, row in enumerate(rows)], 1)
    return first_arrivals(drawn, rows)


def noise_of(
    way: Way, keys: Key[Array, " T"], noise: Noise, num_rows: int, num_categories: int
) -> Float[np.ndarray, "T ..."]:
    """The noise of this way from each key, with an axis of keys in front."""
    if noise == "seed":
        return np.stack([way.noise(seed, num_rows, num_categories) for seed in seeds_of(keys)])
    return np.asarray(_noise_of_keys(keys, way, num_rows, num_categories))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _noise_of_keys(keys: Key[Array, " T"], way: Way, num_rows: int, num_categories: int):
    return jax.vmap(lambda key: way.noise(key, num_rows, num_categories))(keys)
