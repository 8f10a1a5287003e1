"""Dynamic trees: their shape, which candidates they keep, and what margin trees learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes, work_shape
from gls_jax.decoding import BestFirstTree, DecodeOptions, MarginTree, engine, margin, preparation
from gls_jax.decoding.batch_sampling import BatchSampling
from gls_jax.decoding.state import EngineConfig, Requests, Text
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
    spread_fit = margin.initial_spread_fit(tree, batch)
    drafts, _ = margin.draft_dynamic_tree(config, requests, text, caches, spread_fit)
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
    tau = None
    if isinstance(shape, MarginTree):
        tau = float(margin.TAUS[int(margin.initial_spread_fit(shape, 1)[0].argmax())])
    for row in range(10):
        candidates = jax.tree.map(
            lambda x, row=row: np.asarray(x[row], np.float64), drafts.candidates
        )
        is_real = np.isfinite(candidates.scores[:, 0])
        local = np.zeros(candidates.scores.shape)
        if tau is None:
            local[is_real] = np.exp(candidates.scores[is_real])
        else:
            margins = candidates.scores[is_real] - candidates.scores[is_real, :1]
            weights = np.exp(margins / tau)
            local[is_real] = weights / weights.sum(1, keepdims=True)
        tree = jax.tree.map(lambda x, row=row: np.asarray(x[row]), drafts.tree)
        # Tree node, root included: the list of candidates there.
        list_at = {
            int(node) + 1: e for e, node in enumerate(candidates.nodes) if node >= -1 and is_real[e]
        }
        probability = np.ones(shape.budget + 1)
        for node in range(shape.budget):
            e = list_at[int(tree.parents[node])]
            assert candidates.tokens[e, tree.draft_index[node]] == tree.tokens[node]
            own = local[e, tree.draft_index[node]]
            probability[node + 1] = probability[tree.parents[node]] * own
        not_kept = [
            probability[parent] * local[e, rank]
            for parent, e in list_at.items()
            for rank in range(shape.children)
            if not np.any((tree.parents == parent) & (tree.draft_index == rank))
        ]
        assert min(probability[1:]) >= max(not_kept) - 1e-6


def test_best_first_trees_are_the_likeliest_paths():
    """Against all paths of the language, where the frontier leaves nothing out."""
    # The text is one token, 3: there is none before it.
    p = language.DRAFTS[0]
    after_root = p[0, 0, 3]
    probabilities = {}
    for x in range(language.TOKENS):
        probabilities[(x,)] = after_root[x]
        for y in range(language.TOKENS):
            probabilities[x, y] = after_root[x] * p[1, 3, x, y]
    expected = sorted(probabilities, key=probabilities.get, reverse=True)[:6]
    prepared = preparation.prepare(
        jax.random.key(0),
        language.target,
        language.drafters[0],
        [[3]],
        None,
        DecodeOptions(scheme="topk", tree=BestFirstTree(6, 2, frontier=4, children=4)),
    )
    config, requests, text, _ = prepared
    state = engine.prefill(config, requests, text)
    drafts, _ = engine.PARTS[0](config, requests, state, state.drafter_caches)
    tokens, parents = (np.asarray(x[0]) for x in (drafts.tree.tokens, drafts.tree.parents))
    paths = [()]
    for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True):
        paths.append((*paths[parent], token))
    assert set(paths[1:]) == set(expected)


def test_the_spread_is_learned():
    """Emitted tokens that follow softmax(s / tau) lead to that tau."""
    rng = np.random.default_rng(0)
    true_tau = 1.5
    scores = np.sort(rng.gumbel(size=(400, 1, 8)), axis=-1)[..., ::-1]
    probabilities = np.exp(scores[:, 0] / true_tau)
    probabilities /= probabilities.sum(1, keepdims=True)
    emitted = np.array([[rng.choice(8, p=p)] for p in probabilities])
    candidates = margin.Candidates(
        tokens=jnp.broadcast_to(jnp.arange(8), (400, 1, 8)),
        scores=jnp.asarray(scores),
        nodes=jnp.full((400, 1), -1),
    )
    path = schemes.Path(
        nodes=jnp.zeros((400, 0), jnp.int32),
        length=jnp.zeros(400, jnp.int32),
        token=jnp.asarray(emitted[:, 0]),
    )
    before = margin.initial_spread_fit(MarginTree(), 400)
    tokens = jnp.asarray(emitted)
    fit = margin.update_spread_fit(before, candidates, path, tokens, jnp.ones(400, bool))
    tau = margin.TAUS[int((fit - before).sum(0).argmax())]
    assert abs(np.log(tau / true_tau)) < 0.3
    untouched = margin.update_spread_fit(fit, candidates, path, tokens, jnp.zeros(400, bool))
    np.testing.assert_array_equal(fit, untouched)
