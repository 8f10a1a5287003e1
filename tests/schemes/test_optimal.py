"""The optimal coupling and the decomposition that attains it, against linear programs and lists."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decomposition, schemes
from tests import oracles
from tests.problems import PROBLEMS, logs
from tests.schemes.scheme_trials import random_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIMAL = schemes.get("optimal")


def test_plan_attains_the_optimum():
    """The linear program, its prefix formula, and acceptance 1 exactly where it is possible."""
    problems = [
        *PROBLEMS.values(),
        *random_pairs(10, 6, seed=9),
        *random_pairs(10, 6, seed=10, spread=5.0),
    ]
    verdicts = set()
    for p, q in problems:
        for k in (1, 2, 3):
            plan = decomposition.best_selection([p] * k, q)
            exact = float(OPTIMAL.acceptance(logs(p), logs(q), k))
            assert plan.acceptance == pytest.approx(exact, abs=1e-6)
            assert plan.acceptance == pytest.approx(oracles.optimum_iid(p, q, k), abs=1e-6)
            always_accepts = bool(decomposition.always_accepts(logs(p), logs(q), k))
            assert always_accepts == (plan.acceptance > 1 - 1e-6)
            verdicts.add(always_accepts)
    assert verdicts == {True, False}


def test_optimum_of_diverse_drafts_is_its_program():
    others = [schemes.get(name) for name in ("specinfer", "weighted_importance", "gls")]
    for names in (("plain", "peaked"), ("zeros in p", "flat", "point mass p")):
        p = np.stack([PROBLEMS[name][0] for name in names])
        for q in (PROBLEMS["flat"][1], PROBLEMS["zeros in q"][1]):
            plan = decomposition.best_selection(p, q)
            exact = float(OPTIMAL.acceptance(logs(p), logs(q), len(p)))
            assert exact == pytest.approx(plan.acceptance, abs=1e-6)
            for scheme in others:
                acceptance = float(scheme.acceptance(logs(p), logs(q), len(p)))
                assert acceptance <= plan.acceptance + 2e-6


def test_distributions_of_the_set_and_of_the_choice_are_enumerations():
    p = np.stack([PROBLEMS[name][0] for name in ("plain", "zeros in p", "flat")])
    set_probs = decomposition.set_distribution(p)
    expected = np.zeros_like(set_probs)
    for drafts in np.ndindex(6, 6, 6):
        expected[sum(1 << x for x in set(drafts))] += np.prod(p[range(3), drafts])
    np.testing.assert_allclose(set_probs, expected, atol=1e-12)
    q = PROBLEMS["flat"][1]
    plan = decomposition.best_selection(p, q)
    choose = jnp.asarray(plan.choose)

    def rule(drafts):
        """The plan as a rule on lists: a token drafted twice shares its probability."""
        drafted_set = jnp.bitwise_or.reduce(1 << drafts)
        copies = jnp.sum(drafts[:, None] == drafts, axis=1)
        return choose[drafted_set, drafts] / copies

    chosen_p = decomposition.selected_distribution(rule, logs(p), 3)
    np.testing.assert_allclose(chosen_p, plan.distribution, atol=1e-5)
    assert np.minimum(plan.distribution, q).sum() == pytest.approx(plan.acceptance, abs=1e-9)


def test_decomposition_refuses_what_it_cannot_do():
    message = r"draft_probs: expected shape \[K, N\] with N within 1..12, got \[2, 13\]"
    with pytest.raises(ValueError, match=message):
        decomposition.set_distribution(np.full((2, 13), 1 / 13))
    with pytest.raises(ValueError, match=r"q: expected shape \[2\], got \[3\]"):
        decomposition.best_selection([[0.5, 0.5]], [0.2, 0.3, 0.5])
    log_p = jnp.full(10, -math.log(10))
    with pytest.raises(ValueError, match=r"at most 1000000 lists, got 10\^7"):
        decomposition.selected_distribution(lambda drafts: drafts == drafts[0], log_p, 7)
