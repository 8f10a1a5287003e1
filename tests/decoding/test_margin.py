"""Dynamic trees: their shape, which candidates they keep, and what margin trees learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, schemes, work_shape
from gls_jax.decoding import (
    BestFirstTree,
    DecodeOptions,
    MarginTree,
    candidate_rules,
    dynamic_tree,
    engine,
    margin,
    preparation,
)
from gls_jax.decoding.batch_sampling import BatchSampling
from gls_jax.decoding.state import Drafts, EngineConfig, Requests, Text
from gls_jax.decoding.tree_shape import shape_of
from tests.decoding import language

pytestmark = pytest.mark.usefixtures("quick_compilation")


TREES = {
    "margin": ("gumbel_topk", MarginTree(7, 3, frontier=2, children=3)),
    "best-first": ("topk", BestFirstTree(7, 3, frontier=2, children=3)),
}


@pytest.fixture(scope="module", params=TREES)
def dynamic_drafts(request):
    """A tree, and the drafts of 50 requests whose texts have one of four tokens."""
    batch, num_cache_slots = 52, 12
    scheme_name, tree = TREES[request.param]
    scheme = schemes.get(scheme_name)
    config = EngineConfig(
        scheme=scheme,
        shape=shape_of(scheme, 1, 1, tree),
        drafter_chains=((0,),),
        num_cache_slots=num_cache_slots,
        work=work_shape.current(),
    )
    sampling = BatchSampling(
        temperature=jnp.ones(batch),
        draft_temperature=jnp.ones((batch, 1)),
        vocab_size=language.TOKENS,
    )
    requests = Requests(
        target=language.target,
        drafters=(language.drafters[0],),
        keys=jax.random.split(jax.random.key(0), batch),
        sampling=sampling,
        max_lengths=jnp.full(batch, 12),
        stop_tokens=jnp.full((batch, 1), -1),
    )
    tokens = jnp.broadcast_to(jnp.arange(batch)[:, None] % language.TOKENS, (batch, 12))
    text = Text(tokens=tokens, length=jnp.ones(batch, jnp.int32), seen=None)
    caches = (language.drafters[0].init_cache(batch, num_cache_slots),)
    rule = candidate_rules.candidate_rule(
        config, requests, text, margin.nothing_learned(tree, batch, language.TOKENS)
    )
    is_active = jnp.ones(batch, bool)
    drafts, _ = dynamic_tree.draft_dynamic_tree(config, requests, text, caches, is_active, rule)
    return tree, drafts


def test_dynamic_trees_are_trees(dynamic_drafts):
    """Parents are used and come before their children, ranks have no gaps, and the whole budget is used.

    The shape changes from round to round.
    """
    trees = dynamic_drafts[1].tree
    for row in range(52):
        tree = jax.tree.map(lambda x, row=row: x[row], trees)
        tree.check()
        assert tree.alive.all()
        for parent in np.unique(tree.parents):
            ranks = np.sort(np.asarray(tree.draft_index)[np.asarray(tree.parents) == parent])
            np.testing.assert_array_equal(ranks, np.arange(len(ranks)))
    num_shapes = len(np.unique(np.asarray(trees.parents), axis=0))
    # Without noise the shape depends on the text alone.
    assert num_shapes > (1 if isinstance(dynamic_drafts[0], BestFirstTree) else 5)


def test_dynamic_trees_keep_the_most_probable(dynamic_drafts):
    """The slow way: the probability of every candidate, multiplied along its path."""
    shape, drafts = dynamic_drafts
    for row in range(10):
        candidates = jax.tree.map(
            lambda x, row=row: np.asarray(x[row], np.float64), drafts.candidates
        )
        tree = jax.tree.map(lambda x, row=row: np.asarray(x[row]), drafts.tree)
        paths = [(0, row % language.TOKENS)]  # the text, and no token before it
        for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
            paths.append((*paths[parent], token))
        # Tree node, root included: the list of candidates there, and how probable they are.
        list_at, local = {}, {}
        for e, node in enumerate(np.asarray(drafts.list_nodes[row])):
            if node >= -1:
                list_at[node + 1] = e
                local[e] = slow_estimate(candidates, e, paths[node + 1])
        probability = np.ones(shape.budget + 1)
        for node in range(shape.budget):
            e = list_at[tree.parents[node]]
            assert candidates.tokens[e, tree.draft_index[node]] == tree.tokens[node]
            own = local[e][tree.draft_index[node]]
            probability[node + 1] = probability[tree.parents[node]] * own
            stored = candidates.log_prob[e, tree.draft_index[node]]
            assert np.log(probability[node + 1]) == pytest.approx(stored, abs=1e-4)
        not_kept = [
            probability[parent] * local[e][rank]
            for parent, e in list_at.items()
            for rank in range(shape.children)
            if not np.any((tree.parents == parent) & (tree.draft_index == rank))
        ]
        assert min(probability[1:]) >= max(not_kept) - 1e-6


def slow_estimate(candidates, e, path):
    """How probably the target emits each candidate of a list, after its node."""
    evidence = candidates.evidence
    if evidence is None:
        after_path = language.DRAFTS[0][len(path) - 2, path[-2], path[-1]]
        return after_path[candidates.tokens[e].astype(int)]
    sharpness, spread = np.asarray(
        margin.most_likely(margin.nothing_learned(MarginTree(), 1, 1).fit)
    )[0]
    weights = np.exp((sharpness * evidence.log_p[e] + evidence.advantage[e]) / spread)
    of_none = np.exp(sharpness * evidence.log_rest[e] / spread)
    assert np.exp(evidence.log_rest[e]) == pytest.approx(
        1 - np.exp(evidence.log_p[e]).sum(), abs=1e-3
    )
    return weights / (weights.sum() + of_none)


def test_the_most_probable_is_read_next():
    """With one node a call the drafter reads the likeliest unread path, wherever it is."""
    prepared = preparation.prepare(
        jax.random.key(0),
        language.target,
        language.drafters[0],
        [[3]],
        None,
        DecodeOptions(scheme="topk", tree=BestFirstTree(4, 5, frontier=1, children=4)),
    )
    config, requests, text, *_ = prepared
    state = engine.prefill(config, requests, text)
    drafts, _ = engine.PARTS[0](config, requests, state, state.drafter_caches)
    probabilities = path_probabilities(5)
    # The likeliest four of all paths, whose parents are the paths to read.
    best = sorted(probabilities, key=probabilities.get, reverse=True)[:4]
    assert paths_of(drafts) == set(best)
    assert int(drafts.num_calls[0]) <= 5
    unlimited = len({path[:-1] for path in best})
    assert int(drafts.num_calls[0]) >= unlimited


def path_probabilities(depth):
    """Of every path after the text 3, under the drafter."""
    p = language.DRAFTS[0]
    probabilities = {}

    def visit(path, probability):
        text = (0, 3, *path)
        for x in range(language.TOKENS):
            own = probability * p[len(path), text[-2], text[-1], x]
            probabilities[(*path, x)] = own
            if len(path) + 1 < depth:
                visit((*path, x), own)

    visit((), 1.0)
    return probabilities


def paths_of(drafts):
    """The paths of the first request's tree, as tuples of tokens."""
    tokens, parents = (np.asarray(x[0]) for x in (drafts.tree.tokens, drafts.tree.parents))
    paths = [()]
    for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True):
        paths.append((*paths[parent], token))
    return set(paths[1:])


