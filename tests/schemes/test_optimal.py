"""The optimal selection of a draft, against linear programs, its definition, and all lists."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import optimal_gap
from gls_jax import decomposition, schemes
from gls_jax.exact.ratio_order import ratio_order
from gls_jax.planner import conditional
from gls_jax.schemes import priorities
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


# Kinds of problems, and how far the distribution of the emitted token may be off in float32.
KINDS = ("Dirichlet(0.1)", "Dirichlet(1)", "near", "far", "equal")
ROUNDING = 2e-5
# Of each token's interval, over which the selection is integrated.
NUM_PARTS = 400


def optimum_by_prefixes(p, q, num_drafts):
    """The minimum over prefixes in ratio order, in float64; `p` without zeros."""
    order = np.argsort(q / p, kind="stable")
    slack = np.cumsum(q[order]) - np.minimum(np.cumsum(p[order]), 1) ** num_drafts
    return 1 + min(slack.min(), 0)


@pytest.mark.parametrize("num_drafts", [2, 4, 8])
def test_priorities_select_the_clipped_target(num_drafts):
    """The selected draft has the distribution that the scheme knows, and this attains the optimum."""
    for kind in KINDS:
        for num_categories in (6, 300):
            p, q = optimal_gap.random_pair(kind, num_categories, seed=num_drafts)
            selected_p, by_priorities = optimal_gap.selected_distributions(
                p, q, num_drafts, NUM_PARTS
            )
            assert np.abs(by_priorities - selected_p).sum() / 2 < ROUNDING
            assert selected_p.sum() == pytest.approx(1, abs=1e-6)
            order = np.argsort(q / p, kind="stable")
            attained = np.minimum(q[order], by_priorities).sum()
            optimum = optimum_by_prefixes(p, q, num_drafts)
            assert optimum - ROUNDING < attained < optimum + ROUNDING


def test_a_selection_without_exchanges_is_seen(monkeypatch):
    """A planted defect: the draft in the largest place, priorities ignored."""
    p, q = optimal_gap.random_pair("Dirichlet(1)", 6, seed=0)
    selected_p, by_priorities = optimal_gap.selected_distributions(p, q, 2, NUM_PARTS)
    assert np.abs(by_priorities - selected_p).sum() / 2 < ROUNDING
    optimal_gap._exchanges.clear_cache()
    index_with_area = priorities._index_with_area
    monkeypatch.setattr(
        priorities, "_index_with_area", lambda *arguments: 0 * index_with_area(*arguments)
    )
    selected_p, by_priorities = optimal_gap.selected_distributions(p, q, 2, NUM_PARTS)
    optimal_gap._exchanges.clear_cache()
    assert np.abs(by_priorities - selected_p).sum() / 2 > 100 * ROUNDING


@pytest.mark.parametrize(
    ("p", "q", "num_drafts"),
    [
        # u^K leaves the range of float32 within one interval.
        ([0.55, 0.45], [0.2, 0.8], 160),
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 1000),
        # Tau by a difference that rounding of f makes wrong, divided by a tiny p.
        ([1.38303947e-2, 0.98616960, 8.1e-10], [0.99907164, 2.3e-7, 9.2812e-4], 1000),
    ],
)
def test_many_drafts(p, q, num_drafts):
    p, q = (np.array(x) / np.sum(x) for x in (p, q))
    selected_p, by_priorities = optimal_gap.selected_distributions(p, q, num_drafts, 20_000)
    assert np.abs(by_priorities - selected_p).sum() / 2 < 1e-4
    assert selected_p.sum() == pytest.approx(1, abs=1e-4)


def test_kernel_of_many_drafts():
    """Binomial coefficients of 35 drafts are no int32 any more."""
    pairs = (np.asarray(logs(np.array(x)))[None] for x in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))
    kernels = conditional.kernels(*pairs, scheme="optimal", num_drafts=35)
    np.testing.assert_allclose(kernels.sum(axis=-1), 1, atol=1e-5)


def test_clip_ratios_cut_what_the_optimum_lacks():
    """sum (sigma p - q)+ = 1 - optimum = sum (q - tau p)+, up to the tolerance of the linear program."""
    with jax.enable_x64(True):
        for p, q in [*PROBLEMS.values(), *random_pairs(10, 6, seed=3, spread=0.3)]:
            log_p, log_q = (jnp.log(jnp.asarray(x)) for x in (p, q))
            for num_drafts in (1, 2, 5):
                ratios = priorities.clip_ratios(
                    ratio_order(log_p, log_q), jnp.array(1.0 * num_drafts)
                )
                lacking = 1 - decomposition.best_selection([p] * num_drafts, q).acceptance
                below = np.maximum(float(ratios.sigma) * p - q, 0).sum()
                above = np.maximum(q - float(ratios.tau) * p, 0).sum()
                assert below == pytest.approx(lacking, abs=2e-7)
                assert above == pytest.approx(lacking, abs=2e-7)


@pytest.mark.parametrize("num_categories", [12, 300, 49_152])
def test_emitted_token_and_acceptance_at_any_size(num_categories):
    """Tokens in twelve groups; false failure below 1e-8 each."""
    num_drafts, num_trials = 4, 800 if num_categories > 1000 else 4000
    p, q = optimal_gap.random_pair("near", num_categories, seed=1)
    keys = jax.random.split(jax.random.key(0), num_trials)
    log_p, log_q = logs(p), logs(q)

    def trial(key):
        drafts = OPTIMAL.propose(key, log_p, num_drafts)
        token = OPTIMAL.verify(key, drafts, log_p, log_q)
        return token, jnp.any(drafts == token)

    tokens, accepted = jax.jit(lambda keys: jax.lax.map(trial, keys, batch_size=20))(keys)
    # Groups of neighbours in ratio order: there a wrong selection shows.
    order = np.argsort(q / p)
    group_of = np.empty(num_categories, int)
    group_of[order] = np.minimum(np.cumsum(q[order]) * 12, 11).astype(int)
    counts = np.bincount(group_of[np.asarray(tokens)], minlength=12)
    assert oracles.chi_square(counts, np.bincount(group_of, q, 12)) > 1e-8
    exact = float(OPTIMAL.acceptance(log_p, log_q, num_drafts))
    assert exact == pytest.approx(optimum_by_prefixes(p, q, num_drafts), abs=1e-5)
    assert oracles.binomial(int(accepted.sum()), num_trials, exact) > 1e-8


def test_no_scheme_is_above_the_program_of_diverse_drafts():
    others = [schemes.get(name) for name in ("specinfer", "weighted_importance", "gls")]
    for names in (("plain", "peaked"), ("zeros in p", "flat", "point mass p")):
        p = np.stack([PROBLEMS[name][0] for name in names])
        for q in (PROBLEMS["flat"][1], PROBLEMS["zeros in q"][1]):
            plan = decomposition.best_selection(p, q)
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
