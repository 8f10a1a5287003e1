"""Which scheme accepts more than which, and that no scheme exceeds the optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes
from tests.problems import logs
from tests.schemes.scheme_trials import random_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_order_of_schemes_with_shared_randomness():
    """bound <= GLS, bound <= Poisson <= top-K, GLS and Poisson <= i.i.d. optimum, for K = 1..8.

    On a thousand pairs, with a slack of 2e-6 for float32. More drafts never accept less.
    """
    list_lengths = tuple(range(1, 9))
    compared = [schemes.get(name) for name in ("gls", "poisson", "gumbel_topk")]

    @jax.jit
    @jax.vmap
    def all_curves(pair):
        log_p, log_q = pair
        exact = [s.acceptance_curve(log_p, log_q, list_lengths) for s in compared]
        bound = [bounds.list_matching(log_p, log_q, k) for k in list_lengths]
        optimum = [bounds.optimum_iid(log_p, log_q, k) for k in list_lengths]
        return *exact, jnp.stack(bound), jnp.stack(optimum)

    for num_categories, spread in ((10, 1.0), (10, 0.3), (30, 0.1)):
        pairs = random_pairs(334, num_categories, seed=num_categories, spread=spread)
        curves = [np.asarray(curve) for curve in all_curves(logs(pairs + 1e-30))]
        gls, poisson, topk, bound, optimum = curves
        assert (gls >= bound - 2e-6).all() and (poisson >= bound - 2e-6).all()
        assert (topk >= poisson - 2e-6).all()
        assert (gls <= optimum + 2e-6).all() and (poisson <= optimum + 2e-6).all()
        for curve in (gls, poisson, topk):
            assert (np.diff(curve, axis=1) >= -2e-6).all()


def test_order_of_schemes_that_read_the_draft_probabilities():
    """SpecInfer <= SpecTr <= optimum, importance <= optimum, all but that growing with K, on 400 pairs."""
    list_lengths = (1, 2, 3, 4, 6, 8)
    names = ("specinfer", "spectr", "optimal", "weighted_importance")
    compared = [schemes.get(name) for name in names]

    @jax.jit
    def all_curves(pairs):
        def curves_of(scheme):
            return jax.lax.map(lambda pair: scheme.acceptance_curve(*pair, list_lengths), pairs)

        return [curves_of(scheme) for scheme in compared]

    for num_categories, spread in ((10, 1.0), (30, 0.1)):
        pairs = random_pairs(200, num_categories, seed=num_categories, spread=spread)
        curves = [np.asarray(curve) for curve in all_curves(jnp.asarray(logs(pairs + 1e-30)))]
        specinfer, spectr, optimum, importance = curves
        assert (specinfer <= spectr + 2e-6).all() and (spectr <= optimum + 2e-6).all()
        assert (importance <= optimum + 2e-6).all()
        for curve in (specinfer, spectr, optimum):
            assert (np.diff(curve, axis=1) >= -2e-6).all()
