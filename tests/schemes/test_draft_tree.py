"""What is not a tree, or does not fit one, is refused with its name and what was expected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from tests.schemes.tree_rounds import LOG_DRAFT, LOG_TARGET

pytestmark = pytest.mark.usefixtures("quick_compilation")

TREE = schemes.chains(jnp.zeros((2, 2), int))  # parents 0, 1, 0, 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(parents=[0, 3, 0, 1]), "tree.parents: expected 0..1 for node 1, got 3"),
        (dict(parents=[0, 1, -1, 1]), "tree.parents: expected 0..2 for node 2, got -1"),
        (dict(draft_index=[0, 0, 2, 0]), "tree.draft_index: expected 0..1 for node 2, got 2"),
        (
            dict(draft_index=[0, 0, 0, 0]),
            "tree.draft_index: expected different draft_index for the children of one parent",
        ),
        (
            dict(alive=[False, True, True, True]),
            "tree.alive: expected the parent of node 1 to be alive",
        ),
        (
            dict(depths=[0, 0, 0, 0]),
            r"tree.depths: expected \[0, 1, 0, 1\] below depth 2, got \[0, 0, 0, 0\]",
        ),
        (
            dict(draft_index=[0, 0, 0]),
            r"tree.draft_index: expected integer of shape \[n\], one for each token, got int",
        ),
        (dict(alive=[1, 1, 1, 1]), r"tree.alive: expected bool of shape \[n\]"),
    ],
)
def test_bad_trees(fields, message):
    arrays = {name: np.array(values) for name, values in fields.items()}
    check_refusal(message, tree=dataclasses.replace(TREE, **arrays))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tree=3), "tree: expected a gls_jax.schemes.Tree, got int"),
        (dict(log_q=LOG_TARGET[0, :2]), r"log_q: expected shape \[5, N\]"),
        (dict(log_p=LOG_TARGET[0, :2]), r"log_p: expected shape \[4, N\]"),
        (dict(position=1.5), "position: expected one int within 0..4294967292, got 1.5"),
        (dict(position=-1), r"position: expected one int within 0..\d+, got -1"),
        (dict(position=np.arange(2)), r"position: expected one int within 0..\d+, got ndarray"),
        (
            dict(name="spectr", log_p=LOG_DRAFT[0, np.array([0, 1, 1, 1])]),
            "scheme 'spectr' draws all siblings from one distribution, got different ones for nodes 0 and 2",
        ),
        (
            dict(log_p=jnp.log(jnp.eye(3)[np.ones(4, int)])),
            "tree.tokens: expected tokens of positive probability",
        ),
        (
            dict(log_p=None),
            "log_p: scheme 'specinfer' needs the distribution each node was drafted from, got None",
        ),
        (dict(key=3), "typed key"),
        (
            dict(tree=schemes.chains(jnp.full((2, 2), 3))),
            "tree.tokens: expected tokens within 0..2, got 3",
        ),
        (dict(name="block"), "scheme 'block' takes at most 1, got 2"),
    ],
)
def test_bad_input_to_verify_tree(change, message):
    check_refusal(message, **change)


KEY = jax.random.key(0)
LOG_P, LOG_Q = jnp.tile(LOG_DRAFT[0, 0], (4, 1)), jnp.tile(LOG_DRAFT[0, 0], (5, 1))


def check_refusal(
    message,
    *,
    name="specinfer",
    key=KEY,
    position=0,
    tree=TREE,
    log_p=LOG_P,
    log_q=LOG_Q,
):
    with pytest.raises(ValueError, match=message):
        schemes.get(name).verify_tree(key, position, tree, log_p, log_q)


@pytest.mark.parametrize("tokens", [jnp.zeros(3, int), jnp.zeros((2, 2))])
def test_chains_must_be_integers_of_two_axes(tokens):
    with pytest.raises(ValueError, match=r"tokens: expected integers of shape \[K, L\], got"):
        schemes.chains(tokens)


def test_chains_must_not_be_empty():
    message = r"tokens: expected shape \[K, L\] with K, L >= 1, got \[0, 2\]"
    with pytest.raises(ValueError, match=message):
        schemes.chains(jnp.zeros((0, 2), int))
