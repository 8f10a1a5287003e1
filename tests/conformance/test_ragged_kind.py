"""Rejection samplers of engines: a sound one passes, in JAX and in NumPy; defects are named."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import conformance

pytestmark = pytest.mark.usefixtures("quick_compilation")

LONGEST = 3


def check(verifier, problems=("plain", "two tokens", "disjoint"), num_trials=20_000, **options):
    return conformance.check(
        verifier, kind="ragged", seed=1, problems=problems, num_trials=num_trials, **options
    )


def sampler(
    key,
    draft_tokens,
    num_draft_tokens,
    draft_probs,
    target_probs,
    bonus_tokens,
    *,
    uniforms=lambda key, owners, places: jax.random.uniform(key, owners.shape),
    residual=lambda q, p: jnp.maximum(q - p, 0),
    bonus=lambda tokens: tokens,
    row_shift=0,
    padding=-1,
    strict=True,
):
    """As an engine does it: all tests at once, then the first rejection of every request."""
    num_rows, num_requests = len(draft_tokens), len(num_draft_tokens)
    rows, requests = jnp.arange(num_rows), jnp.arange(num_requests)
    starts = jnp.cumsum(num_draft_tokens) - num_draft_tokens
    owners = jnp.sum(rows[:, None] >= starts[None, 1:], 1)
    test_key, residual_key = jax.random.split(key)
    u = uniforms(test_key, owners, rows - starts[owners])
    p, q = draft_probs[rows, draft_tokens], target_probs[rows, draft_tokens]
    passes = u * p < q if strict else u <= q / p
    left = residual(target_probs, draft_probs)
    left = jnp.where(left.sum(-1, keepdims=True) > 0, left, target_probs)
    recovered = jax.random.categorical(residual_key, jnp.log(left))

    index = jnp.minimum(starts[:, None] + jnp.arange(LONGEST), num_rows - 1)
    is_draft = jnp.arange(LONGEST) < num_draft_tokens[:, None]
    num_accepted = jnp.cumprod(passes[index] & is_draft, 1).sum(1)
    is_accepted = jnp.arange(LONGEST) < num_accepted[:, None]
    tokens = jnp.where(is_accepted, draft_tokens[index], padding)
    tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=padding)
    last_row = jnp.minimum(starts + num_accepted + row_shift, num_rows - 1)
    is_full = num_accepted == num_draft_tokens
    last = jnp.where(is_full, bonus(bonus_tokens), recovered[last_row])
    return tokens.at[requests, num_accepted].set(last)


def in_numpy(seed, draft_tokens, num_draft_tokens, draft_probs, target_probs, bonus_tokens):
    """The same by loops."""
    rng, row = np.random.default_rng([seed, 7]), 0
    answer = np.full((len(num_draft_tokens), LONGEST + 1), -1)
    for request, count in enumerate(num_draft_tokens):
        for place in range(count):
            draft, p, q = (
                draft_tokens[row + place],
                draft_probs[row + place],
                target_probs[row + place],
            )
            if rng.random() * p[draft] >= q[draft]:
                left = np.maximum(q - p, 0).astype(float)
                answer[request, place] = rng.choice(len(q), p=left / left.sum())
                break
            answer[request, place] = draft
        else:
            answer[request, count] = bonus_tokens[request]
        row += count
    return answer


def test_a_sound_sampler_passes():
    report = check(sampler, ("two tokens", "disjoint", "point mass target"))
    assert report.passed, str(report)


def test_a_sound_sampler_in_numpy_passes():
    report = check(in_numpy, ("plain",), num_trials=4_000, noise="seed")
    assert report.passed and "Python" in report.calls, str(report)


def one_for_all(key, owners, places):
    return jnp.broadcast_to(jax.random.uniform(key), owners.shape)


def one_per_request(key, owners, places):
    """The same number at every position of a request."""
    return jax.random.uniform(key, owners.shape)[owners]


def one_per_position(key, owners, places):
    """The same number for all requests."""
    return jax.random.uniform(key, owners.shape)[places]


DEFECTS = {
    "fresh sample on rejection": (
        {"residual": lambda q, p: q},
        "emitted distribution",
        "a fresh sample of the target after a rejection",
    ),
    "neighbours share noise": (
        {"uniforms": one_per_position},
        "neighbours are independent",
        "depend on each other",
    ),
    "one number for everything": (
        {"uniforms": one_for_all},
        "neighbours are independent",
        "depend on each other",
    ),
    "same noise at all positions": (
        {"uniforms": one_per_request},
        "emitted distribution",
        "after a chain of",
    ),
    "residual of the next row": ({"row_shift": 1}, "emitted distribution", "after a chain of"),
    "bonus token of the next request": (
        {"bonus": lambda tokens: jnp.roll(tokens, 1)},
        "usable answers",
        "expected its bonus token after all drafts",
    ),
    "padded with a token": ({"padding": 0}, "usable answers", "at most its drafts and one token"),
    "accepts at probability 0": (
        {"strict": False},
        "noise of exactly 0",
        "of target probability 0",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_and_named(name):
    change, expected_check, words = DEFECTS[name]
    problems = (
        ("two tokens", "disjoint") if expected_check == "noise of exactly 0" else ("two tokens",)
    )
    report = check(partial(sampler, **change), problems, separate_keys=True)
    found = {finding.check: finding.message for finding in report.findings}
    assert words in found.get(expected_check, ""), str(report)


def test_arguments_of_neighbours_that_matter_are_found():
    def leaky(key, draft_tokens, num_draft_tokens, *rest):
        # The noise of a request depends on what all requests drafted.
        key = jax.random.fold_in(key, jnp.sum(draft_tokens))
        return sampler(key, draft_tokens, num_draft_tokens, *rest)

    report = check(leaky, ("plain",), separate_keys=True)
    assert [f.check for f in report.findings] == ["neighbours' arguments do not matter"]


def test_noise_of_the_proposal_is_found():
    same = partial(sampler, uniforms=lambda key, owners, places: owners)

    def verify(key, draft_tokens, *rest):
        uniforms = jax.random.uniform(key, draft_tokens.shape)
        return partial(same, uniforms=lambda *_: uniforms)(key, draft_tokens, *rest)

    report = check(verify, ("plain",))
    assert [f.check for f in report.findings] == ["noise shared with the proposal"]
    assert check(verify, ("plain",), separate_keys=True).passed
