"""What the tests of schemes share: draws of many keys, p-values, and random pairs.

All keys are fixed. Each statistical test fails a correct scheme with probability at most ALPHA for
another key, and there are fewer than 700 of them. The one over MANY problems makes fewer than 12,000
tests at ALPHA / 50 each. So the suite's false-failure rate is below 1e-6.
"""

from functools import cache

import jax
import numpy as np

from gls_jax import schemes
from tests import oracles
from tests.problems import NUM_DRAFTS, NUM_ITEMS, PROBLEMS, logs

ALPHA = 1e-9
TRIALS = 40_000

SCHEMES = [schemes.get(name) for name in schemes.NAMES]
WITHOUT_REPLACEMENT = ("gumbel_topk", "specinfer_wor")


def has_iid_drafts(scheme):
    """Whether the bounds for independent samples of `p` hold for it."""
    return scheme.samples_drafts and scheme.name not in WITHOUT_REPLACEMENT


# Where float32 log-probabilities leave an oracle's quadrature enough digits.
SMALL_PROBLEMS = {name: pair for name, pair in PROBLEMS.items() if name != "rare target"}


def most_drafts(scheme):
    return scheme.max_drafts or NUM_DRAFTS


def name_of(value):
    """A test's id: never an address, because the processes of pytest-xdist must agree."""
    return getattr(value, "name", getattr(value, "__name__", str(value)))


@cache
def compiled_trials(scheme, num_drafts):
    """Drafts `[T, K]` and tokens `[T]` of `T` keys; compiled once a scheme."""

    def trial(key, log_p, log_q):
        drafts = scheme.propose(key, log_p, num_drafts)
        return drafts, scheme.verify(key, drafts, log_p, log_q)

    return jax.jit(jax.vmap(trial, in_axes=(0, None, None)))


def draw(scheme, num_drafts, p, q, seed=0, count=TRIALS):
    """Drafts `[count, K]` and tokens `[count]` of one problem."""
    keys = jax.random.split(jax.random.key(seed), count)
    drafts, tokens = compiled_trials(scheme, num_drafts)(keys, logs(p), logs(q))
    return np.asarray(drafts), np.asarray(tokens)


def count_accepted(drafts, tokens):
    return int((drafts == tokens[:, None]).any(1).sum())


def distribution_p_value(tokens, probs):
    return oracles.chi_square(np.bincount(tokens, minlength=NUM_ITEMS), probs)


def smallest_p_value(scheme, num_drafts=NUM_DRAFTS, problem="plain"):
    """What the tests of distribution and of acceptance say of a scheme on one problem."""
    p, q = PROBLEMS[problem]
    drafts, tokens = draw(scheme, num_drafts, p, q)
    exact = float(scheme.acceptance(logs(p), logs(q), num_drafts))
    acceptance_p_value = oracles.binomial(count_accepted(drafts, tokens), TRIALS, exact)
    return min(distribution_p_value(tokens, q), acceptance_p_value)


def random_pairs(count, num_categories, seed=0, spread=1.0):
    """`[count, 2, N]`: pairs of distributions from a symmetric Dirichlet."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(num_categories, spread), (count, 2))
