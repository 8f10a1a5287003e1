"""Input validation of :meth:`gls_jax.schemes.Scheme.verify_tree`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jaxtyping import PRNGKeyArray

from gls_jax import checks, races
from gls_jax.schemes.draft_tree import Tree
from gls_jax.typing import Index, LogProbs

if TYPE_CHECKING:
    from gls_jax.schemes.scheme import Scheme

__all__ = ["checked_tree_problem"]


def checked_tree_problem(
    scheme: Scheme,
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: LogProbs | None,
    log_q: LogProbs,
) -> tuple[jax.Array, jax.Array]:
    """Both log-probabilities of a tree as arrays `[n, N]` and `[n + 1, N]`.

    Without `log_p` the target's rows replace it. The scheme does not read them; they allow the same
    call for every scheme.

    Raises:
        ValueError: what `Scheme.verify_tree` documents.
    """
    checks.key(key)
    if not isinstance(tree, Tree):
        raise ValueError(f"tree: expected a gls_jax.schemes.Tree, got {type(tree).__name__}")
    tree.check()
    scheme.check_num_drafts(tree.list_size)
    num_nodes = tree.tokens.shape[0]
    target = checks.distribution_rows(log_q, num_nodes + 1, "log_q")
    checks.alive_rows(log_q, tree.alive, "log_q", root=True)
    if num_nodes == 0:
        return target[1:], target

    if log_p is None and scheme.needs_draft_probs:
        raise ValueError(
            f"log_p: scheme '{scheme.name}' needs the distribution each node was drafted from, "
            "got None"
        )
    draft = target[1:] if log_p is None else checks.distribution_rows(log_p, num_nodes, "log_p")
    draft, target = checks.same_categories(draft, target)
    if log_p is not None:
        checks.alive_rows(log_p, tree.alive, "log_p")
    # Positions are folded into the key, also the one after the deepest leaf; 2^32 - 1 is the
    # private fold.
    checks.index(position, "position", last=2**32 - 2 - tree.depth)
    checks.alive_tokens(tree.tokens, tree.alive, target.shape[1], "tree.tokens")
    if scheme.needs_draft_probs:
        checks.possible_tokens(tree.tokens, draft, tree.alive, races.LIGHTEST, "tree.tokens")
        if not scheme.diverse:
            owner = f"scheme '{scheme.name}'"
            checks.siblings_share_distribution(draft, tree.parents, tree.alive, owner)
    return draft, target
