"""List sampling is Algorithm 1, and the scheme GLS."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gls_jax
from gls_jax import schemes
from tests import oracles
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEYS = jax.random.split(jax.random.key(12), 40_000)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_list_sample_is_algorithm_1(problem):
    """Marginals and acceptance; 14 problems x 3 statistics at 1e-9: false-failure rate below 1e-7."""
    p, q = PROBLEMS[problem]
    sample = jax.jit(jax.vmap(partial(gls_jax.list_sample, num_drafts=3), (0, None, None)))
    draws = sample(KEYS, logs(p), logs(q))
    drafts, target = np.asarray(draws.drafts), np.asarray(draws.target)
    np.testing.assert_array_equal(draws.accepted, (drafts == target[:, None]).any(1))
    assert oracles.chi_square(np.bincount(drafts[:, 2], minlength=len(p)), p) > 1e-9
    assert oracles.chi_square(np.bincount(target, minlength=len(q)), q) > 1e-9
    exact = float(schemes.get("gls").acceptance(logs(p), logs(q), 3))
    assert oracles.binomial(int(draws.accepted.sum()), len(KEYS), exact) > 1e-9


def test_list_sample_is_the_scheme_gls():
    p, q = map(logs, PROBLEMS["plain"])
    scheme = schemes.get("gls")
    for key in KEYS[:20]:
        sample = gls_jax.list_sample(key, p, q, 4)
        np.testing.assert_array_equal(sample.drafts, scheme.propose(key, p, 4))
        assert sample.target == scheme.verify(key, sample.drafts, p, q)


def test_equal_distributions_always_match_and_padding_changes_nothing():
    p, q = map(logs, PROBLEMS["plain"])
    sample = jax.vmap(partial(gls_jax.list_sample, num_drafts=2), (0, None, None))
    assert bool(sample(KEYS[:2000], q, q).accepted.all())
    padded = [jnp.pad(x, (0, 50), constant_values=-jnp.inf) for x in (p, q)]
    for wide, narrow in zip(sample(KEYS[:500], *padded), sample(KEYS[:500], p, q), strict=True):
        np.testing.assert_array_equal(wide, narrow)


def test_low_precision_and_lists_are_accepted():
    log_q = jnp.log(jnp.asarray([0.5, 0.5], jnp.bfloat16))
    sample = gls_jax.list_sample(KEYS[0], [-0.6931472, -0.6931472], log_q, 2)
    assert sample.accepted.dtype == bool and sample.drafts.dtype == jnp.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.zeros(3), jnp.zeros(2), 2), "same number of categories, got 3 and 2"),
        (
            (jnp.zeros((3, 2)), jnp.zeros(2), 2),
            r"expected 2 rows \(num_drafts\), got shape \[3, 2\]",
        ),
        ((jnp.zeros(2), jnp.zeros(()), 2), r"log_q: expected shape \[N\] with N >= 1, got \[\]"),
        ((jnp.zeros(2), jnp.zeros(2), 0), "num_drafts: expected an int of at least 1, got 0"),
        ((jnp.zeros(0), jnp.zeros(0), 1), "log_p: expected shape"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gls_jax.list_sample(KEYS[0], *arguments)
