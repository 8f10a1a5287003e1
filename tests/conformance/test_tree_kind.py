"""Verifiers of trees: schemes pass through an adapter, pruned trees are found."""

import jax
import jax.numpy as jnp
import pytest

from gls_jax import conformance, schemes

pytestmark = pytest.mark.usefixtures("quick_compilation")


def check(verifier, problems=("plain",), num_trials=20_000, **options):
    return conformance.check(
        verifier, kind="tree", seed=1, problems=problems, num_trials=num_trials, **options
    )


def adapter(name, *, keeps=lambda tokens: jnp.ones(tokens.shape, bool), key_of=lambda key: key):
    """`verify_tree` of a scheme with the signature of the kit."""
    scheme = schemes.get(name)

    def verify(key, tokens, parents, draft_probs, target_probs):
        num_nodes = len(tokens)
        order = jnp.arange(num_nodes)
        # Siblings are numbered in their order, and a node is one deeper than its parent.
        is_earlier_sibling = (parents[:, None] == parents) & (order[:, None] > order)
        depths, kept = jnp.zeros(num_nodes, jnp.int32), keeps(tokens)
        alive = kept
        for node in range(1, num_nodes):
            has_parent = parents[node] > 0
            above = parents[node] - 1
            depth = jnp.where(has_parent, depths[above] + 1, 0)
            depths = depths.at[node].set(depth)
            alive = alive.at[node].set(kept[node] & (alive[above] | ~has_parent))
        index = is_earlier_sibling.sum(1).astype(jnp.int32)
        list_size = scheme.max_drafts or num_nodes
        tree = schemes.Tree(tokens, parents, index, depths, alive, num_nodes, list_size)
        log_p, log_q = jnp.log(draft_probs), jnp.log(target_probs)
        path = scheme.verify_tree(key_of(key), 0, tree, log_p, log_q)
        accepted = jnp.where(path.nodes >= 0, tokens[path.nodes], -1)
        return jnp.append(accepted, -1).at[path.length].set(path.token)

    return verify


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("block", {"max_drafts": 1}),
        ("traversal", {"without_replacement": True}),
    ],
)
def test_schemes_pass(name, options):
    report = check(adapter(name), **options)
    assert report.passed, str(report)


def test_a_tree_that_is_pruned_by_its_tokens_is_found():
    pruned = adapter("specinfer", keeps=lambda tokens: tokens > 0)
    report = check(pruned, ("plain",), separate_keys=True)
    assert "emitted distribution" in [finding.check for finding in report.findings]


def test_one_key_for_all_calls_is_found():
    def verify(*arguments):
        return adapter("specinfer", key_of=lambda key: jax.random.key(0))(*arguments)

    report = check(verify, ("plain",), max_drafts=1, separate_keys=True)
    assert [finding.check for finding in report.findings] == ["emitted distribution"]


@pytest.mark.parametrize("is_same", [False, True])
def test_one_uniform_for_all_siblings_is_found(is_same):
    """Recursive rejection of the children of the root; only the planted defect is found."""

    def verify(key, tokens, parents, draft_probs, target_probs):
        uniforms = jax.random.uniform(jax.random.fold_in(key, 1), tokens.shape)
        uniforms = jnp.where(is_same, uniforms[0], uniforms)
        p, left, token = draft_probs[0], target_probs[0], -1
        for node in range(len(tokens)):
            is_child = parents[node] == 0
            passes = uniforms[node] * p[tokens[node]] < left[tokens[node]]
            token = jnp.where(is_child & passes & (token < 0), tokens[node], token)
            residual = jnp.maximum(left - p, 0)
            total = residual.sum()
            residual = jnp.where(total > 0, residual / jnp.maximum(total, 1e-30), left)
            left = jnp.where(is_child & (token < 0), residual, left)
        last = jax.random.categorical(jax.random.fold_in(key, 2), jnp.log(left))
        token = jnp.where(token < 0, last, token)
        return jnp.full(len(tokens) + 1, -1).at[0].set(token)

    report = check(verify, ("second test",), num_trials=100_000, separate_keys=True)
    found = {finding.check: finding.problem for finding in report.findings}
    assert found == ({"emitted distribution": "second test"} if is_same else {}), str(report)


def test_what_is_no_path_is_named():
    def verify(key, tokens, parents, draft_probs, target_probs):
        return jnp.pad((tokens[:2] + 1) % 3, (0, len(tokens)), constant_values=-1)

    report = check(verify, ("plain",), max_drafts=1, num_trials=200)
    assert "expected a path of the tree" in report.findings[0].message
