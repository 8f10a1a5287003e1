"""Trees of drafts.

The root of a tree is the text so far; each of its `n` nodes is a drafted token, and a node's parent
is the node, or root, that it was drafted after. K chains of length L, static trees and trees whose
shape is chosen anew every round are the same data. Siblings with equal tokens stay separate nodes.

**Rows.** Some arrays have a row for the root and for every node: row 0 (:data:`ROOT`) is the
root's, and row ``i + 1`` is that of node `i` (:func:`row_of_node`). The target's log-probabilities
are such an array, `[n + 1, N]`. :attr:`Tree.parents` holds rows: 0 for a child of the root,
``i + 1`` for a child of node `i`.

**Draft index.** A node's draft index is its index in the list that `propose` drafted after its
parent. Where a list holds independent samples, chain `k` has draft index `k` at every depth. Where
it holds the ranks of one race (``Scheme.ranked``), siblings take the ranks 0, 1, ... without gaps.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gls_jax import checks
from gls_jax.typing import Numbers

__all__ = [
    "ROOT",
    "Path",
    "Tree",
    "branching",
    "chain_draft_index",
    "chains",
    "node_of_row",
    "row_of_node",
]

ROOT = 0
"""Row of the root."""

_ARRAYS = ("tokens", "parents", "draft_index", "depths", "alive")


def row_of_node(node: jax.Array) -> jax.Array:
    """The row that belongs to this node."""
    return node + 1


def node_of_row(row: jax.Array) -> jax.Array:
    """The node whose row this is; -1 for the root's row."""
    return row - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """Drafts of one round, parents before children.

    Attributes:
        tokens: `i32[n]`, the drafted token of each node.
        parents: `i32[n]`, the row of each node's parent: 0 for the root, ``i + 1`` for node `i`.
        draft_index: `i32[n]`, index in the list that was drafted after the parent.
        depths: `i32[n]`, 0 for children of the root.
        alive: `bool[n]`, whether the node is used, so that arrays keep their shapes whatever the
            tree. It may depend on the tokens of the node's ancestors, but unless the scheme is
            strongly invariant on no other drafted token.
        depth: nodes of the longest path, static.
        list_size: length of the longest list drafted after one parent, static.
    """

    tokens: Int[Array, " n"]
    parents: Int[Array, " n"]
    draft_index: Int[Array, " n"]
    depths: Int[Array, " n"]
    alive: Bool[Array, " n"]
    depth: int = dataclasses.field(metadata={"static": True})
    list_size: int = dataclasses.field(metadata={"static": True})

    def check(self) -> None:
        """Check that this is a tree; values are checked only where they are not traced.

        Raises:
            ValueError: shapes or types that differ, or values that are not those of a tree.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name, array in arrays.items():
            _check_shape(name, array, np.shape(self.tokens))
        if any(isinstance(array, jax.core.Tracer) for array in arrays.values()):
            return
        parents, draft_index, depths, alive = (np.asarray(arrays[name]) for name in _ARRAYS[1:])
        # A parent comes before its child, so its row is at most the child's own number.
        own_number = np.arange(len(parents))
        _check_range("parents", parents, own_number, alive)
        last_index = np.full_like(own_number, self.list_size - 1)
        _check_range("draft_index", draft_index, last_index, alive)
        _check_depths(parents, depths, alive, self.depth)
        siblings = np.stack([parents, draft_index], axis=1)[alive]
        if len(np.unique(siblings, axis=0)) < len(siblings):
            raise ValueError(
                "tree.draft_index: expected different draft_index for the children of one parent, "
                "got one twice"
            )


def _check_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    kind = np.bool_ if name == "alive" else np.integer
    has_shape = len(shape) == 1 and np.shape(array) == shape
    if not has_shape or not jnp.issubdtype(array.dtype, kind):
        raise ValueError(
            f"tree.{name}: expected {kind.__name__} of shape [n], one for each token, "
            f"got {array.dtype} of shape {list(np.shape(array))}"
        )


def _check_range(name: str, values: np.ndarray, last: np.ndarray, alive: np.ndarray) -> None:
    is_wrong = alive & ((values < 0) | (values > last))
    if is_wrong.any():
        node = int(is_wrong.argmax())
        raise ValueError(
            f"tree.{name}: expected 0..{last[node]} for node {node}, got {values[node]}"
        )


def _check_depths(parents: np.ndarray, depths: np.ndarray, alive: np.ndarray, depth: int) -> None:
    """Depths that follow from the parents, which must be alive."""
    expected = np.zeros(len(parents), int)
    for node in np.flatnonzero(alive):
        if parents[node] == ROOT:
            continue
        parent = node_of_row(parents[node])
        expected[node] = expected[parent] + 1
        if not alive[parent]:
            raise ValueError(
                f"tree.alive: expected the parent of node {node} to be alive, got a dead one"
            )
    if (expected != depths)[alive].any() or expected[alive].max(initial=-1) >= depth:
        raise ValueError(
            f"tree.depths: expected {expected.tolist()} below depth {depth}, got {depths.tolist()}"
        )


class Path(NamedTuple):
    """The part of a tree that the target accepts.

    Attributes:
        nodes: `i32[depth]`, the accepted nodes from the root down, then -1.
        length: `i32[]`, how many are accepted.
        token: `i32[]`, the token to emit after them.
    """

    nodes: Int[Array, " depth"]
    length: Int[Array, ""]
    token: Int[Array, ""]


def chain_draft_index(tokens: Int[Array, "K L"], *, ranked: bool) -> Int[Array, "K L"]:
    """Draft index of every position of K chains; at `t` it depends on the tokens before `t`.

    Args:
        tokens: `[K, L]`.
        ranked: `Scheme.ranked`; if False chain `k` has draft index `k` at every position.

    >>> import jax.numpy as jnp
    >>> from gls_jax.schemes import draft_tree
    >>> draft_tree.chain_draft_index(jnp.array([[5, 7], [6, 7], [5, 8]]), ranked=True).tolist()
    [[0, 0], [1, 0], [2, 1]]
    """
    num_chains, length = tokens.shape
    if not ranked:
        chain_numbers = jnp.arange(num_chains, dtype=jnp.int32)
        return jnp.broadcast_to(chain_numbers[:, None], tokens.shape)
    # Chains whose tokens before t agree draft from one list: the ranks go to them in their order,
    # so that a chain's rank is the number of earlier chains with the same tokens before t.
    has_same_token = tokens[:, None, :] == tokens[None, :, :]  # [chain, other chain, position]
    before = jnp.pad(has_same_token, ((0, 0), (0, 0), (1, 0)), constant_values=True)
    has_same_prefix = jnp.cumprod(before, axis=-1)[..., :length]
    is_earlier = jnp.tril(jnp.ones((num_chains, num_chains), bool), -1)[..., None]
    same_and_earlier = has_same_prefix * is_earlier.astype(has_same_prefix.dtype)
    return jnp.sum(same_and_earlier, axis=1, dtype=jnp.int32)


def chains(tokens: Numbers, *, ranked: bool = False) -> Tree:
    """K chains of length L as a tree; node ``k L + t`` is position `t` of chain `k`.

    Args:
        tokens: `[K, L]`, the drafts.
        ranked: `Scheme.ranked` of the scheme that drafted them.

    Raises:
        ValueError: `tokens` are not integers of shape `[K, L]`, or `K` or `L` is 0.

    >>> import jax.numpy as jnp
    >>> from gls_jax.schemes import draft_tree
    >>> draft_tree.chains(jnp.array([[5, 7], [6, 7]])).parents.tolist()
    [0, 1, 0, 3]
    """
    tokens = checks.integers(tokens, "tokens", "[K, L]")
    num_chains, length = tokens.shape
    if not tokens.size:
        raise ValueError(f"tokens: expected shape [K, L] with K, L >= 1, got {list(tokens.shape)}")
    node = jnp.arange(num_chains * length, dtype=jnp.int32)
    return Tree(
        tokens=tokens.ravel(),
        # Within a chain the parent of node i is node i - 1, whose row is i.
        parents=jnp.where(node % length == 0, ROOT, node),
        draft_index=chain_draft_index(tokens, ranked=ranked).ravel(),
        depths=node % length,
        alive=jnp.ones(node.shape, bool),
        depth=length,
        list_size=num_chains,
    )


def branching(widths: tuple[int, ...]) -> Tree:
    """The static tree in which every parent of nodes at depth `d` has ``widths[d]`` children.

    Tokens are 0, to be filled in. The arrays are NumPy's: a shape that is known before tracing
    stays known inside `jit`.

    Args:
        widths: number of children at each depth, static.

    >>> from gls_jax.schemes import draft_tree
    >>> shape = draft_tree.branching((2, 1))
    >>> shape.parents.tolist(), shape.draft_index.tolist()
    ([0, 0, 1, 2], [0, 1, 0, 0])
    """
    parents: list[int] = []
    draft_index: list[int] = []
    depths: list[int] = []
    parent_rows = [ROOT]
    for depth, width in enumerate(checks.counts(widths, "widths")):
        first_row = len(parents) + 1
        for parent in parent_rows:
            parents += [parent] * width
            draft_index += range(width)
            depths += [depth] * width
        parent_rows = list(range(first_row, len(parents) + 1))
    num_nodes = len(parents)
    return Tree(
        tokens=np.zeros(num_nodes, np.int32),  # type: ignore[arg-type]
        parents=np.array(parents, np.int32),  # type: ignore[arg-type]
        draft_index=np.array(draft_index, np.int32),  # type: ignore[arg-type]
        depths=np.array(depths, np.int32),  # type: ignore[arg-type]
        alive=np.ones(num_nodes, bool),  # type: ignore[arg-type]
        depth=len(widths),
        list_size=max(widths),
    )