def test_a_tree_does_not_depend_on_its_batch():
    """Neither the nodes nor what is learned nor the calls: other requests read more, or less."""
    prompts = [[token] for token in (3, 1, 2, 0)]
    keys = jax.random.split(jax.random.key(5), 4)
    options = dict(scheme="gumbel_topk", tree=MarginTree(5, 6, frontier=3, children=3))

    def metrics(rows):
        return decoding.generate(
            keys[rows],
            language.target,
            language.drafters[0],
            [prompts[row] for row in rows],
            max_new_tokens=20,
            **options,
        ).metrics

    together, alone = metrics(np.arange(4)), metrics(np.array([2]))
    np.testing.assert_array_equal(together.histogram[2], alone.histogram[0])
    assert together.draft_calls[2] == alone.draft_calls[0]
    # Fewer calls than rounds of the full depth would take.
    assert together.draft_calls.sum() < 6 * together.target_calls.sum()


def test_a_greedy_target_has_trees_too():
    """At temperature 0 the budget goes to the likeliest tokens, in the first round as best-first."""
    options = dict(max_new_tokens=20, temperature=0.0)
    prompts = [[token] for token in range(language.TOKENS)]
    key, target, drafter = jax.random.key(5), language.target, language.drafters[0]
    plain = decoding.generate(key, target, None, prompts, **options)
    counts = {}
    for name, (scheme, tree) in TREES.items():
        fast = decoding.generate(key, target, drafter, prompts, scheme=scheme, tree=tree, **options)
        np.testing.assert_array_equal(fast.tokens, plain.tokens)
        counts[name] = fast.metrics
    # A chain would have three nodes.
    assert counts["margin"].drafted.sum() > 3 * counts["margin"].histogram.sum()
    efficiencies = [metrics.block_efficiency for metrics in counts.values()]
    assert efficiencies[0] == pytest.approx(efficiencies[1], rel=0.1)


