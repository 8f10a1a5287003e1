"""Weighted importance sampling: its linear program, and its tournament list by list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes
from gls_jax.schemes import weighted_importance
from tests import oracles
from tests.problems import PROBLEMS, logs
from tests.schemes.scheme_trials import random_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMPORTANCE = schemes.get("weighted_importance")
compare = jax.jit(weighted_importance.compare, static_argnums=3)


@jax.jit
def win_probabilities(win_probs, ranks):
    """`[i, j]`: probability that token i is selected over token j."""

    def row(i):
        return jax.vmap(lambda j: weighted_importance.win_probability(win_probs, i, j))(ranks)

    return jax.vmap(row)(ranks)


@pytest.mark.parametrize("num_free_ranks", [1, 2, 5, 8])
def test_truncated_program_is_solved(num_free_ranks):
    """The value against HiGHS, also for later comparisons, between winners of other distributions."""
    problems = [
        *PROBLEMS.values(),
        *random_pairs(12, 9, seed=6),
        *random_pairs(12, 30, seed=7, spread=0.1),
    ]
    for p, q in problems:
        winner_p = p
        for _ in range(3):
            arrays = (jnp.asarray(probs, jnp.float32) for probs in (winner_p, p, q))
            selected_p = np.asarray(compare(*arrays, num_free_ranks).selected_p, np.float64)
            optimum = oracles.pairwise_program(winner_p, p, q, num_free_ranks)
            assert np.minimum(selected_p, q).sum() == pytest.approx(optimum, abs=2e-6)
            assert selected_p.sum() == pytest.approx(1, abs=1e-5)
            winner_p = selected_p / selected_p.sum()


def tournament(rows, q, num_free_ranks):
    """The bracket as nested pairs of draft numbers, the win probabilities of each comparison,
    and the distribution of the last winner.
    """
    q = jnp.asarray(q, jnp.float32)
    entrants = [(number, jnp.asarray(p, jnp.float32)) for number, p in enumerate(rows)]
    wins = {}
    while len(entrants) > 1:
        winners = []
        for (first, first_p), (second, second_p) in zip(
            entrants[::2], entrants[1::2], strict=False
        ):
            comparison = compare(first_p, second_p, q, num_free_ranks)
            ranks = np.argsort(np.asarray(comparison.order))
            wins[first, second] = np.asarray(
                win_probabilities(comparison.win_probs, ranks), np.float64
            )
            winners.append(((first, second), comparison.selected_p))
        entrants = winners + entrants[len(winners) * 2 :]
    bracket, winner_p = entrants[0]
    return bracket, wins, np.asarray(winner_p, np.float64)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_tournament_is_its_definition(problem):
    """Acceptance and emitted distribution, list by list.

    A token that replaces the rejected draft may be in the list.
    """
    p, q = PROBLEMS[problem]
    diverse = [p, PROBLEMS["peaked"][0], PROBLEMS["flat"][0]]
    for num_free_ranks, lists in ((2, ([p] * 3, diverse)), (5, ([p] * 2, [p] * 4))):
        scheme = weighted_importance.truncated_at(num_free_ranks)
        for rows in lists:
            accepted, emitted = oracles.tournament(rows, q, *tournament(rows, q, num_free_ranks))
            is_one_distribution = all(row is p for row in rows)
            log_p = logs(p) if is_one_distribution else logs(np.stack(rows))
            exact = float(scheme.acceptance(log_p, logs(q), len(rows)))
            assert exact == pytest.approx(accepted, abs=2e-6)
            np.testing.assert_allclose(emitted, q, atol=2e-6)


def test_free_ranks_reach_the_optimum():
    for p, q in random_pairs(5, 9, seed=8):
        one_free = weighted_importance.truncated_at(1).acceptance(logs(p), logs(q), 2)
        all_free = weighted_importance.truncated_at(9).acceptance(logs(p), logs(q), 2)
        optimum = float(bounds.optimum_iid(logs(p), logs(q), 2))
        assert float(all_free) == pytest.approx(optimum, abs=2e-6)
        assert float(one_free) <= optimum + 2e-6


def test_gradients_on_peaked_distributions_are_finite():
    rng = np.random.default_rng(14)
    gradient = jax.grad(lambda p, q: IMPORTANCE.acceptance(p, q, 3), argnums=(0, 1))
    run = jax.jit(jax.vmap(gradient))
    for scale in (4.0, 12.0, 20.0):
        logits = scale * rng.normal(size=(2, 200, 5))
        log_p, log_q = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
        assert all(bool(jnp.isfinite(slope).all()) for slope in run(log_p, log_q))
