"""Traversal verification against SpecInfer without replacement."""

import jax
import jax.numpy as jnp
import pytest

from gls_jax import schemes
from gls_jax.schemes.draft_tree import ROOT
from tests import oracles
from tests.schemes.scheme_trials import ALPHA, TRIALS
from tests.schemes.tree_rounds import LOG_DRAFT, LOG_TARGET, generator, keys

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRAVERSAL, WOR = schemes.get("traversal"), schemes.get("specinfer_wor")


def test_at_depth_one_it_accepts_as_specinfer_without_replacement():
    log_p, log_q = LOG_DRAFT[0, 0], LOG_TARGET[0, 0]
    rows_q = jnp.stack([log_q, LOG_TARGET[1, 1], LOG_TARGET[1, 2]])

    def trial(key):
        drafts = TRAVERSAL.propose(TRAVERSAL.draft_key(key, 0, 0, ROOT), log_p, 2)
        tree = schemes.chains(drafts[:, None], ranked=True)
        return TRAVERSAL.verify_tree(key, 0, tree, jnp.stack([log_p, log_p]), rows_q).length

    num_accepted = int(jax.vmap(trial)(keys()).sum())
    exact = float(WOR.acceptance(log_p, log_q, 2))
    assert oracles.binomial(num_accepted, TRIALS, exact) > ALPHA


def test_it_accepts_more_than_the_walk_from_the_root():
    """Mean accepted length over 40,000 rounds of the same shape."""
    _, by_traversal = generator(TRAVERSAL, (2, 2), 3)(keys())
    _, by_walk = generator(WOR, (2, 2), 3)(keys())
    assert float(by_traversal.mean()) > float(by_walk.mean()) + 0.01
