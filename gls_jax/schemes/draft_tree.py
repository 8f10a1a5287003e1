"""A tree of drafts, and the walk that lifts every token-level scheme to it.

A *context* is a place where a next token is wanted: context 0 is the text so far, context ``i + 1``
is that text followed by the drafts from the root to node `i`. K chains of length L, static trees
and trees whose shape is chosen anew every round are the same data; drafts that repeat one another
stay nodes of their own.

Each node has a *slot*: which draft it is in the list that `propose` gave at its context. Where a
list holds independent samples the r-th chain keeps slot r all along; where it holds the ranks of
one race (``Scheme.ranked``) the nodes at one context take ranks 0, 1, ... without gaps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.loops import varying_like
from gls_jax.typing import Index, Numbers

__all__ = ["Path", "Tree", "branching", "chain_draft_index", "chains", "walk"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """Drafts of one round, parents before children.

    Attributes:
        tokens: `i32[n]`, the drafted token of each node.
        parents: `i32[n]`, the context each was drafted at: 0 the root, ``i + 1`` after node `i`.
        draft_index: `i32[n]`, place in the list proposed at that context.
        depths: `i32[n]`, 0 for children of the root.
        alive: `bool[n]`, whether the node is used; shapes stay those of the budget. It may depend
            on the tokens of the node's ancestors, but unless the scheme is strongly invariant on no
            other drafted token.
        depth: longest path, static.
        list_size: longest list at one context, static.
    """

    tokens: Int[Array, " n"]
    parents: Int[Array, " n"]
    draft_index: Int[Array, " n"]
    depths: Int[Array, " n"]
    alive: Bool[Array, " n"]
    depth: int = dataclasses.field(metadata={"static": True})
    list_size: int = dataclasses.field(metadata={"static": True})

    def check(self) -> None:
        """Raise `ValueError` for shapes that differ and, where values are not traced, for what is
        not a tree.
        """
        fields = {
            name: getattr(self, name)
            for name in ("tokens", "parents", "draft_index", "depths", "alive")
        }
        size = np.shape(self.tokens)
        for name, value in fields.items():
            kind = np.bool_ if name == "alive" else np.integer
            if np.shape(value) != size or len(size) != 1 or not jnp.issubdtype(value.dtype, kind):
                got = f"{value.dtype} of shape {list(np.shape(value))}"
                raise ValueError(
                    f"tree.{name}: expected {kind.__name__} of shape [n], one for each token, got {got}"
                )
        if any(isinstance(value, jax.core.Tracer) for value in fields.values()):
            return
        _, parents, draft_index, depths, alive = (np.asarray(value) for value in fields.values())
        node = np.arange(size[0])
        for name, values, last in (
            ("parents", parents, node),
            ("draft_index", draft_index, np.full_like(node, self.list_size - 1)),
        ):
            wrong = alive & ((values < 0) | (values > last))
            if wrong.any():
                at = int(wrong.argmax())
                raise ValueError(
                    f"tree.{name}: expected 0..{last[at]} for node {at}, got {values[at]}"
                )
        expected = np.zeros(size[0], int)
        for at in node[alive]:
            expected[at] = expected[parents[at] - 1] + 1 if parents[at] else 0
            if parents[at] and not alive[parents[at] - 1]:
                raise ValueError(
                    f"tree.alive: expected the parent of node {at} to be alive, got a dead one"
                )
        if (expected != depths)[alive].any() or expected[alive].max(initial=-1) >= self.depth:
            raise ValueError(
                f"tree.depths: expected {expected.tolist()} below depth {self.depth}, got {depths.tolist()}"
            )
        places = np.stack([parents, draft_index], axis=1)[alive]
        if len(np.unique(places, axis=0)) < len(places):
            raise ValueError(
                "tree.draft_index: expected different draft_index for the children of one context, got one twice"
            )


class Path(NamedTuple):
    """What the target makes of a tree.

    Attributes:
        nodes: `i32[depth]`, the accepted nodes from the root down, then -1.
        length: `i32[]`, how many are accepted.
        token: `i32[]`, the token to emit after them.
    """

    nodes: Int[Array, " depth"]
    length: Int[Array, ""]
    token: Int[Array, ""]


def chain_draft_index(tokens: Int[Array, "K L"], *, ranked: bool) -> Int[Array, "K L"]:
    """The slot of every position of K chains; at position `t` it depends on the tokens before `t`
    only.

    Args:
        tokens: `[K, L]`.
        ranked: `Scheme.ranked`; False gives every chain its own slot throughout.

    >>> import jax.numpy as jnp
    >>> from gls_jax.schemes import draft_tree
    >>> draft_tree.chain_draft_index(jnp.array([[5, 7], [6, 7], [5, 8]]), ranked=True).tolist()
    [[0, 0], [1, 0], [2, 1]]
    """
    num_chains, length = tokens.shape
    if not ranked:
        return jnp.broadcast_to(jnp.arange(num_chains, dtype=jnp.int32)[:, None], tokens.shape)
    same = tokens[:, None, :] == tokens[None, :, :]  # [chain, other, position]
    together = jnp.cumprod(jnp.pad(same, ((0, 0), (0, 0), (1, 0)), constant_values=True), axis=-1)[
        ..., :length
    ]
    earlier = jnp.tril(jnp.ones((num_chains, num_chains), bool), -1)[..., None]
    return jnp.sum(together * earlier.astype(together.dtype), axis=1, dtype=jnp.int32)


def chains(tokens: Numbers, *, ranked: bool = False) -> Tree:
    """K chains of length L as a tree; node ``k L + t`` is position `t` of chain `k`.

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
        parents=jnp.where(node % length == 0, 0, node),
        draft_index=chain_draft_index(tokens, ranked=ranked).ravel(),
        depths=node % length,
        alive=jnp.ones(node.shape, bool),
        depth=length,
        list_size=num_chains,
    )


