"""Laws that no caller ought to have: hypothesis draws them, for functions that were compiled once a shape."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ROWS = 16  # problems an example

few = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow],  # the first example compiles
)


class Shape(NamedTuple):
    """Items, drafts and float type of a problem, and so one compilation."""

    items: int
    drafts: int
    dtype: str

    def __str__(self):
        return f"N={self.items}, K={self.drafts}, {self.dtype}"

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
    """`f64[shape]` of a few values, free ones among them, so that ties abound; at least one a row is finite."""
    palette = np.array([*_FIXED, *draw(st.lists(_LOGITS, min_size=6, max_size=6))])
    rng = np.random.default_rng(
        draw(st.integers(0, 2**32 - 1))
    )  # hypothesis takes a second to choose so many places
    found = rng.choice(palette, shape)
    only = rng.integers(shape[-1])  # in the first row everything but one item is impossible
    found[(0,) * (len(shape) - 1)] = np.where(np.arange(shape[-1]) == only, found.flat[0], -np.inf)
    silent = np.isneginf(found).all(-1)
    found[silent, only] = 0
    return found


def normalised(found):
    """Log-probabilities, in float64."""
    found = found - found.max(-1, keepdims=True)
    return found - np.log(np.exp(found).sum(-1, keepdims=True))


@st.composite
def problems(draw, shape: Shape):
    """`(keys [ROWS], log_p [ROWS, N], log_q [ROWS, N])`; in a quarter of the rows `p = q`."""
    laws = normalised(draw(logits((2, ROWS, shape.items))))
    laws[1, : ROWS // 4] = laws[0, : ROWS // 4]
    keys = jax.random.split(jax.random.key(draw(st.integers(0, 2**32 - 1))), ROWS)
    return keys, *jnp.asarray(laws, shape.dtype)
