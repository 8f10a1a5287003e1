"""Bad input to a scheme: a `ValueError` of one line that says what was expected."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from gls_jax.schemes import specinfer_wor, weighted_importance
from tests.problems import PROBLEMS, logs
from tests.schemes.scheme_trials import SCHEMES, name_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
LOG_P, LOG_Q = (logs(probs) for probs in PROBLEMS["plain"])
ONE_DRAFT = jnp.zeros(1, int)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: s.acceptance(LOG_P, LOG_Q, 0),
            "num_drafts: expected an int of at least 1, got 0",
        ),
        (
            lambda s: s.propose(KEY, LOG_P, -1),
            "num_drafts: expected an int of at least 1, got -1",
        ),
        (lambda s: s.acceptance(LOG_P, LOG_Q[:-1], 1), "same number of categories, got 6 and 5"),
        (
            lambda s: s.acceptance(LOG_P[None, None], LOG_Q, 1),
            "log_p: expected shape|draws its list from one distribution",
        ),
        (
            lambda s: s.acceptance(LOG_P, LOG_Q[None], 1),
            r"log_q: expected shape \[N\] with N >= 1, got \[1, 6\]",
        ),
        (
            lambda s: s.acceptance(np.exp(LOG_P), LOG_Q, 1),
            "log_p: expected log-probabilities of at most 0, got 0.",
        ),
        (lambda s: s.acceptance("p", LOG_Q, 1), "log_p: expected an array of floats"),
        (
            lambda s: s.acceptance(LOG_P.astype(complex), LOG_Q, 1),
            "log_p: expected an array of floats",
        ),
        (lambda s: s.propose(7, LOG_P, 1), "typed key"),
        (
            lambda s: s.verify(KEY, jnp.zeros((1, 1), int), LOG_P, LOG_Q),
            "drafts: expected integers",
        ),
        (lambda s: s.verify(KEY, jnp.zeros(1), LOG_P, LOG_Q), "drafts: expected integers"),
        (
            lambda s: s.verify(KEY, jnp.full(1, 6), LOG_P, LOG_Q),
            "drafts: expected tokens within 0..5",
        ),
        (
            lambda s: s.verify(KEY, jnp.full(1, -1), LOG_P, LOG_Q),
            "drafts: expected tokens within 0..5",
        ),
        (
            lambda s: s.verify(KEY, ONE_DRAFT, LOG_P, LOG_Q, jnp.ones(2, bool)),
            "active: expected",
        ),
        (
            lambda s: s.verify(KEY, ONE_DRAFT, LOG_P, LOG_Q, jnp.ones(1)),
            "active: expected bool",
        ),
        (
            lambda s: jax.jit(s.acceptance)(LOG_P, LOG_Q, 1),
            "num_drafts: expected an int .* got a traced value",
        ),
    ],
)
def test_bad_input(scheme, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(scheme)
    assert "\n" not in str(caught.value)


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of gls, gls_strong, .* got 'gumbel'"):
        schemes.get("gumbel")


def test_more_drafts_than_the_scheme_takes():
    with pytest.raises(ValueError, match="scheme 'single' takes at most 1, got 2"):
        schemes.get("single").acceptance(LOG_P, LOG_Q, 2)


@pytest.mark.parametrize("name", ["poisson", "gumbel_topk"])
def test_rows_for_a_scheme_that_is_not_diverse(name):
    with pytest.raises(ValueError, match=f"scheme '{name}' draws its list from one distribution"):
        schemes.get(name).acceptance(np.stack([LOG_P, LOG_P]), LOG_Q, 2)


def test_rows_must_be_as_many_as_drafts():
    rows = np.stack([LOG_P, LOG_P, LOG_P])
    with pytest.raises(ValueError, match=r"expected 2 rows \(num_drafts\), got shape \[3, 6\]"):
        schemes.get("gls").acceptance(rows, LOG_Q, 2)


@pytest.mark.parametrize(
    "name", ["single", "specinfer", "specinfer_wor", "spectr", "weighted_importance", "optimal"]
)
def test_impossible_drafts(name):
    log_p, log_q = (logs(probs) for probs in PROBLEMS["zeros in p"])
    scheme = schemes.get(name)
    message = r"drafts: expected tokens of positive probability under log_p .at least e.-80., got 2"
    with pytest.raises(ValueError, match=message):
        scheme.verify(KEY, jnp.array([2]), log_p, log_q)
    if scheme.max_drafts is None:  # a draft that is not active may be anything
        scheme.verify(KEY, jnp.array([1, 2]), log_p, log_q, jnp.array([True, False]))


def test_what_takes_too_long_says_so():
    uniform = jnp.full(100, -math.log(100))
    larger = jnp.full(5000, -math.log(5000))
    wor, importance = (schemes.get(name) for name in ("specinfer_wor", "weighted_importance"))
    message = r"would enumerate 10.10 chains .* for 100 categories and K=7.*acceptance_estimate"
    with pytest.raises(ValueError, match=message):
        wor.acceptance(uniform, uniform, 7)
    message = r"weighted_importance.*expected at most 4096 categories, got 5000; trials.acceptance"
    with pytest.raises(ValueError, match=message):
        importance.acceptance(larger, larger, 2)


def test_bad_numbers_of_chains_and_of_free_ranks():
    with pytest.raises(ValueError, match=r"num_chains: expected at least 2, got 1"):
        specinfer_wor.acceptance_estimate(KEY, LOG_P, LOG_Q, 2, 1)
    with pytest.raises(ValueError, match=r"num_free_ranks: expected an int within 1..15, got 16"):
        weighted_importance.truncated_at(16)
