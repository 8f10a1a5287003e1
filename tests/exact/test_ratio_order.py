"""What the exact formulas share beside the laws themselves, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax.exact import ratio_order


@pytest.mark.parametrize("size", [1, 2, 31, 33, 1500])
def test_ascending_is_a_stable_sort(size):
    """With ties, both zeros, infinities, subnormal numbers and NaN; what 1,500 items need of digits others have too."""
    rng = np.random.default_rng(size)
    values = np.concatenate(
        [rng.normal(size=size), [0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, np.nan, 1e38, 0.5, 0.5]]
    )
    values = rng.permuted(np.repeat(values, 2)[:size]).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(ratio_order.ascending)(values), np.argsort(values, kind="stable")
    )
    special = np.float32(
        [0.5, -0.0, 0, np.nan, np.inf, -1, 0.5, -np.inf, 1e-30, -0.0, -1e-30, 1e38]
    )
    np.testing.assert_array_equal(
        ratio_order.ascending(jnp.asarray(special)), np.argsort(special, kind="stable")
    )


@pytest.mark.parametrize("size", [0, 1, 32, 33, 1100])
def test_sums(size):
    """Sums over one group, two, and groups of groups; numbers of very different size do not disturb each other."""
    values = np.exp(np.random.default_rng(size).normal(size=size) * 20).astype(np.float32)
    exact = values.astype(np.float64)
    for reverse in (False, True):
        expected = exact[::-1].cumsum()[::-1] if reverse else exact.cumsum()
        np.testing.assert_allclose(
            ratio_order.cumulative(jnp.asarray(values), reverse=reverse), expected, rtol=1e-6
        )
    if size:
        assert float(ratio_order.total(jnp.asarray(values))) == pytest.approx(exact.sum(), rel=1e-6)
