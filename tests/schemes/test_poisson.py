"""Exact acceptance of Poisson lists against its formula."""

import numpy as np
import pytest

from gls_jax import bounds, schemes
from gls_jax.schemes import poisson
from tests import oracles
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

POISSON = schemes.get("poisson")


def formula(p, q, k):
    return (q * (1 - (1 - 1 / oracles.rates(p, q)) ** k)).sum()


def test_acceptance_is_its_formula():
    for p, q in PROBLEMS.values():
        for k in (1, 3):
            exact = float(POISSON.acceptance(logs(p), logs(q), k))
            assert exact == pytest.approx(formula(p, q, k), abs=1e-6)


def test_unlikely_drafts_keep_their_digits():
    """Large M: no cancellation in 1 - (1 - 1/M)^K, and never below the list matching bound."""
    p, q = np.array([1 - 1e-9, 1e-9]), np.array([1e-3, 1 - 1e-3])
    for k in (1000, 10_000):
        exact = float(POISSON.acceptance(logs(p), logs(q), k))
        assert exact == pytest.approx(formula(p, q, k), rel=1e-5)
        assert exact >= float(bounds.list_matching(logs(p), logs(q), k)) - 1e-6


def test_gamma_nodes_have_the_moments_of_the_distribution():
    """A rule of n nodes is exact for powers below 2 n; the shapes reach beyond the gamma function."""
    for shape in (1, 2, 30, 400):
        nodes, weights = poisson._gamma_nodes(shape)
        for power in range(4):
            moment = np.prod([float(shape + i) for i in range(power)])
            assert (weights * nodes**power).sum() == pytest.approx(moment, rel=1e-9)
