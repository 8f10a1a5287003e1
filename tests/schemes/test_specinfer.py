"""Exact acceptance of SpecInfer, and of one draft, against recursive rejection list by list."""

import numpy as np
import pytest

from gls_jax import schemes
from tests import oracles
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPECINFER, SINGLE = schemes.get("specinfer"), schemes.get("single")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_acceptance_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    curve = SPECINFER.acceptance_curve(logs(p), logs(q), (1, 2, 3, 4))
    for k in (1, 2, 3, 4):
        accepted, emitted = oracles.rejection([p] * k, q)
        assert float(curve[k - 1]) == pytest.approx(accepted, abs=1e-6)
        np.testing.assert_allclose(emitted, q, atol=1e-9)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_acceptance_of_one_draft_is_one_minus_total_variation(problem):
    p, q = PROBLEMS[problem]
    exact = float(SINGLE.acceptance(logs(p), logs(q), 1))
    assert exact == pytest.approx(np.minimum(p, q).sum(), abs=1e-6)


def test_acceptance_of_diverse_drafts_is_its_definition():
    p = np.stack([PROBLEMS[name][0] for name in ("plain", "zeros in p", "peaked", "flat")])
    for q in (PROBLEMS["flat"][1], PROBLEMS["disjoint"][1], p[1]):
        accepted, emitted = oracles.rejection(list(p), q)
        exact = float(SPECINFER.acceptance(logs(p), logs(q), 4))
        assert exact == pytest.approx(accepted, abs=1e-6)
        np.testing.assert_allclose(emitted, q, atol=1e-9)
