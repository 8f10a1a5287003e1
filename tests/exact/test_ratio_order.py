"""Sorting and summing of the exact formulas, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax.exact import ratio_order


@pytest.mark.parametrize("size", [1, 2, 31, 33, 1500])
def test_ascending_is_a_stable_sort(size):
    """With ties, both zeros, infinities, tiny numbers and NaN; large sizes take more passes."""
    rng = np.random.default_rng(size)
    special = [0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, np.nan, 1e38, 0.5, 0.5]
    values = np.concatenate([rng.normal(size=size), special])
    values = rng.permuted(np.repeat(values, 2)[:size]).astype(np.float32)
    expected = np.argsort(values, kind="stable")
    np.testing.assert_array_equal(jax.jit(ratio_order.ascending)(values), expected)
    others = np.float32([0.5, -0.0, 0, np.nan, np.inf, -1, 0.5, -np.inf, 1e-30, -0.0, -1e-30, 1e38])
    expected = np.argsort(others, kind="stable")
    np.testing.assert_array_equal(ratio_order.ascending(jnp.asarray(others)), expected)


@pytest.mark.parametrize("size", [0, 1, 32, 33, 1100])
def test_sums_keep_their_digits(size):
    """Sums over one group, two, and groups of groups, of numbers of very different size."""
    values = np.exp(np.random.default_rng(size).normal(size=size) * 20).astype(np.float32)
    exact = values.astype(np.float64)
    for reverse in (False, True):
        expected = exact[::-1].cumsum()[::-1] if reverse else exact.cumsum()
        sums = ratio_order.cumulative(jnp.asarray(values), reverse=reverse)
        np.testing.assert_allclose(sums, expected, rtol=1e-6)
    if size:
        assert float(ratio_order.total(jnp.asarray(values))) == pytest.approx(exact.sum(), rel=1e-6)
