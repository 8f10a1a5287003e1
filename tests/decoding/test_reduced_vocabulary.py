"""A drafter whose output head has some of the tokens: the drafts and acceptances of the whole vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, schemes
from gls_jax.decoding.batch_sampling import scatter_logits
from gls_jax.decoding.reduced_vocabulary import propose_reduced, verify_reduced
from tests.decoding import language
from tests.decoding.tiny_models import texts

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(5)
TOKENS = (0, 1, 3)
REQUESTS = 4000


def over_all_tokens(drafter):
    """The same drafter, whose logits of the other tokens are minus infinity."""

    def head(params, hidden):
        return scatter_logits(drafter.head(params, hidden), jnp.array(TOKENS), language.TOKENS)

    return dataclasses.replace(drafter, head=head, tokens=None)


def generate(scheme, drafter, **options):
    prompts = [([1, 2, 0], [3])[row % 2] for row in range(REQUESTS)]
    target = language.target_with_features
    return decoding.generate(
        KEY, target, drafter, prompts, scheme=scheme, max_new_tokens=4, **options
    )


SHARED_NOISE = {
    "gls": dict(num_drafts=3, draft_length=2),
    "gls_strong": dict(num_drafts=2, draft_length=2),
    "poisson": dict(tree=(3, 2)),
    "gumbel_topk": dict(tree=decoding.MarginTree(6, 3, frontier=2, children=3)),
    "minhash": dict(draft_length=2),
    "topk": dict(num_drafts=2, draft_length=2),
}


@pytest.mark.parametrize("scheme", SHARED_NOISE)
def test_the_same_drafts_where_the_noise_is_shared(scheme):
    """Token for token and round for round, with a repetition penalty."""
    drafter = language.observing_drafter(TOKENS)
    options = SHARED_NOISE[scheme] | dict(temperature=0.9, repetition_penalty=1.3)
    reduced = generate(scheme, drafter, **options)
    whole = generate(scheme, over_all_tokens(drafter), **options)
    assert texts(reduced) == texts(whole)
    differing = np.any(reduced.metrics.histogram != whole.metrics.histogram, axis=1)
    # Rounding decides ties, and how a margin tree is fitted.
    assert differing.sum() <= (REQUESTS // 100 if scheme == "gumbel_topk" else 2)


@pytest.mark.parametrize(
    "scheme", [name for name in schemes.NAMES if schemes.get(name).needs_draft_probs]
)
def test_the_same_acceptance_where_draft_probabilities_are_needed(scheme):
    """The exact acceptance, by verification of 20,000 lists; false failures below 1e-9 each."""
    scheme = schemes.get(scheme)
    num_drafts = min(2, scheme.max_drafts or 2)
    tokens = jnp.array([1, 2, 5, 6])
    rng = np.random.default_rng(0)
    log_p = jnp.log(jnp.asarray(rng.dirichlet(np.ones(4)), jnp.float32))
    log_q = jnp.log(jnp.asarray(rng.dirichlet(np.ones(8)), jnp.float32))
    whole_p = jnp.full(8, -jnp.inf).at[tokens].set(log_p)
    exact = float(scheme.acceptance(whole_p, log_q, num_drafts))

    def trial(key):
        draft_key = scheme.draft_key(key, 0, 0, 0)
        drafts = propose_reduced(scheme, draft_key, log_p, num_drafts, tokens, 8)
        tree = schemes.chains(drafts[:, None], ranked=scheme.ranked)
        rows_p = jnp.tile(log_p, (num_drafts, 1))
        rows_q = jnp.tile(log_q, (num_drafts + 1, 1))
        path = verify_reduced(scheme, tokens, key, 0, tree, rows_p, rows_q)
        first = jnp.where(path.length > 0, tree.tokens[path.nodes[0]], path.token)
        return path.length > 0, first

    count = 20_000
    accepted, first = jax.jit(jax.vmap(trial))(jax.random.split(KEY, count))
    assert abs(float(accepted.mean()) - exact) < 6.2 * np.sqrt(exact * (1 - exact) / count) + 1e-6
    # The first token has the target's distribution, also among the others.
    q = np.exp(np.asarray(log_q))
    observed = np.bincount(np.asarray(first), minlength=8) / count
    assert (np.abs(observed - q) < 6.5 * np.sqrt(q * (1 - q) / count)).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3, 1], "increasing"),
        ([1, 9], "within 0..3"),
        ([1.5, 2.5], "token ids"),
        ([[1]], "token ids"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(tokens, message):
    drafter = dataclasses.replace(language.observing_drafter(), tokens=jnp.array(tokens))
    with pytest.raises(ValueError, match=message):
        decoding.generate(KEY, language.target_with_features, drafter, [[1]])


def test_target_without_features_is_refused():
    with pytest.raises(ValueError, match=r"drafters\[0\]: expected a target with features"):
        decoding.generate(KEY, language.target, language.observing_drafter(), [[1]])
