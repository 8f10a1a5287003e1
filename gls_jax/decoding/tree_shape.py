"""Shapes of draft trees, and the ancestors of their nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gls_jax import checks
from gls_jax.schemes import Scheme, Tree, branching

__all__ = ["MarginTree", "Shape", "ancestors", "shape_of"]


@dataclasses.dataclass(frozen=True)
class MarginTree:
    """A tree whose shape is chosen anew in every round, for `gumbel_topk` (this library's method).

    Under a strongly invariant scheme the text never depends on the drafts. So the drafter may
    choose any tree, and may look at its own distribution and at the shared noise while it
    chooses. The noise is informative: the target emits ``argmax_i(log q_i - log E_i)``, and the
    drafter sees ``s_i = log p_i - log E_i``. A wide margin between its first and second `s` means
    that the target's token is almost surely the first. The probability of child `i` is estimated
    as ``softmax(s_i / tau)`` over the first `children`, with the `tau` of maximum likelihood in
    the rounds so far. Multiplied along the path it is the probability that the target emits the
    path, and the `budget` most probable nodes are verified.

    Attributes:
        budget: nodes that the target verifies in a round.
        depth: length of the longest path.
        frontier: nodes that the drafter reads in one call; 0 takes a quarter of the budget, at most
            `children`.
        children: candidates at each node.

    >>> from gls_jax import decoding
    >>> decoding.MarginTree(budget=32, depth=4).frontier
    8
    """

    budget: int = 32
    depth: int = 4
    frontier: int = 0
    children: int = 8

    def __post_init__(self) -> None:
        for name in ("budget", "depth", "children"):
            object.__setattr__(self, name, checks.count(getattr(self, name), f"MarginTree.{name}"))
        frontier = self.frontier or min(self.children, max(1, self.budget // 4))
        object.__setattr__(self, "frontier", checks.count(frontier, "MarginTree.frontier"))
        if frontier > self.children:
            raise ValueError(
                f"MarginTree.frontier: expected at most children ({self.children}), got {frontier}"
            )
        num_candidates = self.children * (1 + (self.depth - 1) * self.frontier)
        if self.budget > num_candidates:
            raise ValueError(
                "MarginTree.budget: expected at most children * (1 + (depth - 1) * frontier) = "
                f"{num_candidates}, got {self.budget}"
            )


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of the drafts of a round: K chains, a static tree, a margin tree, or nothing.

    Attributes:
        widths: numbers of children at each depth, `(K, 1, 1, ...)` for K chains; empty for a margin
            tree and for plain generation.
        is_chains: whether each child of the root begins a chain with a fixed draft index.
        list_size: length of the longest list proposed at one node.
        margin: the margin tree, if it is one.
    """

    widths: tuple[int, ...]
    is_chains: bool
    list_size: int
    margin: MarginTree | None = None

    @property
    def depth(self) -> int:
        """Length of the longest path."""
        return self.margin.depth if self.margin else len(self.widths)

    @property
    def num_nodes(self) -> int:
        """Nodes that the target verifies in one call."""
        if self.margin:
            return self.margin.budget
        return int(np.cumprod(self.widths).sum())

    @property
    def num_read(self) -> int:
        """Nodes that a drafter reads in a round."""
        if self.margin:
            return (self.margin.depth - 1) * self.margin.frontier
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
    tree: Sequence[int] | MarginTree | None,
) -> Shape:
    """The shape that these options describe.

    Raises:
        ValueError: a shape that the scheme cannot verify.
    """
    if tree is None:
        scheme.check_num_drafts(num_drafts)
        length = checks.count(draft_length, "draft_length")
        widths = (num_drafts,) + (1,) * (length - 1)
        return Shape(widths=widths, is_chains=True, list_size=num_drafts)
    if isinstance(tree, MarginTree):
        # No field of a scheme says whether it fits a margin tree. Strong invariance allows nodes
        # to be chosen by their tokens, and `ranked` gives each node the ranks of one race. But the
        # scores are those of the race of `gumbel_topk`, with one exponential per token and
        # distinct ranks; `poisson` has both fields and another race.
        if scheme.name != "gumbel_topk":
            raise ValueError(
                f"tree: expected scheme 'gumbel_topk' for a margin tree, got '{scheme.name}'"
            )
        return Shape(widths=(), is_chains=False, list_size=tree.children, margin=tree)
    widths = checks.counts(tree, "tree")
    scheme.check_num_drafts(max(widths))
    return Shape(widths=widths, is_chains=False, list_size=max(widths))


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
