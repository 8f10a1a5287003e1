"""A scheme from outside of the package: ten lines, and everything works with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import rejection, schemes, trials
from gls_jax.schemes import gls
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification
from tests import oracles
from tests.problems import NUM_DRAFTS, PROBLEMS, logs
from tests.schemes.scheme_trials import ALPHA, smallest_p_value
from tests.schemes.tree_rounds import text_p_value

pytestmark = pytest.mark.usefixtures("quick_compilation")


def verify(key, drafts, log_p, log_q, active):
    """Speculative sampling against the first active draft; the others may match by chance."""
    first = drafts[jnp.argmax(active)]
    return rejection.maximal_coupling(key, first, jnp.exp(log_p), log_q, jnp.any(active))


def acceptance(log_p, log_q, num_drafts):
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    accepted, left = jnp.minimum(p, q), jnp.maximum(q - p, 0)
    others_match = [1 - (1 - p) ** (k - 1) for k in num_drafts]
    return jnp.stack([jnp.sum(accepted + left * match) for match in others_match])


FIRST_DRAFT = schemes.Scheme(
    name="first_draft",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=False,
    ranked=False,
    propose_fn=gls.propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance),
)


@pytest.mark.parametrize("problem", ["plain", "peaked", "zeros in p", "zeros in q"])
def test_its_token_has_the_target_distribution_and_its_acceptance_is_exact(problem):
    assert smallest_p_value(FIRST_DRAFT, NUM_DRAFTS, problem) > ALPHA


def test_its_simulated_acceptance_agrees_with_the_exact_one():
    log_p, log_q = (logs(probs) for probs in PROBLEMS["plain"])
    num_trials = 100_000
    estimate = trials.acceptance(
        jax.random.key(0), log_p, log_q, scheme=FIRST_DRAFT, num_drafts=3, num_trials=num_trials
    )
    exact = float(FIRST_DRAFT.acceptance(log_p, log_q, 3))
    num_accepted = round(float(estimate.mean) * num_trials)
    assert oracles.binomial(num_accepted, num_trials, exact) > ALPHA


def test_its_trees_emit_the_target_distribution():
    assert text_p_value(FIRST_DRAFT, 3) > ALPHA


def test_its_input_is_checked():
    log_p, log_q = (logs(probs) for probs in PROBLEMS["zeros in p"])
    with pytest.raises(ValueError, match="drafts: expected tokens of positive probability"):
        FIRST_DRAFT.verify(jax.random.key(0), np.array([2]), log_p, log_q)
    with pytest.raises(ValueError, match="scheme 'first_draft' has no trials by inversion"):
        FIRST_DRAFT.inversion_trial(log_p, log_q, 2)
