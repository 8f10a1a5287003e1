import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import gls_jax
from gls_jax import schemes

BAD = [
    (np.log([0.25, 0.25]), r"expected probabilities that sum to 1 \(within 0.001\), got a sum of 0.5"),
    (np.log([0.9, 0.9]), "got a sum of 1.8"),
    (np.array([np.nan, 0.0]), "expected log-probabilities, got NaN"),
    (np.array([0.5, -np.inf]), "expected log-probabilities of at most 0, got 0.5"),
    (np.array([np.inf, -1.0]), "expected log-probabilities of at most 0, got inf"),
    (np.array([-np.inf, -np.inf]), "got a sum of 0"),
    (np.array(0.0), r"expected shape \[..., N\] with N >= 1, got \[\]"),
    (np.zeros((2, 0)), r"expected shape \[..., N\] with N >= 1, got \[2, 0\]"),
    ("words", "expected an array of floats"),
    (np.array([1j, 0]), "expected an array of floats, got dtype complex64"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_laws(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        gls_jax.check_log_probs(value, "log_q")
    assert str(caught.value).startswith("log_q") and "\n" not in str(caught.value)


def test_the_row_is_named():
    rows = np.log([[[0.5, 0.5], [0.5, 0.4]]])
    with pytest.raises(ValueError, match=r"log_p\[0, 1\]: expected probabilities that sum to 1"):
        gls_jax.check_log_probs(rows, "log_p")


def test_good_laws():
    for law in (np.log([0.5, 0.5]), np.array([0.0, -np.inf]), np.zeros((3, 1)), np.zeros((0, 4))):
        gls_jax.check_log_probs(law)
    logits = jax.random.normal(jax.random.key(0), (3, 200_000)) * 5
    gls_jax.check_log_probs(jax.nn.log_softmax(logits))


@pytest.mark.parametrize(("value", "message"), [row for row in BAD[:6]])
def test_under_jit_through_checkify(value, message):
    def traced(law):
        gls_jax.check_log_probs(law, "log_q")
        return law

    error, _ = checkify.checkify(jax.jit(traced))(jnp.asarray(value, jnp.float32))
    with pytest.raises(checkify.JaxRuntimeError, match="log_q: expected"):
        error.throw()
    error, _ = checkify.checkify(jax.jit(traced))(jnp.log(jnp.array([0.5, 0.5])))
    error.throw()


def test_constants_inside_jit_are_still_checked():
    law = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    verify = schemes.get("specinfer").verify

    def emit(drafts):
        return jax.jit(lambda key: verify(key, drafts, law, law))(jax.random.key(0))

    assert int(emit(jnp.array([1, 0]))) in (0, 1)
    with pytest.raises(ValueError, match=r"drafts: expected tokens within 0..2, got 0 to 3"):
        emit(jnp.array([0, 3]))
