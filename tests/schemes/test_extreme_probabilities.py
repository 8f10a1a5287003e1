"""Exact acceptances where probabilities leave float32, and in mixed float types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", ["gls", "poisson", "gumbel_topk", "naive", "single"])
def test_extreme_logits_give_probabilities(name):
    """Logits down to -1e4, and distributions that float32 cannot tell from point masses."""
    logits = jnp.asarray([[0.0, -1e4, -50, -80, -100], [-90.0, 0, -30, -1e4, -1e-3]])
    first, second = jax.nn.log_softmax(logits)
    for log_p, log_q in ((first, second), (second, first), (first, first)):
        exact = float(schemes.get(name).acceptance(log_p, log_q, 1))
        assert 0 <= exact <= 1
    assert exact == pytest.approx(1, abs=1e-6)  # of the equal pair


CUT_CASES = [("gls", 1500), ("poisson", 1500)]
CUT_CASES += [("gumbel_topk", num_categories) for num_categories in (512, 513, 1500)]


@pytest.mark.parametrize(("name", "num_categories"), CUT_CASES)
def test_gradients_on_a_cut_vocabulary_are_finite(name, num_categories):
    """Top-k leaves most tokens impossible: ratios reach their cap, squared masses leave float32."""
    logits = np.random.default_rng(0).normal(size=(2, num_categories)) * 3
    logits[:, num_categories // 2 :] = -np.inf
    logits[0, :3] = (-60, -66, -75)
    logits[1, 3:6] = (-60, -75, -np.inf)
    log_p, log_q = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    scheme = schemes.get(name)
    gradient = jax.jit(jax.grad(lambda p, q: scheme.acceptance(p, q, 4), argnums=(0, 1)))
    assert all(bool(jnp.isfinite(slope).all()) for slope in gradient(log_p, log_q))


@pytest.mark.parametrize("name", ["gls", "gumbel_topk", "poisson"])
def test_mixed_float_types_are_promoted(name):
    p, q = PROBLEMS["plain"]
    with jax.enable_x64(True):
        for log_p, log_q in ((np.log(p), logs(q)), (logs(p), np.log(q))):
            assert schemes.get(name).acceptance(log_p, log_q, 2).dtype == jnp.float64