def branching(widths: tuple[int, ...]) -> Tree:
    """The static tree in which every context at depth `d` has ``widths[d]`` children; tokens are 0,
    to be filled in.

    NumPy arrays: a shape that is known before tracing stays so inside `jit`.

    >>> from gls_jax.schemes import draft_tree
    >>> shape = draft_tree.branching((2, 1))
    >>> shape.parents.tolist(), shape.draft_index.tolist()
    ([0, 0, 1, 2], [0, 1, 0, 0])
    """
    parents: list[int] = []
    draft_index: list[int] = []
    depths: list[int] = []
    level = [0]
    for depth, width in enumerate(checks.counts(widths, "widths")):
        first = len(parents) + 1
        parents += [context for context in level for _ in range(width)]
        draft_index += list(range(width)) * len(level)
        depths += [depth] * (width * len(level))
        level = list(range(first, len(parents) + 1))
    as_array = partial(np.array, dtype=np.int32)
    return Tree(
        tokens=np.zeros(len(parents), np.int32),  # type: ignore[arg-type]
        parents=as_array(parents),
        draft_index=as_array(draft_index),
        depths=as_array(depths),
        alive=np.ones(len(parents), bool),  # type: ignore[arg-type]
        depth=len(widths),
        list_size=max(widths),
    )


def walk(
    verify: Callable[..., Int[Array, ""]],
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: Float[Array, "n N"],
    log_q: Float[Array, "c N"],
) -> Path:
    """Verify token by token from the root: at each context the children are the list, in their
    draft_index.

    Nodes that repeat one another share a context, and all their children are in play. Below the
    last draft nobody is active, and the scheme emits its token as it does without drafts.

    Args:
        verify: `(key, drafts, log_p [K, N], log_q, active) -> token` of a token-level scheme.
        key: of the request; position `t` uses ``position_key(key, t)``.
        position: absolute position of the first token that the tree proposes.
        tree: the drafts.
        log_p: `[n, N]`, the law each node was drawn from.
        log_q: `[n + 1, N]`, the target's law at each context.
    """
    size = tree.tokens.shape[0]

    def step(state):
        here, last, depth, _, _ = state
        child = tree.alive & here[tree.parents]
        slot = jnp.where(child, tree.draft_index, tree.list_size)  # the others fall out of the list
        node = (
            jnp.full(tree.list_size, jnp.argmax(child)).at[slot].set(jnp.arange(size), mode="drop")
        )
        active = jnp.zeros(tree.list_size, bool).at[slot].set(True, mode="drop")
        now = races.position_key(key, position + depth)
        token = verify(now, tree.tokens[node], log_p[node], log_q[jnp.argmax(here)], active)
        hit = child & (tree.tokens == token)
        found = jnp.any(hit)
        return (
            jnp.append(False, hit),
            jnp.where(found, jnp.argmax(hit).astype(jnp.int32), last),
            depth + found.astype(jnp.int32),
            token,
            found,
        )

    start = (
        jnp.arange(size + 1) == 0,
        jnp.array(-1, jnp.int32),
        jnp.array(0, jnp.int32),
        jnp.array(0, jnp.int32),
        jnp.array(True),
    )
    start = varying_like(start, key, position, tree, log_p, log_q)
    _, last, _, token, _ = jax.lax.while_loop(lambda state: state[-1], step, start)
    return path_to(tree, last, token)


def path_to(tree: Tree, last: Int[Array, ""], token: Int[Array, ""]) -> Path:
    """The path whose deepest node is `last`; -1 stands for the root."""

    def up(node, _):
        return jnp.where(node >= 0, tree.parents[node] - 1, -1), node

    _, upward = jax.lax.scan(
        up, varying_like(last.astype(jnp.int32), tree), None, length=tree.depth
    )
    length = jnp.sum(upward >= 0, dtype=jnp.int32)
    place = jnp.arange(tree.depth, dtype=jnp.int32)
    nodes = jnp.where(place < length, upward[jnp.maximum(length - 1 - place, 0)], -1)
    return Path(nodes.astype(jnp.int32), length.astype(jnp.int32), token.astype(jnp.int32))
