"""Shapes of draft trees and their ancestors."""

import jax.numpy as jnp
import numpy as np

from gls_jax import schemes
from gls_jax.decoding import tree_shape


def test_ancestors():
    rng = np.random.default_rng(0)
    for _ in range(20):
        parents = np.array([rng.integers(0, i + 1) for i in range(9)])
        expected = np.eye(10, dtype=bool)
        for node in range(10):
            ancestor = node
            while ancestor:
                ancestor = parents[ancestor - 1]
                expected[node, ancestor] = True
        np.testing.assert_array_equal(tree_shape.ancestors(jnp.asarray(parents), 9), expected)


def test_number_of_nodes():
    for widths in ((), (3,), (3, 1, 1), (3, 2, 1)):
        shape = tree_shape.Shape(widths=widths, is_chains=False, list_size=3)
        nodes_of_tree = len(schemes.branching(widths).tokens) if widths else 0
        assert shape.num_nodes == nodes_of_tree
