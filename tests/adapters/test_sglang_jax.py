"""The tree verification of sglang-jax, against its pointers followed one by one and the law of texts.

Each statistical test fails a correct sampler with probability at most ALPHA for another key.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import races, schemes
from gls_jax.adapters import sglang_jax
from tests import oracles
from tests.schemes.scheme_trials import ALPHA
from tests.schemes.tree_rounds import DRAFT, TARGET, TOKENS, sequence_number, sequence_probs

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_REQUESTS = 30_000
# The root has two children, the second of them one child: rows of the candidates' parents.
FIRST_CHILD, NEXT_SIBLING = [1, -1, 3, -1], [-1, 2, -1, -1]
PARENTS = [-1, 0, 0, 2]


def followed(links, next_token_of, num_steps):
    """The engine's pointers, one tree, in Python: rows of the path, and the token after it."""
    candidates, first_child, next_sibling = links
    path = [0]
    while len(path) < num_steps:
        token, child = next_token_of(path[-1]), first_child[path[-1]]
        while child != -1 and candidates[child] != token:
            child = next_sibling[child]
        if child == -1:
            break
        path.append(int(child))
    return path, next_token_of(path[-1])


def random_trees(count, num_candidates, rng):
    """Trees whose siblings are linked in a random order, and have tokens 0, 1, ... in this order."""
    candidates = np.zeros((count, num_candidates), int)
    first_child = np.full((count, num_candidates), -1)
    next_sibling = np.full((count, num_candidates), -1)
    for tree in range(count):
        for candidate in rng.permutation(np.arange(1, num_candidates)):
            parent = rng.integers(candidate)
            next_sibling[tree, candidate] = first_child[tree, parent]
            first_child[tree, parent] = candidate
            sibling = next_sibling[tree, candidate]
            candidates[tree, candidate] = candidates[tree, sibling] + 1 if sibling >= 0 else 0
    return candidates, first_child, next_sibling


def answer_arrays(num_requests, num_candidates, num_steps):
    return (
        np.full(num_requests * num_candidates, 77, np.int32),
        np.full((num_requests, num_steps), -1, np.int32),
        np.zeros(num_requests, np.int32),
    )


def test_greedy_paths_are_those_of_the_pointers():
    rng = np.random.default_rng(0)
    count, num_candidates, num_steps = 200, 7, 4
    trees = random_trees(count, num_candidates, rng)
    places = rng.permutation(count * num_candidates).reshape(count, num_candidates)
    target = rng.integers(3, size=count * num_candidates)
    candidates, *links = trees
    verified = sglang_jax.verify_tree_greedy(
        num_steps - 1,
        num_candidates,
        candidates.ravel(),
        places,
        *links,
        jax.nn.one_hot(target, num_candidates),
    )
    predicts = np.zeros(count * num_candidates + 1, int)
    lengths = set()
    for tree in range(count):
        links = [array[tree] for array in trees]
        path, token = followed(links, lambda row, tree=tree: target[places[tree, row]], num_steps)
        lengths.add(len(path))
        expected = np.append(places[tree, path], [-1] * (num_steps - len(path)))
        assert verified.accept_index[tree].tolist() == expected.tolist()
        assert verified.accept_token_num[tree] == len(path) - 1
        predicts[places[tree, path]] = [*candidates[tree, path[1:]], token]
    np.testing.assert_array_equal(verified.predicts, predicts)
    assert lengths == {1, 2, 3, 4}


def target_rows(candidates, language=TARGET, position=0):
    """The language's distributions after each candidate, `[B, 4, TOKENS]`."""
    depths = np.array([0, 1, 1, 2]) + position
    rows = language[depths, candidates + 1]
    return rows.astype(np.float32)


def trees_of(children):
    """Candidates `[B, 4]` of trees with two children of the root, and the second child's child."""
    second = children[:, 1]
    return np.stack([np.full(len(second), -1), *children.T, (second + 1) % TOKENS], axis=1)


