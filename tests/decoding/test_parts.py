"""The parts: sampling parameters, trees and their masks, margin trees, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, schemes
from gls_jax.decoding import MarginTree, margin, tree
from gls_jax.decoding.batch_sampling import Sampling
from gls_jax.decoding.drafting import Text
from tests.decoding import language

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("seed", range(3))
def test_sampling_parameters_against_the_slow_version(seed):
    """40 settings a seed, on laws with ties and zeros; jitted, parameters as data."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        size = 11  # one shape: operations outside `jit` are compiled too
        logits = (
            rng.choice(rng.normal(0, 3, 6), size) if rng.random() < 0.5 else rng.normal(0, 3, size)
        )
        if rng.random() < 0.5:
            logits[rng.random(size) < rng.random()] = -np.inf
            logits[rng.integers(size)] = 0
        with np.errstate(divide="ignore"):
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            logits = np.log(p)
        context = rng.integers(0, size, 3)
        choices = dict(
            temperature=rng.choice([0.0, 0.5, 1.0, 3.0]),
            top_k=int(rng.choice([1, 3, 8, 12])) if rng.random() < 0.5 else None,
            top_p=float(rng.uniform(0.05, 1)) if rng.random() < 0.5 else None,
            min_p=float(rng.uniform(0, 1)) if rng.random() < 0.5 else None,
            repetition_penalty=float(rng.uniform(0.5, 2)) if rng.random() < 0.5 else None,
        )
        seen = np.isin(np.arange(size), context)
        found = decoding.log_probs(jnp.asarray(logits, jnp.float32), seen=seen, **choices)
        np.testing.assert_allclose(
            np.exp(found), language.process(p, context, **choices), atol=2e-6
        )


@pytest.mark.parametrize(
    "choices", [dict(top_p=0.9), dict(top_p=0.5, top_k=20), dict(min_p=0.05), dict(top_k=7)]
)
def test_sampling_parameters_inside_jit(choices):
    """XLA computes a value twice and rounds it differently; nothing kept may fall between the two."""
    logits = 4 * jax.random.normal(jax.random.key(0), (64, 500))
    found = jax.jit(lambda logits, t: decoding.log_probs(logits, temperature=t, **choices))(
        logits, 0.6
    )
    for row in range(64):
        law = np.exp(np.asarray(logits[row], np.float64))
        expected = language.process(law / law.sum(), (), temperature=0.6, **choices)
        np.testing.assert_allclose(np.exp(found[row]), expected, atol=2e-5)


def test_sampling_parameters_do_not_look_at_the_order():
    """A vocabulary turned round gives the law turned round, ties or not."""
    logits = jnp.array([1.0, 1, 1, 0.5, 0.5, 0])
    for choices in (
        dict(top_k=2),
        dict(top_p=0.3),
        dict(top_p=0.9),
        dict(top_k=5, top_p=0.8),
        dict(min_p=0.9),
    ):
        law = decoding.log_probs(logits, **choices)
        np.testing.assert_array_equal(law, decoding.log_probs(logits[::-1], **choices)[::-1])


def test_parameters_may_differ_by_row():
    logits = jax.random.normal(jax.random.key(0), (3, 2, 9))
    each = dict(
        temperature=jnp.array([0.0, 1, 2])[:, None], top_p=jnp.array([0.5, 0.9, 1])[:, None]
    )
    found = jax.jit(lambda logits, each: decoding.log_probs(logits, top_k=4, **each))(logits, each)
    for row in range(3):
        one = {name: float(value[row, 0]) for name, value in each.items()}
        np.testing.assert_allclose(
            found[row], decoding.log_probs(logits[row], top_k=4, **one), rtol=1e-5
        )


def test_logits_that_are_no_law_give_nan():
    for bad in ([jnp.nan, 0, 0], [jnp.inf, 0, 0], [-jnp.inf] * 3):
        for temperature in (0.0, 1.0):
            assert jnp.isnan(decoding.log_probs(jnp.array(bad), temperature=temperature)).all()


def test_ancestors():
    rng = np.random.default_rng(0)
    for _ in range(20):
        parents = np.array([rng.integers(0, i + 1) for i in range(9)])
        expected = np.eye(10, dtype=bool)
        for context in range(10):
            up = context
            while up:
                up = parents[up - 1]
                expected[context, up] = True
        np.testing.assert_array_equal(tree.ancestors(jnp.asarray(parents), 9), expected)


