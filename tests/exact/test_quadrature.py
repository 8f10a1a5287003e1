"""The quadrature over exponential noise, against closed forms and finer steps."""

import numpy as np
import pytest
import scipy.integrate

from gls_jax.exact.quadrature import exponential_nodes


@pytest.mark.parametrize("rate", [1, 2, 8, 50])
def test_products_of_exponentials_have_their_closed_form(rate):
    """Products of exponentials with rates over twelve decades, as in an acceptance: to 1e-9."""
    nodes, weights = exponential_nodes((rate,), np.float64)
    for other in (0.0, 1e-6, 0.3, 7.0, 1e3, 1e6):
        assert weights[0] @ np.exp(-nodes * other) == pytest.approx(1 / (rate + other), abs=1e-9)
        expected = 1 / rate - 2 / (rate + other) + 1 / (rate + 2 * other)
        assert weights[0] @ np.expm1(-nodes * other) ** 2 == pytest.approx(expected, abs=1e-9)


def test_a_finer_step_changes_nothing():
    """For a smooth integrand as in GLS, with a high power; also against adaptive quadrature."""

    def integrand(m):
        return (1 - 0.4 * np.exp(-3 * m) - 0.3 * np.exp(-40 * m)) ** 19 * -np.expm1(-5 * m)

    nodes, weights = exponential_nodes((20,), np.float64)
    finer_nodes, finer_weights = exponential_nodes((20,), np.float64, step=0.125)
    coarse, fine = weights[0] @ integrand(nodes), finer_weights[0] @ integrand(finer_nodes)
    assert coarse == pytest.approx(fine, abs=1e-10)
    slow = scipy.integrate.quad(
        lambda m: np.exp(-20 * m) * integrand(m), 0, 2, points=(0.01, 0.1), epsabs=1e-12
    )[0]
    assert coarse == pytest.approx(slow, abs=1e-9)


def test_several_rates_share_their_nodes():
    nodes, weights = exponential_nodes((1, 20, 1000), np.float32)
    assert weights.shape == (3, len(nodes)) and nodes.dtype == weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1 / np.array([1, 20, 1000]), rtol=1e-6)