def tokens_of(verified, num_requests):
    """`[B, 3]`, the tokens that were emitted, then -1."""
    places = np.asarray(verified.accept_index)
    return np.where(places >= 0, np.asarray(verified.predicts)[places], -1)


def completed(tokens, rng):
    """Texts of three tokens, of which the target draws those that are missing."""
    tokens = tokens.copy()
    for place in range(1, 3):
        probs = TARGET[place, tokens[:, place - 1] + 1]
        fresh = (rng.random((len(tokens), 1)) > probs.cumsum(-1)).sum(-1)
        tokens[:, place] = np.where(tokens[:, place] >= 0, tokens[:, place], fresh)
    return tokens


def sampled(children, *, sampler=None, seed=0, rows=None, **noise):
    """Answers for trees with these children of the root, `[B, 2]`, and their candidates."""
    candidates = trees_of(children)
    count = len(candidates)
    rng = np.random.default_rng(seed)
    links = (np.tile(FIRST_CHILD, (count, 1)), np.tile(NEXT_SIBLING, (count, 1)))
    places = np.arange(4 * count).reshape(count, 4)
    coins = rng.random((count, 4), np.float32), rng.random(count, np.float32)
    rows = target_rows(candidates) if rows is None else rows
    sampler = sampler or sglang_jax.tree_sampler()
    return sampler(
        *answer_arrays(count, 4, 3),
        candidates,
        places,
        *links,
        *coins,
        rows.reshape(4 * count, TOKENS),
        np.zeros((4 * count, TOKENS), np.float32),
        **noise,
    )


def text_p_value(tokens, seed=0):
    texts = completed(tokens, np.random.default_rng(seed))
    counts = np.bincount(sequence_number(texts, 3), minlength=TOKENS**3)
    return oracles.chi_square(counts, sequence_probs(3))


def test_certain_drafts_have_the_law_of_the_target():
    """Drafts as the engine makes them, the likeliest tokens, with no keys but its uniforms."""
    children = np.tile(DRAFT[0, 0].argsort()[:-3:-1], (NUM_REQUESTS, 1))
    verified = sampled(children)
    tokens = tokens_of(verified, NUM_REQUESTS)
    assert text_p_value(tokens) > ALPHA
    # The engine's acceptance: the target's probability of the children.
    expected = TARGET[0, 0, children[0]].sum()
    count = int((verified.accept_token_num > 0).sum())
    assert oracles.binomial(count, NUM_REQUESTS, expected) > ALPHA


def drafts_of_keys(keys, key_position=0):
    """The children of the root that a drafter lists with the noise of the request's key."""
    propose = schemes.get("gumbel_topk").propose_fn
    log_p = jnp.log(jnp.asarray(DRAFT[0, 0], jnp.float32))
    draft_keys = jax.vmap(lambda key: races.position_key(key, key_position))(keys)
    return np.asarray(jax.vmap(lambda key: propose(key, log_p, 2))(draft_keys))


def test_drafts_of_the_same_noise():
    """The law again, the acceptance of the scheme, and a text that is a function of its key."""
    keys = jax.random.split(jax.random.key(1), NUM_REQUESTS)
    noise = {"request_keys": keys, "positions": np.zeros(NUM_REQUESTS, np.int32)}
    verified = sampled(drafts_of_keys(keys), **noise)
    tokens = tokens_of(verified, NUM_REQUESTS)
    assert text_p_value(tokens) > ALPHA
    log_probs = (jnp.log(jnp.asarray(array[0, 0], jnp.float32)) for array in (DRAFT, TARGET))
    exact = float(schemes.get("gumbel_topk").acceptance(*log_probs, 2))
    count = int((verified.accept_token_num > 0).sum())
    assert oracles.binomial(count, NUM_REQUESTS, exact) > ALPHA

    others = sampled(np.tile([2, 0], (NUM_REQUESTS, 1)), seed=5, **noise)
    other_tokens = tokens_of(others, NUM_REQUESTS)
    both = (tokens >= 0) & (other_tokens >= 0)
    assert (tokens == other_tokens)[both].all()
    assert both[:, 1].sum() > 1000