@pytest.fixture(scope="module")
def margin_drafts():
    shape, batch = MarginTree(7, 3, frontier=2, children=3), 50
    keys = jax.random.split(jax.random.key(0), batch)
    text = Text(jnp.ones((batch, 12), jnp.int32), jnp.ones(batch, jnp.int32), None)
    sampling = Sampling(jnp.ones(batch), jnp.ones((batch, 1)))
    drafter = language.drafters[0]
    fit = margin.first_fit(batch)
    cache = drafter.init_cache(batch, 12)
    scheme = schemes.get("gumbel_topk")
    drafts = margin.draft_margin(
        scheme, shape, drafter, language.TOKENS, sampling, keys, text, cache, 12, fit
    )
    return shape, drafts


def test_margin_trees_are_trees(margin_drafts):
    """Parents alive and before their children, ranks without gaps, the whole budget used; each round another shape."""
    whole = margin_drafts[1].tree
    for row in range(50):
        one = jax.tree.map(lambda x, row=row: x[row], whole)
        one.check()
        assert one.alive.all()
        for context in np.unique(one.parents):
            ranks = np.sort(np.asarray(one.draft_index)[np.asarray(one.parents) == context])
            np.testing.assert_array_equal(ranks, np.arange(len(ranks)))
    assert len(np.unique(np.asarray(whole.parents), axis=0)) > 5


def test_margin_trees_keep_the_likeliest(margin_drafts):
    """By the slow way: the chance of every candidate, multiplied along its path."""
    shape, drafts = margin_drafts
    tau = float(margin.TAUS[int(margin.first_fit(1)[0].argmax())])
    for row in range(10):
        lists = jax.tree.map(lambda x, row=row: np.asarray(x[row], np.float64), drafts.lists)
        real = np.isfinite(lists.scores[:, 0])
        exps = np.exp((lists.scores[real] - lists.scores[real, :1]) / tau)
        local = np.zeros(lists.scores.shape)
        local[real] = exps / exps.sum(1, keepdims=True)
        one = jax.tree.map(lambda x, row=row: np.asarray(x[row]), drafts.tree)
        group = {
            int(node) + 1: e for e, node in enumerate(lists.nodes) if node >= -1 and real[e]
        }  # context: its list
        chance = np.ones(shape.budget + 1)
        for node in range(shape.budget):
            e = group[int(one.parents[node])]
            assert lists.tokens[e, one.draft_index[node]] == one.tokens[node]
            chance[node + 1] = chance[one.parents[node]] * local[e, one.draft_index[node]]
        rest = [
            chance[context] * local[e, rank]
            for context, e in group.items()
            for rank in range(shape.children)
            if not np.any((one.parents == context) & (one.draft_index == rank))
        ]
        assert min(chance[1:]) >= max(rest) - 1e-6


def test_the_spread_is_learned():
    """Emitted tokens that follow softmax(s / tau) lead to that tau."""
    rng = np.random.default_rng(0)
    true = 1.5
    scores = np.sort(rng.gumbel(size=(400, 1, 8)), axis=-1)[..., ::-1]
    chances = np.exp(scores[:, 0] / true)
    chances /= chances.sum(1, keepdims=True)
    emitted = np.array([[rng.choice(8, p=p)] for p in chances])
    tokens = jnp.broadcast_to(jnp.arange(8), (400, 1, 8))
    lists = margin.Candidates(tokens, jnp.asarray(scores), jnp.full((400, 1), -1))
    path = schemes.Path(
        jnp.zeros((400, 0), jnp.int32), jnp.zeros(400, jnp.int32), jnp.asarray(emitted[:, 0])
    )
    fit = margin.refit(
        margin.first_fit(400), lists, path, jnp.asarray(emitted), jnp.ones(400, bool)
    )
    found = margin.TAUS[int((fit - margin.first_fit(400)).sum(0).argmax())]
    assert abs(np.log(found / true)) < 0.3
    untouched = margin.refit(fit, lists, path, jnp.asarray(emitted), jnp.zeros(400, bool))
    np.testing.assert_array_equal(fit, untouched)


def test_metrics_count_what_happened():
    rounds = [[2, 0, 2], [1, 1]]  # accepted drafts of each round, by request
    histogram = np.array([np.bincount(row, minlength=3) for row in rounds])
    run = decoding.Metrics(histogram, np.array([7, 4]), nodes=6, calls_per_round=2, rounds=3)
    accepted = np.concatenate(rounds)
    assert run.block_efficiency == run.mean_acceptance_length == 1 + accepted.mean()
    assert run.acceptance_histogram.tolist() == [0.2, 0.4, 0.4]
    assert run.acceptance_by_position.tolist() == [4 / 5, 2 / 4]
    assert run.target_calls.tolist() == [3, 2] and run.draft_calls.tolist() == [6, 4]
