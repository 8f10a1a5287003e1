"""Verifiers of one token: sound ones pass, and each planted defect is found under its name.

Reports have a false-failure rate of 1e-6 each, and their seeds are fixed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import conformance, schemes

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = ("plain", "peaked", "ties", "zeros in the target", "point mass target", "uniforms of 0")
LARGE = ("flat tail", "zero noise")


def check(verifier, problems=SMALL, num_trials=20_000, separate_keys=True, **options):
    return conformance.check(
        verifier,
        kind="token",
        seed=1,
        problems=problems,
        num_trials=num_trials,
        separate_keys=separate_keys,
        **options,
    )


def residual_of(q, p):
    left = jnp.maximum(q - p, 0)
    return jnp.where(left.sum() > 0, left, q)


def categorical(key, weights):
    return jax.random.categorical(key, jnp.log(weights))


def speculative(
    key,
    drafts,
    draft_probs,
    target_probs,
    *,
    uniform=jax.random.uniform,
    test=lambda u, p, q: u * p < q,
    residual=residual_of,
    sample=categorical,
    split=jax.random.split,
):
    """Speculative sampling of the first draft, as it is often written; each part can be replaced."""
    test_key, residual_key = split(key)
    draft, p, q = drafts[0], draft_probs[0], target_probs
    is_accepted = test(uniform(test_key), p[draft], q[draft])
    return jnp.where(is_accepted, draft, sample(residual_key, residual(q, p)))


def several_drafts(key, drafts, draft_probs, target_probs, *, same_uniform=False, update=True):
    """Recursive rejection over K drafts."""
    q, token = target_probs, jnp.int32(-1)
    for k in range(len(drafts)):
        p, draft = draft_probs[k], drafts[k]
        u = jax.random.uniform(jax.random.fold_in(key, 100 if same_uniform else 100 + k))
        token = jnp.where((token < 0) & (u * p[draft] < q[draft]), draft, token)
        if update:
            q = residual_of(q, p) / residual_of(q, p).sum()
    fresh = categorical(
        jax.random.fold_in(key, 99), residual_of(target_probs, p) if not update else q
    )
    return jnp.where(token < 0, fresh, token)


@pytest.mark.parametrize("verifier", [speculative, several_drafts])
def test_sound_verifiers_pass(verifier):
    num_drafts = 1 if verifier is speculative else None
    claim = "single" if verifier is speculative else "specinfer"
    report = check(verifier, max_drafts=num_drafts, acceptance=claim, separate_keys=False)
    assert report.passed, str(report)
    assert "jit(vmap" in report.calls


def inverted(key, weights):
    """Without normalisation: what is missing goes to the last token."""
    index = jnp.searchsorted(jnp.cumsum(weights), jax.random.uniform(key), side="right")
    return jnp.minimum(index, len(weights) - 1)


def in_float16(key, drafts, draft_probs, target_probs):
    p, q = draft_probs.astype(jnp.float16), target_probs.astype(jnp.float16)
    return speculative(key, drafts, p, q)


def race(key, weights):
    return jnp.argmin(jax.random.exponential(key, weights.shape) / weights)


FRESH = "a fresh sample of the target after a rejection"
DEFECTS = {
    "fresh token on rejection": ({"residual": lambda q, p: q}, "emitted distribution", FRESH),
    "accepts everything": ({"test": lambda u, p, q: True}, "emitted distribution", "every draft"),
    "reversed test": (
        {"test": lambda u, p, q: u * q < p},
        "emitted distribution",
        "p / q in place of q / p",
    ),
    "likeliest token of the residual": (
        {"sample": lambda key, weights: weights.argmax()},
        "emitted distribution",
        "likeliest token of the residual",
    ),
    "residual that is not normalised": (
        {"sample": inverted},
        "emitted distribution",
        "the residual is not normalised",
    ),
    "accepts at probability 0": (
        {"test": lambda u, p, q: u <= q / p},
        "noise of exactly 0",
        "emitted token 0 of target probability 0",
    ),
    "clamped residual": (
        {"residual": lambda q, p: residual_of(q, p) + 1e-3},
        "emitted distribution",
        "of target probability 0",
    ),
    "the test noise of the proposal": (
        {"split": lambda key: (key, jax.random.fold_in(key, 5))},
        "noise shared with the proposal",
        "of the verifier's key",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_and_named(name):
    change, expected_check, words = DEFECTS[name]
    is_shared = expected_check == "noise shared with the proposal"
    report = check(partial(speculative, **change), max_drafts=1, separate_keys=not is_shared)
    found = {finding.check: finding.message for finding in report.findings}
    assert words in found[expected_check], str(report)


@pytest.mark.parametrize(
    ("change", "expected_check"),
    [({"same_uniform": True}, "emitted distribution"), ({"update": False}, "emitted distribution")],
)
def test_a_defect_of_several_drafts_is_found(change, expected_check):
    report = check(partial(several_drafts, **change), problems=("plain", "second test"))
    assert expected_check in [finding.check for finding in report.findings]
    # One draft is not enough to show it.
    assert report.findings[0].example["K"] == 2
    assert report.findings[0].example["N"] <= 3


@pytest.mark.parametrize(
    ("verifier", "problem", "num_trials", "expected_check"),
    [
        (in_float16, "flat tail", 300, "emitted distribution"),
        (partial(speculative, sample=race), "zero noise", 250, "noise of exactly 0"),
    ],
)
def test_a_defect_that_takes_a_vocabulary_is_found(verifier, problem, num_trials, expected_check):
    # So much time that the number of trials does not depend on the machine.
    report = check(verifier, (problem,), num_trials, max_drafts=1, time_limit=600)
    assert [finding.check for finding in report.findings] == [expected_check]


def test_the_smallest_problem_has_two_tokens_and_can_be_repeated():
    report = check(
        partial(speculative, residual=lambda q, p: q), problems=("peaked",), max_drafts=1
    )
    example = report.findings[0].example
    p, q = np.array(example["draft_probs"][0]), np.array(example["target_probs"])
    assert (example["N"], example["K"], len(q)) == (2, 1, 2)
    # Its target is another one than what is emitted there.
    accepted = np.minimum(p, q)
    assert abs(accepted + (1 - accepted.sum()) * q - q).max() > 0.01


def test_diverse_drafts():
    assert check(several_drafts, problems=("plain",), diverse=True).passed
    first_row = partial(_with_first_row, several_drafts)
    assert not check(first_row, problems=("plain",), diverse=True).passed


def _with_first_row(verifier, key, drafts, draft_probs, target_probs):
    """As if all drafts came from one distribution."""
    return verifier(key, drafts, jnp.broadcast_to(draft_probs[0], draft_probs.shape), target_probs)


# Not those whose drafts are distinct.
INDEPENDENT = [
    name
    for name in schemes.NAMES
    if schemes.get(name).needs_draft_probs and not schemes.get(name).ranked
]


@pytest.mark.parametrize("name", INDEPENDENT)
def test_schemes_of_independent_drafts_pass(name):
    scheme = schemes.get(name)

    def verify(key, drafts, draft_probs, target_probs):
        return scheme.verify(key, drafts, jnp.log(draft_probs[0]), jnp.log(target_probs))

    report = check(
        verify,
        problems=("plain", "zeros in the target", "uniforms of 0"),
        num_trials=4000,
        max_drafts=scheme.max_drafts,
        acceptance=name,
    )
    assert report.passed, str(report)