def test_noise_of_the_drafts_for_another_position_is_found():
    """Planted: the verifier's root stands where the drafter's second token stood."""
    keys = jax.random.split(jax.random.key(1), NUM_REQUESTS)
    noise = {"request_keys": keys, "positions": np.zeros(NUM_REQUESTS, np.int32)}
    first = tokens_of(sampled(drafts_of_keys(keys), **noise), NUM_REQUESTS)[:, 0]
    # A second round that starts at the same position again.
    rows = target_rows(trees_of(drafts_of_keys(keys)))
    rows[:, 0] = TARGET[1, first + 1]
    second = tokens_of(sampled(drafts_of_keys(keys), rows=rows, **noise), NUM_REQUESTS)[:, 0]
    counts = np.bincount(first * TOKENS + second, minlength=TOKENS**2)
    assert oracles.chi_square(counts, sequence_probs(2)) < ALPHA


def test_gls_takes_the_list_of_the_drafter():
    """K streams: the acceptance at the root is that of `gls` with two drafts."""
    keys = jax.random.split(jax.random.key(2), NUM_REQUESTS)
    gls = schemes.get("gls")
    log_p, log_q = (jnp.log(jnp.asarray(array[0, 0], jnp.float32)) for array in (DRAFT, TARGET))
    draft_keys = jax.vmap(lambda key: races.position_key(key, 0))(keys)
    children = np.asarray(jax.vmap(lambda key: gls.propose_fn(key, log_p, 2))(draft_keys))
    sampler = sglang_jax.tree_sampler("gls", num_drafts=2)
    positions = np.zeros(NUM_REQUESTS, np.int32)
    verified = sampled(children, sampler=sampler, request_keys=keys, positions=positions)
    count = int((verified.accept_token_num > 0).sum())
    exact = float(gls.acceptance(log_p, log_q, 2))
    assert oracles.binomial(count, NUM_REQUESTS, exact) > ALPHA
    first = tokens_of(verified, NUM_REQUESTS)[:, 0]
    assert oracles.chi_square(np.bincount(first, minlength=TOKENS), TARGET[0, 0]) > ALPHA


def test_under_jit_on_other_platforms_and_in_strict_modes():
    children = np.array([[0, 1], [2, 1]])
    plain = sampled(children)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        for expected, got in zip(plain, sampled(children), strict=True):
            np.testing.assert_array_equal(expected, got)
            assert got.dtype == expected.dtype
    jax.export.export(jax.jit(lambda: sampled(children)), platforms=("cuda", "tpu"))()


def test_bad_input():
    children = np.array([[0, 1], [2, 1]])
    with pytest.raises(ValueError, match=r"expected 1.0, because less is not lossless"):
        sampled(children, threshold_acc=0.9)
    with pytest.raises(ValueError, match="scheme: expected one that does not read"):
        sglang_jax.tree_sampler("specinfer")
    with pytest.raises(ValueError, match="expected both or none"):
        sampled(children, positions=np.zeros(2, np.int32))
    links = np.array([[1, -1, 2]]), np.full((1, 3), -1)
    with pytest.raises(ValueError, match=r"retrive_next_token: expected shape \[1, 4\], got"):
        sglang_jax.verify_tree_greedy(1, 4, np.zeros(4, int), links[0], *links, np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"next_token_logits: expected shape \[3, N\], got"):
        sglang_jax.verify_tree_greedy(1, 3, np.zeros(3, int), links[0], *links, np.ones((2, 5)))
    with pytest.raises(ValueError, match="draft_tokens: expected 3 for each request, got 4"):
        sglang_jax.verify_tree_greedy(1, 3, np.zeros(4, int), links[0], *links, np.ones((4, 5)))
