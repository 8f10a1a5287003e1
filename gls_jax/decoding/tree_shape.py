"""Shapes of draft trees, and who sees whom in them."""

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
    """A tree whose shape is chosen anew every round, for `gumbel_topk` (this library's).

    Under a strongly invariant scheme the text never depends on the drafts, so the drafter may
    choose any tree, looking at its law and at the shared clocks. And the clocks tell it much: the
    target emits ``argmax(log q_i - log E_i)``, the drafter sees ``s_i = log p_i - log E_i``, and a
    wide gap between its first and second `s` means that the first is nearly sure. The chance of
    child `i` is estimated as ``softmax(s_i / tau)`` over the first `children`, `tau` by maximum
    likelihood from the rounds so far, multiplied along the path; the best `budget` nodes are
    verified.

    Attributes:
        budget: nodes the target verifies in a round.
        depth: longest path.
        frontier: contexts the drafter looks at in one call.
        children: candidates at one context.

    >>> from gls_jax import decoding
    >>> decoding.MarginTree(budget=32, depth=4).frontier
    8
    """

    budget: int = 32
    depth: int = 4
    frontier: int = 0  # 0 = a quarter of the budget, at most `children`
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
        candidates = self.children * (1 + (self.depth - 1) * self.frontier)
        if self.budget > candidates:
            raise ValueError(
                f"MarginTree.budget: expected at most children * (1 + (depth - 1) * frontier) = {candidates}, "
                f"got {self.budget}"
            )


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is drafted in a round: `widths` children at each depth, K chains being `(K, 1, 1, ...)`,
    or a margin tree.

    Attributes:
        widths: children of every context, by depth; empty for plain generation.
        chains: whether each child of the root goes on as a chain with a draft index of its own.
        list_size: longest list at one context.
        margin: set for a margin tree; `widths` is then empty.
    """

    widths: tuple[int, ...]
    chains: bool
    list_size: int
    margin: MarginTree | None = None

    @property
    def depth(self) -> int:
        """Longest path."""
        return self.margin.depth if self.margin else len(self.widths)

    @property
    def num_nodes(self) -> int:
        """Nodes that the target verifies in one call."""
        return self.margin.budget if self.margin else len(self.tree().tokens) if self.widths else 0

    @property
    def num_read(self) -> int:
        """Nodes that a drafter reads in a round."""
        return (self.margin.depth - 1) * self.margin.frontier if self.margin else self.num_nodes

    def tree(self) -> Tree:
        """The static tree, level by level; tokens, and the draft indices of ranked chains, are to be filled
        in.
        """
        tree = branching(self.widths)
        if self.chains:
            draft_index = np.arange(tree.tokens.shape[0], dtype=np.int32) % self.list_size
            tree = dataclasses.replace(tree, draft_index=draft_index)  # type: ignore[arg-type]
        return tree


def shape_of(
    scheme: Scheme, num_drafts: int, draft_length: int, tree: Sequence[int] | MarginTree | None
) -> Shape:
    """The shape that was asked for.

    Raises:
        ValueError: what the scheme cannot verify.
    """
    if tree is None:
        scheme.check_num_drafts(num_drafts)
        length = checks.count(draft_length, "draft_length")
        return Shape((num_drafts,) + (1,) * (length - 1), True, num_drafts)
    if isinstance(tree, MarginTree):
        if scheme.name != "gumbel_topk":
            raise ValueError(
                f"tree: expected scheme 'gumbel_topk' for a margin tree, got '{scheme.name}'"
            )
        return Shape((), False, tree.children, tree)
    widths = checks.counts(tree, "tree")
    scheme.check_num_drafts(max(widths))
    return Shape(widths, False, max(widths))


def ancestors(parents: Int[Array, "*b n"], depth: int) -> Bool[Array, "*b c c"]:
    """Which contexts lie on the way to each context, itself and the root included; `c = n + 1`.

    Args:
        parents: as in :class:`gls_jax.schemes.Tree`.
        depth: longest path, static.

    >>> import jax.numpy as jnp
    >>> from gls_jax.decoding import tree_shape
    >>> tree_shape.ancestors(jnp.array([0, 0, 1]), 2).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    size = parents.shape[-1] + 1
    up = jnp.concatenate([jnp.zeros((*parents.shape[:-1], 1), parents.dtype), parents], axis=-1)
    own = jnp.broadcast_to(jnp.eye(size, dtype=bool), (*up.shape, size))
    seen = own
    for _ in range(depth):
        seen = own | jnp.take_along_axis(seen, up[..., None], axis=-2)
    return seen
