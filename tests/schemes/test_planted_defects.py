"""Defects that the tests of every scheme must see: wrong noise, wrong stream, wrong residual."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import races, sampling, schemes
from gls_jax.schemes.function_types import TokenVerification
from tests.schemes.scheme_trials import ALPHA, SCHEMES, most_drafts, name_of, smallest_p_value

pytestmark = pytest.mark.usefixtures("quick_compilation")


def fresh_token_on_rejection(key, drafts, log_p, log_q, active):
    """The public decoder's bias: where no draft matches, a fresh sample of q, not the coupled token."""
    coupled = schemes.get("gls").verify(key, drafts, log_p, log_q, active)
    noise = races.exponentials(races.private_key(key), 1, log_q.shape[0])[0]
    fresh = races.winner(races.arrivals(noise, log_q))
    return jnp.where(jnp.any(drafts == coupled), coupled, fresh)


def ratio_test_on_the_proposal_noise(key, drafts, log_p, log_q, active):
    """Acceptance test and residual from the draft's own stream."""
    noise = races.exponentials(key, 1, log_q.shape[0])[0]
    draft = drafts[0]
    is_accepted = noise[draft] > log_p[draft] - log_q[draft]
    residual = jnp.log(jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0))
    return jnp.where(is_accepted, draft, races.winner(races.arrivals(noise, residual)))


def proposal_noise_in_every_test(name):
    """The scheme itself, with the noise that proposed the drafts in place of its private noise."""
    scheme = schemes.get(name)

    def verify(key, drafts, log_p, log_q, active):
        num_drafts = len(drafts)
        stream = np.zeros(num_drafts, int) if scheme.ranked else np.arange(num_drafts)
        noise = races.exponentials(key, num_drafts, log_q.shape[0])[stream, drafts]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(races, "uniforms", lambda _, count: -jnp.expm1(-jnp.resize(noise, count)))
            # Not `scheme.verify`, whose program may be compiled already, without the patch.
            return scheme.verification.verify(key, drafts, log_p, log_q, active)

    return verify


def drop_a_stream(key, drafts, log_p, log_q, active):
    noise = races.exponentials(key, drafts.shape[0], log_q.shape[0])
    return sampling.target_of_list(noise[:-1], log_q)


def race_under_the_draft_distribution(key, drafts, log_p, log_q, active):
    """The minimum over streams of S / p instead of S / q."""
    noise = races.exponentials(key, drafts.shape[0], log_q.shape[0])
    return sampling.target_of_list(noise, log_p)


DEFECTS = [
    ("gls", fresh_token_on_rejection),
    ("single", ratio_test_on_the_proposal_noise),
    ("gls", drop_a_stream),
    ("gls", race_under_the_draft_distribution),
]
DEFECTS += [
    (scheme.name, proposal_noise_in_every_test(scheme.name))
    for scheme in SCHEMES
    if scheme.needs_draft_probs
]


@pytest.mark.parametrize(("name", "defect"), DEFECTS, ids=name_of)
def test_a_defect_in_verification_is_caught(name, defect):
    sound = schemes.get(name)
    defective = dataclasses.replace(sound, verification=TokenVerification(defect))
    num_drafts = most_drafts(sound)
    # `optimal` accepts everything on the plain problem, where no test can be wrong.
    problem = "peaked" if name == "optimal" else "plain"
    assert smallest_p_value(sound, num_drafts, problem) > ALPHA
    assert smallest_p_value(defective, num_drafts, problem) < ALPHA
