"""Exact acceptance of SpecTr's K-SEQ against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from tests import oracles
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPECTR, SPECINFER = schemes.get("spectr"), schemes.get("specinfer")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_acceptance_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    curve = SPECTR.acceptance_curve(logs(p), logs(q), (1, 2, 3, 4))
    for k in (1, 2, 3, 4):
        accepted, emitted = oracles.kseq(p, q, k)
        assert float(curve[k - 1]) == pytest.approx(accepted, abs=1e-6)
        np.testing.assert_allclose(emitted, q, atol=1e-7)


def test_nearly_equal_distributions():
    """On a flat slope rho is ill-defined, but the acceptance is not: as in float64, above SpecInfer."""
    rng = np.random.default_rng(13)
    q = rng.dirichlet(np.ones(5), 1000)
    p = q * np.exp(0.25 * rng.normal(size=q.shape))
    p /= p.sum(1, keepdims=True)

    def acceptances(scheme, log_p, log_q):
        return jax.vmap(lambda p, q: scheme.acceptance(p, q, 8))(log_p, log_q)

    spectr = acceptances(SPECTR, logs(p), logs(q))
    specinfer = acceptances(SPECINFER, logs(p), logs(q))
    assert bool((spectr >= specinfer - 2e-6).all())
    with jax.enable_x64(True):
        in_float64 = acceptances(SPECTR, jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(spectr, in_float64, atol=3e-6)
