"""Shapes of draft trees, and the ancestors of their nodes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from itertools import accumulate

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gls_jax import checks
from gls_jax.schemes import Scheme, Tree, branching

__all__ = ["BestFirstTree", "DynamicTree", "MarginTree", "Shape", "ancestors", "shape_of"]

LARGEST_TREE = 8192
"""Most nodes of a tree, and most that a drafter reads: the arrays of a round are that long."""

DEEPEST_TREE = 64
"""Longest path of a dynamic tree."""


@dataclasses.dataclass(frozen=True)
class DynamicTree:
    """A tree whose shape is chosen anew in every round; see its kinds below.

    Under a strongly invariant scheme the text never depends on the drafts. So the drafter may
    choose any tree, also one that depends on the tokens that it has drafted. It estimates how
    probably the target emits each of the first `children` tokens at a node, multiplies along the
    path, and the `budget` most probable nodes are verified. In each call the drafter reads the
    `frontier` most probable nodes that it has not read, and it stops when no unread node could have
    a child in the tree.

    Attributes:
        budget: nodes that the target verifies in a round.
        depth: length of the longest path, and most calls of the drafter.
        frontier: nodes that the drafter reads in one call; 0 takes a quarter of the budget, at most
            `children`.
        children: candidates at each node.
    """

    budget: int = 32
    depth: int = 4
    frontier: int = 0
    children: int = 8

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name in ("budget", "depth", "children"):
            size = checks.count(getattr(self, name), f"{kind}.{name}")
            largest = DEEPEST_TREE if name == "depth" else LARGEST_TREE
            if size > largest:
                raise ValueError(f"{kind}.{name}: expected at most {largest}, got {size}")
            object.__setattr__(self, name, size)
        frontier = self.frontier or min(self.children, max(1, self.budget // 4))
        object.__setattr__(self, "frontier", checks.count(frontier, f"{kind}.frontier"))
        # The second call reads candidates of the root alone, and there are `children` of them.
        if frontier > self.children:
            raise ValueError(
                f"{kind}.frontier: expected at most children ({self.children}), got {frontier}"
            )
        if self.num_read > LARGEST_TREE:
            raise ValueError(
                f"{kind}.frontier: expected (depth - 1) * frontier of at most {LARGEST_TREE}, "
                f"got {self.num_read}"
            )
        num_candidates = self.children * (1 + self.num_read)
        if self.budget > num_candidates:
            raise ValueError(
                f"{kind}.budget: expected at most children * (1 + (depth - 1) * frontier) = "
                f"{num_candidates}, got {self.budget}"
            )

    @property
    def num_read(self) -> int:
        """Most nodes that the drafter reads in a round, after the text."""
        return (self.depth - 1) * self.frontier


@dataclasses.dataclass(frozen=True)
class MarginTree(DynamicTree):
    """A dynamic tree that reads the shared noise, for `gumbel_topk` (this library's method).

    The noise is informative: the target emits ``argmax_i(log q_i - log E_i)``, and the drafter sees
    ``log p_i - log E_i``. A wide margin between its first and its second token means that the
    target's token is almost surely the first. :mod:`gls_jax.decoding.margin` has the estimate and
    how it is fitted to the rounds so far.

    At temperature 0 nothing is random and the noise tells nothing. The tree then has the likeliest
    tokens under the drafter's distribution at temperature 1, in place of 0, as a
    :class:`BestFirstTree` has.

    >>> from gls_jax import decoding
    >>> decoding.MarginTree(budget=32, depth=4).frontier
    8
    """


@dataclasses.dataclass(frozen=True)
class BestFirstTree(DynamicTree):
    """A dynamic tree of the likeliest paths under the draft distributions, for `topk`.

    The probability of a child is its draft probability. The children of a node are the likeliest
    tokens, so the tree has the paths with the largest products: the rule of EAGLE-2 (arXiv
    2406.16858) and of DDTree. It is the baseline of a :class:`MarginTree` with as many nodes.

    >>> from gls_jax import decoding
    >>> decoding.BestFirstTree(budget=16, depth=3).children
    8
    """


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of the drafts of a round: K chains, a static or a dynamic tree, or nothing.

    Attributes:
        widths: numbers of children at each depth, `(K, 1, 1, ...)` for K chains; empty for a
            dynamic tree and for plain generation.
        is_chains: whether each child of the root begins a chain with a fixed draft index.
        list_size: length of the longest list proposed at one node.
        dynamic: the dynamic tree, if it is one.
    """

    widths: tuple[int, ...]
    is_chains: bool
    list_size: int
    dynamic: DynamicTree | None = None

    @property
    def depth(self) -> int:
        """Length of the longest path."""
        return self.dynamic.depth if self.dynamic else len(self.widths)

    @property
    def num_nodes(self) -> int:
        """Nodes that the target verifies in one call."""
        if self.dynamic:
            return self.dynamic.budget
        return int(np.cumprod(self.widths).sum())

    @property
    def num_read(self) -> int:
        """Nodes that a drafter reads in a round."""
        if self.dynamic:
            return self.dynamic.num_read
        return self.num_nodes

    def tree(self) -> Tree:
        """The static tree, level by level.

        Its tokens are still to be filled in, and for a scheme with `ranked` the draft indices of
        chains too: there they depend on the tokens.
        """
        tree = branching(self.widths)
        if self.is_chains:
            draft_index = np.arange(tree.tokens.shape[0], dtype=np.int32) % self.list_size
            tree = dataclasses.replace(tree, draft_index=draft_index)  # type: ignore[arg-type]
        return tree


def shape_of(
    scheme: Scheme,
    num_drafts: int,
    draft_length: int,
    tree: Sequence[int] | DynamicTree | None,
) -> Shape:
    """The shape that these options describe.

    Raises:
        ValueError: a shape that the scheme cannot verify.
    """
    if tree is None:
        scheme.check_num_drafts(num_drafts)
        length = checks.count(draft_length, "draft_length")
        if num_drafts * length > LARGEST_TREE:
            raise ValueError(
                f"draft_length: expected num_drafts * draft_length of at most {LARGEST_TREE}, "
                f"got {num_drafts * length}"
            )
        widths = (num_drafts,) + (1,) * (length - 1)
        return Shape(widths=widths, is_chains=True, list_size=num_drafts)
    if isinstance(tree, DynamicTree):
        _check_fits(scheme, tree)
        return Shape(widths=(), is_chains=False, list_size=tree.children, dynamic=tree)
    widths = checks.counts(tree, "tree")
    scheme.check_num_drafts(max(widths))
    # Plain integers: those of NumPy would overflow.
    num_nodes = sum(accumulate(widths, operator.mul))
    if num_nodes > LARGEST_TREE:
        raise ValueError(f"tree: expected at most {LARGEST_TREE} nodes, got {num_nodes}")
    return Shape(widths=widths, is_chains=False, list_size=max(widths))


def _check_fits(scheme: Scheme, tree: DynamicTree) -> None:
    """Raise `ValueError` for a dynamic tree whose candidates are not the lists of the scheme."""
    if isinstance(tree, BestFirstTree):
        # The lists are the likeliest tokens if no noise is in them.
        if scheme.samples_drafts or not scheme.ranked:
            raise ValueError(
                f"tree: expected scheme 'topk' for a best-first tree, got '{scheme.name}'"
            )
    # No field of a scheme says whether it fits a margin tree. Strong invariance allows nodes to be
    # chosen by their tokens, and `ranked` gives each node the ranks of one race. But the scores are
    # those of the race of `gumbel_topk`, with one exponential per token and distinct ranks;
    # `poisson` has both fields and another race.
    elif isinstance(tree, MarginTree):
        if scheme.name != "gumbel_topk":
            raise ValueError(
                f"tree: expected scheme 'gumbel_topk' for a margin tree, got '{scheme.name}'"
            )
    else:
        raise ValueError(f"tree: expected a BestFirstTree or a MarginTree, got {tree}")


def ancestors(parents: Int[Array, "*b n"], depth: int) -> Bool[Array, "*b c c"]:
    """Which of the `c = n + 1` tree nodes, root included, are on the path from the root to each.

    Args:
        parents: as in :class:`gls_jax.schemes.Tree`; 0 is the root.
        depth: length of the longest path, static.

    Returns:
        ``[..., i, j]`` is true where `j` is an ancestor of `i`, or `i` itself.

    >>> import jax.numpy as jnp
    >>> from gls_jax.decoding import tree_shape
    >>> tree_shape.ancestors(jnp.array([0, 0, 1]), 2).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    num_nodes = parents.shape[-1] + 1
    root_parent = jnp.zeros((*parents.shape[:-1], 1), parents.dtype)
    parent_of = jnp.concatenate([root_parent, parents], axis=-1)
    itself = jnp.broadcast_to(jnp.eye(num_nodes, dtype=bool), (*parent_of.shape, num_nodes))
    is_ancestor = itself
    # Each step adds the ancestors of the parents, one level more.
    for _ in range(depth):
        is_ancestor = itself | jnp.take_along_axis(is_ancestor, parent_of[..., None], axis=-2)
    return is_ancestor
