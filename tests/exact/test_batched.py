"""Exact acceptance of many pairs: the values of one pair each, on any number of devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes, work_shape
from gls_jax.distributions import pairs
from gls_jax.exact import batched

LOG_P, LOG_Q = pairs.random(jax.random.key(0), 9, 6)
COUNTS = (1, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_curves_are_those_of_each_pair(batch_size):
    scheme = schemes.get("gls")
    curves = batched.acceptance_curves(scheme, LOG_P, LOG_Q, COUNTS, batch_size=batch_size)
    expected = [
        scheme.acceptance_curve(log_p, log_q, COUNTS)
        for log_p, log_q in zip(LOG_P, LOG_Q, strict=True)
    ]
    assert curves.shape == (9, 2)
    np.testing.assert_allclose(curves, expected, atol=1e-6)


def test_one_pair_is_enough():
    curves = batched.acceptance_curves(schemes.get("gls"), LOG_P[:1], LOG_Q[:1], COUNTS)
    expected = schemes.get("gls").acceptance_curve(LOG_P[0], LOG_Q[0], COUNTS)
    np.testing.assert_allclose(curves, expected[None], atol=1e-6)


def distances(key, log_p, log_q, scale):
    """A function of a pair and its key, with a static argument and two results."""
    return scale * bounds.total_variation(log_p, log_q), jax.random.key_data(key)


def test_any_function_of_a_pair_and_its_key():
    keys = jax.random.split(jax.random.key(1), 9)
    twice, data = batched.over_pairs(distances, keys, LOG_P, LOG_Q, static=(2,), batch_size=4)
    expected = jnp.abs(jnp.exp(LOG_P) - jnp.exp(LOG_Q)).sum(1)
    np.testing.assert_allclose(twice, expected, rtol=1e-5)
    np.testing.assert_array_equal(data, jax.random.key_data(keys))


def bits():
    """Of the acceptance of 3, 9 and 40 pairs, in several batch sizes, as text."""
    found = []
    for num_pairs in (3, 9, 40):
        laws = pairs.random(jax.random.key(2), num_pairs, 50)
        for batch_size in (1, 4, 64):
            for name in ("gls", "gumbel_topk"):
                curves = batched.acceptance_curves(
                    schemes.get(name), *laws, COUNTS, batch_size=batch_size
                )
                found.append(curves.tobytes().hex())
        # The batches that suit an accelerator.
        with work_shape.using("cuda"):
            curves = batched.acceptance_curves(schemes.get("gls"), *laws, COUNTS)
            found.append(curves.tobytes().hex())
    return found


PROGRAM = """
import json, jax
from tests.exact import test_batched
assert jax.local_device_count() == 8
print(json.dumps(test_batched.bits()))
"""


def test_values_are_the_same_on_any_number_of_devices():
    """Bit for bit, on this machine's one device and on eight host devices."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == bits()