COUNT = 800


def drafts_at_the_root(log_p, log_noise, log_rest):
    """One list at the root of each request, of tokens 0, 1, ..."""
    arrays = (log_p, -log_noise, log_rest)
    evidence = margin.Evidence(*(jnp.asarray(x, jnp.float32)[:, None] for x in arrays))
    tokens = jnp.broadcast_to(jnp.arange(log_p.shape[1]), (COUNT, 1, log_p.shape[1]))
    return Drafts(
        tree=None,
        log_p=None,
        cache_slots=None,
        is_invalid=None,
        num_calls=1,
        list_nodes=jnp.full((COUNT, 1), -1),
        candidates=dynamic_tree.Candidates(tokens=tokens, log_prob=None, evidence=evidence),
    )


def learned_after(drafts, log_q, emitted, is_active=True):
    """What is learned when every request emits one token at the root."""
    path = schemes.Path(
        nodes=jnp.zeros((COUNT, 0), jnp.int32),
        length=jnp.zeros(COUNT, jnp.int32),
        token=jnp.asarray(emitted),
    )
    before = margin.nothing_learned(MarginTree(), COUNT, log_q.shape[1])
    tokens = jnp.asarray(emitted)[:, None]
    flags = jnp.full(COUNT, is_active)
    after = margin.learn(before, drafts, jnp.asarray(log_q)[:, None], path, tokens, flags)
    return before, after


def test_sharpness_and_spread_are_learned():
    """From emitted tokens that follow them."""
    rng = np.random.default_rng(0)
    true = (0.85, 2.0)
    log_p = np.sort(np.log(rng.dirichlet(np.ones(8), COUNT)), axis=-1)[:, ::-1]
    log_noise = np.log(rng.exponential(size=(COUNT, 8)))
    drafts = drafts_at_the_root(log_p, log_noise, np.full(COUNT, -3.0))
    evidence = drafts.candidates.evidence
    estimate = np.exp(margin.log_estimate(evidence, *map(jnp.float32, true)))[:, 0].astype(float)
    # Token 8 is in no list.
    emitted = np.array([rng.choice(9, p=row / row.sum()) for row in estimate])
    log_q = np.zeros((COUNT, 9), np.float32)
    before, after = learned_after(drafts, log_q, emitted)
    found = np.asarray(margin.most_likely((after.fit - before.fit).sum(0)[None]))[0]
    assert np.abs(np.log(found / true)).max() < 0.3
    before, after = learned_after(drafts, log_q, emitted, is_active=False)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_corrections_are_learned():
    """A token that the target likes more than the drafter does, and one that is impossible."""
    rng = np.random.default_rng(1)
    log_p = np.log(rng.dirichlet(np.full(8, 9.0), COUNT)).astype(np.float32)
    sharpness = float(margin.most_likely(margin.nothing_learned(MarginTree(), 1, 1).fit)[0, 0])
    log_q = sharpness * log_p
    log_q[:, 3] += 1.0
    log_q[:, 5] = -np.inf
    drafts = drafts_at_the_root(log_p, np.zeros((COUNT, 8)), np.full(COUNT, -3.0))
    _, after = learned_after(drafts, log_q, np.zeros(COUNT, int))
    # The mean over requests, which stand for rounds here.
    correction = np.asarray(after.differences.sum(0) / after.weights.sum(0))
    np.testing.assert_allclose(correction[3] - correction[[0, 1, 2, 4, 6, 7]], 1, atol=0.05)
    assert correction[5] == -2
    # The weight of a token is the square root of its probability.
    np.testing.assert_allclose(after.weights, np.exp(log_p / 2), rtol=1e-5)


def test_invalid_logits_teach_nothing():
    log_p = np.log(np.full((COUNT, 4), 0.25))
    drafts = drafts_at_the_root(log_p, np.zeros((COUNT, 4)), np.full(COUNT, -3.0))
    _, after = learned_after(drafts, np.full((COUNT, 4), np.nan), np.zeros(COUNT, int))
    assert (after.weights == 0).all() and (after.differences == 0).all()
