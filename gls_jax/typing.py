"""Types of arguments that functions convert to arrays.

Results are annotated as arrays, `Float[Array, "K N"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Integer

__all__ = ["Index", "LogProbs", "Numbers", "Progress", "Report"]

Numbers: TypeAlias = ArrayLike | Sequence[ArrayLike] | Sequence[Sequence[ArrayLike]]
"""An array of JAX or NumPy, one number, or lists of numbers."""

LogProbs: TypeAlias = Numbers
"""Log-probabilities: floats whose `exp` sums to 1 on the last axis; `-inf` is probability zero."""

Index: TypeAlias = int | np.integer | Integer[Array, ""]
"""One integer, which may be traced."""

Report: TypeAlias = Callable[[str, int, int], None]
"""A function that takes the progress of long work: `(kind of work, steps done, steps)`."""

Progress: TypeAlias = Callable[[int, int], None]
"""A function that takes the progress of one kind of long work: `(steps done, steps)`."""
