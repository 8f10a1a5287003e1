"""Extreme distributions, drawn by hypothesis for functions that are compiled once per shape."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ROWS = 16  # problems per example

few = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow],  # the first example compiles
)


class Shape(NamedTuple):
    """Numbers of categories and drafts, and float type of a problem; one compilation for each."""

    categories: int
    drafts: int
    dtype: str

    def __str__(self):
        return f"N={self.categories}, K={self.drafts}, {self.dtype}"

    @property
    def slack(self) -> float:
        """What rounding the log-probabilities to this type may move a probability by."""
        return {"float64": 1e-9, "float32": 3e-6, "bfloat16": 0.05}[self.dtype]


SHAPES = (
    Shape(1, 3, "float64"),
    Shape(4, 4, "float32"),
    Shape(40, 2, "bfloat16"),
)  # K > N, K = N, K < N

_LOGITS = (
    st.floats(-3, 3, width=32) | st.floats(-100, 100, width=32) | st.floats(-1e4, 1e4, width=32)
)
_FIXED = (0.0, 0.0, -np.inf, -80.0, np.nextafter(np.float32(-80), np.float32(-81)), -1e4, 1e4)


@st.composite
def logits(draw, shape: tuple[int, ...]):
    """`f64[shape]` of a few values, so that there are many ties; at least one in each row is finite."""
    palette = np.array([*_FIXED, *draw(st.lists(_LOGITS, min_size=6, max_size=6))])
    # NumPy places the values: hypothesis would take a second to draw so many places.
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.choice(palette, shape)
    # In the first row all categories but one are impossible.
    possible = rng.integers(shape[-1])
    values[(0,) * (len(shape) - 1)] = np.where(
        np.arange(shape[-1]) == possible, values.flat[0], -np.inf
    )
    is_impossible = np.isneginf(values).all(-1)
    values[is_impossible, possible] = 0
    return values


def normalised(values):
    """Log-probabilities, in float64."""
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


@st.composite
def problems(draw, shape: Shape):
    """`(keys [ROWS], log_p [ROWS, N], log_q [ROWS, N])`; in a quarter of the rows `p = q`."""
    log_probs = normalised(draw(logits((2, ROWS, shape.categories))))
    log_probs[1, : ROWS // 4] = log_probs[0, : ROWS // 4]
    keys = jax.random.split(jax.random.key(draw(st.integers(0, 2**32 - 1))), ROWS)
    return keys, *jnp.asarray(log_probs, shape.dtype)
