"""Drafters: of good and bad models, of several models, and of other vocabularies."""

import numpy as np
import pytest

from gls_jax import decoding
from gls_jax.decoding import MarginTree
from tests.decoding.tiny_models import KEY, random_prompts, trigram_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALWAYS_RIGHT = [
    dict(scheme="gumbel_topk", num_drafts=3, draft_length=4),
    # A level with as many nodes as the longest list has drafts must not be taken for chains.
    dict(scheme="gls", tree=(2, 1)),
    dict(scheme="gls", tree=(2, 1, 2)),
]


@pytest.mark.parametrize("options", ALWAYS_RIGHT, ids=str)
def test_a_drafter_that_is_the_target_is_always_right(target, options):
    generation = decoding.generate(
        KEY, target, target, random_prompts(4), max_new_tokens=10, **options
    )
    assert generation.metrics.histogram[:, :-1].sum() == 0


def test_a_margin_tree_learns_that_its_drafter_is_the_target(target):
    """Its first rounds allow for a worse drafter; later ones are nearly all accepted to the end."""
    options = decoding.DecodeOptions(max_new_tokens=192, tree=MarginTree(8, 4, 2, 4))
    rounds = decoding.stream(KEY, target, target, random_prompts(4), options=options)
    sizes = np.array([[len(new) for new in round_] for round_ in rounds])
    assert (sizes[20:38] == 5).mean() > 0.9


def test_diverse_drafters_have_chains_of_their_own(target, near):
    """Only the second of three drafters is any good, and it continues correctly after each round."""
    bad = [trigram_model(seed) for seed in (5, 6)]
    options = dict(
        scheme="gls",
        num_drafts=3,
        draft_length=3,
        max_new_tokens=14,
        draft_temperatures=[1.0, 1e-3, 1.0],
    )
    generation = decoding.generate(
        KEY, target, [bad[0], target, bad[1]], random_prompts(4), temperature=1e-3, **options
    )
    assert generation.metrics.acceptance_by_position.min() > 0.99
    assert generation.metrics.calls_per_round == 9


def test_vocabularies_of_another_size(target):
    """A drafter's missing tokens are impossible, those it has beyond the target's are dropped."""
    prompts = [[min(token, 50) for token in prompt] for prompt in random_prompts(3)]
    for size, scheme in ((53, "gls"), (64, "specinfer")):
        generation = decoding.generate(
            KEY, target, trigram_model(0, size), prompts, scheme=scheme, max_new_tokens=12
        )
        assert generation.lengths.tolist() == [12] * 3 and int(generation.tokens.max()) < 61


def test_several_drafters_of_different_vocabularies(target):
    drafters = [trigram_model(0, 53), trigram_model(0), trigram_model(0, 70)]
    generation = decoding.generate(
        KEY, target, drafters, random_prompts(3), scheme="gls", num_drafts=3, max_new_tokens=9
    )
    assert generation.lengths.tolist() == [9] * 3


@pytest.mark.parametrize("penalty", [None, 1.5])
def test_margin_trees_that_read_more_nodes_than_they_verify(target, penalty):
    """The drafter's cache holds all that it reads: a target that drafts for itself is accepted to the end.

    With a penalty only if each node knows the tokens on its path.
    """
    options = decoding.DecodeOptions(
        scheme="gumbel_topk",
        temperature=1e-3,
        max_new_tokens=64,
        tree=MarginTree(6, 6, frontier=8, children=8),
        repetition_penalty=penalty,
    )
    prompts = [list(range(1, 17))] * 2
    rounds = decoding.stream(KEY, target, target, prompts, options=options)
    assert [len(new[0]) for new in rounds] == [7] * 9 + [1]
