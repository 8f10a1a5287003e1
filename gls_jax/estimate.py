"""The result of a simulation: a mean with its standard error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["Estimate"]


class Estimate(NamedTuple):
    """A Monte Carlo mean.

    Attributes:
        mean: of the trials.
        standard_error: of the mean; the function that returns it documents the estimator.
        num_trials: number of independent trials.
    """

    mean: Float[Array | np.ndarray, ...]
    standard_error: Float[Array | np.ndarray, ...]
    num_trials: Int[Array | np.ndarray, ""]
