"""Block verification against its weights, and against traversal of one chain."""

import itertools

import numpy as np
import pytest

from gls_jax import schemes
from tests import oracles
from tests.schemes.scheme_trials import ALPHA, TRIALS
from tests.schemes.tree_rounds import DRAFT, LENGTH, TARGET, TOKENS, generator, keys

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_block_is_traversal_of_one_chain():
    """The same noise, and so the same path and token.

    The one race of `traversal` is the first stream of `block`: the drafts are the same too.
    """
    block_tokens, block_accepted = generator(schemes.get("block"), 1, 3)(keys())
    tokens, accepted = generator(schemes.get("traversal"), 1, 3)(keys())
    np.testing.assert_array_equal(block_tokens, tokens)
    np.testing.assert_array_equal(block_accepted, accepted)


def test_accepted_length_is_that_of_the_weights():
    """P(at least i accepted) = E[w_i], by enumeration; token by token the product of min(1, q / p)."""
    block, single = np.zeros(LENGTH), np.zeros(LENGTH)
    for drafts in itertools.product(range(TOKENS), repeat=LENGTH):
        previous, draft_prob = -1, 1.0
        weights, products = [1.0], [1.0]
        for t, x in enumerate(drafts):
            p, q = DRAFT[t, previous + 1, x], TARGET[t, previous + 1, x]
            previous, draft_prob = x, draft_prob * p
            weights.append(min(1, weights[-1] * q / p) if p else 0)
            products.append(products[-1] * min(1, q / p) if p else 0)
        block += draft_prob * np.array(weights[1:])
        single += draft_prob * np.array(products[1:])
    assert block.sum() > single.sum() + 0.01
    for name, expected in (("block", block), ("single", single)):
        _, accepted = generator(schemes.get(name), 1, 3)(keys())
        for i in range(LENGTH):
            assert oracles.binomial(int((accepted > i).sum()), TRIALS, expected[i]) > ALPHA
