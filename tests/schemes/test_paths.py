"""Whole trees: what is emitted is distributed as the target's text, over one round and several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import races, schemes, trials
from gls_jax.schemes.draft_tree import ROOT
from tests.schemes.scheme_trials import ALPHA, name_of
from tests.schemes.tree_rounds import (
    LENGTH,
    LOG_DRAFT,
    LOG_TARGET,
    draft_chains,
    generator,
    keys,
    log_probs_of,
    pruned_p_value,
    right_key,
    text_p_value,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCHEMES = [schemes.get(name) for name in (*schemes.NAMES, *schemes.PATH_NAMES)]


def shapes(scheme):
    if scheme.max_drafts == 1:
        return [1]
    return [1, 3, (2, 2)] if scheme.ranked else [1, 3]


CASES = [(scheme, shape) for scheme in SCHEMES for shape in shapes(scheme)]
# Both whole-path schemes, and of the walk each kind of list; tests/decoding has every scheme.
OF_EACH_KIND = ("block", "traversal", "gls", "specinfer", "specinfer_wor")


@pytest.mark.parametrize(
    ("scheme", "shape"), [c for c in CASES if c[0].name in OF_EACH_KIND], ids=name_of
)
def test_text_has_the_distribution_of_the_target(scheme, shape):
    assert text_p_value(scheme, shape) >= ALPHA


@pytest.mark.parametrize(
    ("scheme", "shape"), [c for c in CASES if c[0].invariance == "strong"], ids=name_of
)
def test_strong_schemes_emit_what_plain_generation_emits(scheme, shape):
    """Whatever the drafts: the token of (key, position, target) alone, and for `gls_strong` of K."""
    list_size = max(shape) if isinstance(shape, tuple) else shape

    def plain(key):
        previous, tokens = jnp.array(-1), []
        for t in range(3):
            drafts, log_q = jnp.zeros(list_size, jnp.int32), LOG_TARGET[t, previous + 1]
            none_active = drafts > 0
            position_key = races.position_key(key, t)
            previous = scheme.verify(position_key, drafts, log_q, log_q, none_active)
            tokens.append(previous)
        return jnp.stack(tokens)

    tokens, _ = generator(scheme, shape, 3)(keys(2000))
    np.testing.assert_array_equal(tokens, jax.jit(jax.vmap(plain))(keys(2000)))


@pytest.mark.parametrize("name", ["minhash", "spectr"])
def test_equal_languages_accept_everything(name):
    """Other schemes in tests/robustness/test_clients.py, on hostile distributions."""
    scheme, log_p = schemes.get(name), LOG_TARGET[0, 0]

    def trial(key):
        node_keys = [scheme.draft_key(key, 5, 5 + t, t) for t in range(LENGTH)]
        tokens = [scheme.propose(node_key, log_p, 1) for node_key in node_keys]
        tree = schemes.chains(jnp.stack(tokens, axis=1), ranked=scheme.ranked)
        rows_p, rows_q = jnp.tile(log_p, (2, 1)), jnp.tile(log_p, (3, 1))
        return scheme.verify_tree(key, 5, tree, rows_p, rows_q).length

    assert bool((jax.jit(jax.vmap(trial))(keys(500)) == LENGTH).all())


@pytest.mark.parametrize("name", ["specinfer", "gls_strong", "traversal"])
def test_a_dead_node_is_not_there(name):
    """Two chains, the second one dead: it is never accepted, and the first one sometimes."""
    scheme = schemes.get(name)

    def trial(key):
        both = draft_chains(scheme, key, 0, -1, 2, right_key)
        alone = dataclasses.replace(both, alive=jnp.array([True, True, False, False]))
        return scheme.verify_tree(key, 0, alone, *log_probs_of(both, 0, -1)).nodes

    assert set(np.unique(jax.jit(jax.vmap(trial))(keys(2000)))) == {-1, 0, 1}


@pytest.mark.parametrize("name", ["poisson", "gumbel_topk", "gls", "traversal"])
def test_only_strong_schemes_may_prune_by_what_was_drafted(name):
    """The rule that `Tree.alive` states, and that it is needed."""
    is_unbiased = pruned_p_value(name, lambda tokens: tokens > 0) > ALPHA
    assert is_unbiased == (schemes.get(name).invariance == "strong")


@pytest.mark.parametrize("name", ["traversal", "specinfer_wor", "gls", "gumbel_topk"])
def test_a_missing_rank_biases_nothing(name):
    """The second draft without the first, chosen beforehand."""
    assert pruned_p_value(name, lambda tokens: jnp.array([False, True])) > ALPHA


@pytest.mark.parametrize("name", schemes.PATH_NAMES)
@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda s, key, p: s.verify(key, jnp.zeros(1, int), p, p), "verify"),
        (lambda s, key, p: s.acceptance(p, p, 1), "acceptance"),
        (lambda s, key, p: s.acceptance_curve(p, p, (1,)), "acceptance"),
        (lambda s, key, p: s.accepted(key, p, p, 1), "accepted"),
        (
            lambda s, key, p: trials.acceptance(key, p, p, scheme=s, num_drafts=1, num_trials=5),
            "accepted",
        ),
    ],
)
def test_whole_path_schemes_say_what_they_lack(name, call, what):
    message = (
        f"scheme '{name}' verifies whole paths and has no {what} of one position; "
        "expected verify_tree"
    )
    with pytest.raises(ValueError, match=message):
        call(schemes.get(name), jax.random.key(0), LOG_DRAFT[0, 0])


# Planted defects: keys that are right for token-level schemes, and wrong for whole-path schemes.


def key_of_the_position(scheme, key, start, position, parent):
    return races.position_key(key, position)


def key_of_the_round(scheme, key, start, position, parent):
    return scheme.draft_key(key, start, position, ROOT)


@pytest.mark.parametrize(
    ("name", "shape", "defect"),
    [("block", 1, key_of_the_position), ("traversal", 3, key_of_the_round)],
    ids=name_of,
)
def test_a_defect_in_the_draft_key_is_caught(name, shape, defect):
    assert text_p_value(schemes.get(name), shape, defect, count=100_000) < ALPHA
