"""The tree verification of sglang-jax: a tree of drafts for each request.

The signatures are those that the engine calls (commit cddbf6f, August 2026):
`tree_speculative_sampling_target_only` of `sgl_jax.srt.kernels.speculative.kernel` and
`verify_tree_greedy` of `verify_tree_greedy_kernel` beside it. In the engine, one line replaces
each::

    from gls_jax.adapters import sglang_jax

    tree_speculative_sampling_target_only = sglang_jax.tree_sampler()
    verify_tree_greedy = sglang_jax.verify_tree_greedy

The engine's function samples the target alone and accepts the child that has the sampled token, and
so does the default here: the same acceptance and law. Both are traced, so that they run within a
compiled step. With `request_keys` and `positions` a text depends on its key alone, and a drafter
that draws its trees from the same noise (``gls_jax.schemes.get("gumbel_topk").propose``, margin
trees) has more of them accepted; see :mod:`gls_jax.adapters`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gls_jax import checks, races, schemes, work_shape
from gls_jax.adapters.engine_keys import keys_from_uniforms, request_noise
from gls_jax.loops import varying_like
from gls_jax.schemes import Path, Scheme, Tree
from gls_jax.schemes.draft_tree import row_of_node
from gls_jax.schemes.tree_walk import walk
from gls_jax.typing import Numbers

__all__ = ["TreeSampler", "Verified", "tree_sampler", "verify_tree_greedy"]

_NONE = -1


class Verified(NamedTuple):
    """What the engine's functions return.

    Attributes:
        accept_index: `i32[B, S]`, place in `predicts` of the root and the accepted nodes, then
            what was there before (-1).
        accept_token_num: `i32[B]`, accepted nodes, the root not counted.
        predicts: `i32[P]`, at each of those places the token that follows it.
    """

    accept_index: Int[Array, "B S"]
    accept_token_num: Int[Array, " B"]
    predicts: Int[Array, " P"]


def tree_sampler(scheme: str = "gumbel_topk", *, num_drafts: int | None = None) -> TreeSampler:
    """A function of the engine's signature that verifies with a scheme.

    Args:
        scheme: name of a scheme that does not read draft probabilities; the engine has none.
        num_drafts: the longest list of siblings, static; None is one fewer than there are tokens.
            For `gls` and `gls_strong` the `K` of the drafter.

    Raises:
        ValueError: an unknown scheme, or one that reads draft probabilities.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.adapters import sglang_jax
    >>> sample = sglang_jax.tree_sampler()
    >>> tokens = jnp.array([[9, 3, 4, 5]])  # the last token, two children, and one of the second
    >>> first_child, next_sibling = jnp.array([[1, -1, 3, -1]]), jnp.array([[-1, 2, -1, -1]])
    >>> target_probs = jax.nn.one_hot(jnp.array([4, 0, 5, 7]), 10)
    >>> verified = sample(
    ...     jnp.zeros(4, jnp.int32),
    ...     jnp.full((1, 3), -1),
    ...     jnp.zeros(1, jnp.int32),
    ...     tokens,
    ...     jnp.array([[0, 1, 2, 3]]),
    ...     first_child,
    ...     next_sibling,
    ...     jnp.full((1, 4), 0.3),
    ...     jnp.array([0.6]),
    ...     target_probs,
    ...     jnp.zeros((4, 10)),
    ... )
    >>> verified.accept_index.tolist(), verified.accept_token_num.tolist()
    ([[0, 2, 3]], [2])
    >>> verified.predicts.tolist()
    [4, 0, 5, 7]
    """
    found = schemes.get(scheme)
    if found.needs_draft_probs:
        raise ValueError(
            f"scheme: expected one that does not read draft probabilities, got {scheme!r}"
        )
    return TreeSampler(
        found, None if num_drafts is None else checks.count(num_drafts, "num_drafts")
    )


@dataclasses.dataclass(frozen=True)
class TreeSampler:
    """The function that :func:`tree_sampler` makes.

    Attributes:
        scheme: verifies the drafts.
        num_drafts: the longest list of siblings, or None.
    """

    scheme: Scheme
    num_drafts: int | None

    def __call__(
        self,
        predicts: Numbers,
        accept_index: Numbers,
        accept_token_num: Numbers,
        candidates: Numbers,
        retrive_index: Numbers,
        retrive_next_token: Numbers,
        retrive_next_sibling: Numbers,
        uniform_samples: Numbers,
        uniform_samples_for_final_sampling: Numbers,
        target_probs: Numbers,
        draft_probs: Numbers | None = None,
        threshold_single: float = 1.0,
        threshold_acc: float = 1.0,
        deterministic: bool = True,
        *,
        request_keys: Key[Array, " B"] | None = None,
        positions: Numbers | None = None,
    ) -> Verified:
        """Verify the trees of a batch.

        Args:
            predicts: `i32[P]`, changed at the places of the root and of accepted nodes.
            accept_index: `i32[B, S]`, changed likewise; `S` is one more than the depth.
            accept_token_num: `i32[B]`, not read.
            candidates: `i32[B, n]`, the last token of each request and its drafts.
            retrive_index: `i32[B, n]`, each candidate's place in `predicts`.
            retrive_next_token: `i32[B, n]`, first child of each candidate, or -1.
            retrive_next_sibling: `i32[B, n]`, next sibling of each candidate, or -1.
            uniform_samples: `[B, n]`, and
            uniform_samples_for_final_sampling: `[B]`: random bits for requests without keys.
            target_probs: `[B n, N]`, the target's probabilities after each candidate.
            draft_probs: not read.
            threshold_single: only 1, and
            threshold_acc: only 1: with less the engine accepts more than is lossless.
            deterministic: not read.
            request_keys: `[B]` typed keys, one for each request in all its steps.
            positions: `i32[B]`, absolute position of the root's children.

        Raises:
            ValueError: thresholds below 1, one of `request_keys` and `positions` without the
                other, or shapes that do not fit.
        """
        del accept_token_num, draft_probs, deterministic
        if (threshold_single, threshold_acc) != (1.0, 1.0):
            raise ValueError(
                "threshold_single, threshold_acc: expected 1.0, because less is not lossless, "
                f"got {threshold_single}, {threshold_acc}"
            )
        links = _Links.of(candidates, retrive_next_token, retrive_next_sibling)
        num_requests, num_candidates = links.candidates.shape
        noise = request_noise(request_keys, positions, num_requests)
        # The engine's uniforms become the key of a request that has none.
        if noise is None:
            coins = checks.floats(uniform_samples, "uniform_samples")
            last_coin = checks.floats(
                uniform_samples_for_final_sampling, "uniform_samples_for_final_sampling"
            )
            checks.has_shape(coins, "uniform_samples", num_requests, None)
            checks.has_shape(last_coin, "uniform_samples_for_final_sampling", num_requests)
            keys = keys_from_uniforms(jnp.append(coins, last_coin[:, None], axis=1))
            noise = keys, jnp.zeros(num_requests, jnp.int32)
        # A row for every candidate, the root's first: the rows of a tree.
        target_probs = checks.floats(target_probs, "target_probs")
        checks.has_shape(target_probs, "target_probs", num_requests * num_candidates, None)
        log_q = jnp.log(target_probs)
        log_q = log_q.reshape(num_requests, num_candidates, log_q.shape[-1])
        answer = _Answer.of(predicts, accept_index, retrive_index)
        checks.has_shape(answer.places, "retrive_index", num_requests, num_candidates)
        checks.has_shape(answer.accept_index, "accept_index", num_requests, None)
        static = (self.scheme, self.num_drafts or max(num_candidates - 1, 1), answer.path_width)
        path = work_shape.compiled(_paths, (*noise, links, log_q), static)
        return _written(path, answer, links.candidates)


def verify_tree_greedy(
    speculative_num_steps: int,
    num_draft_tokens: int,
    draft_tokens: Numbers,
    retrive_index: Numbers,
    retrive_next_token: Numbers,
    retrive_next_sibling: Numbers,
    next_token_logits: Numbers,
) -> Verified:
    """Verify the trees of a batch against the target's likeliest tokens.

    Args:
        speculative_num_steps: most nodes of a path, static.
        num_draft_tokens: `n`, static.
        draft_tokens: `i32[B n]`, the candidates of :class:`TreeSampler`, flat.
        retrive_index: `i32[B, n]`, as there, likewise the next two.
        retrive_next_token: `i32[B, n]`.
        retrive_next_sibling: `i32[B, n]`.
        next_token_logits: `[B n, N]`, the target's logits after each candidate, at its place.

    Returns:
        As there; `predicts` has ``B n + 1`` places, 0 where nothing is written.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.adapters import sglang_jax
    >>> verified = sglang_jax.verify_tree_greedy(
    ...     1,
    ...     3,
    ...     jnp.array([9, 3, 4]),
    ...     jnp.array([[0, 1, 2]]),
    ...     jnp.array([[1, -1, -1]]),
    ...     jnp.array([[-1, 2, -1]]),
    ...     jax.nn.one_hot(jnp.array([4, 0, 5]), 10),
    ... )
    >>> verified.accept_index.tolist(), verified.predicts.tolist()
    ([[0, 2]], [4, 0, 5, 0])
    """
    tokens = checks.integers(draft_tokens, "draft_tokens", "[B n]")
    num_candidates = checks.count(num_draft_tokens, "num_draft_tokens")
    if tokens.shape[0] % num_candidates:
        raise ValueError(
            f"draft_tokens: expected {num_candidates} for each request, got {tokens.shape[0]}"
        )
    candidates = tokens.reshape(-1, num_candidates)
    links = _Links.of(candidates, retrive_next_token, retrive_next_sibling)
    shape = (candidates.shape[0], checks.count(speculative_num_steps, "speculative_num_steps") + 1)
    predicts = jnp.zeros(tokens.shape[0] + 1, jnp.int32)
    answer = _Answer.of(predicts, jnp.full(shape, _NONE, jnp.int32), retrive_index)
    checks.has_shape(answer.places, "retrive_index", *candidates.shape)
    # A greedy target has one token at every place, whatever the noise.
    logits = checks.floats(next_token_logits, "next_token_logits")
    checks.has_shape(logits, "next_token_logits", tokens.shape[0], None)
    likeliest = jnp.argmax(logits, axis=-1)
    next_tokens = likeliest.astype(jnp.int32)[answer.places]
    path = work_shape.compiled(_greedy_paths, (links, next_tokens), (answer.path_width,))
    return _written(path, answer, candidates)


class _Links(NamedTuple):
    """Trees as the engine links them: candidate 0 is the root, -1 is none."""

    candidates: Int[Array, "*B n"]
    first_child: Int[Array, "*B n"]
    next_sibling: Int[Array, "*B n"]

    @classmethod
    def of(cls, candidates: Numbers, first_child: Numbers, next_sibling: Numbers) -> _Links:
        links = cls(
            checks.integers(candidates, "candidates", "[B, n]"),
            checks.integers(first_child, "retrive_next_token", "[B, n]"),
            checks.integers(next_sibling, "retrive_next_sibling", "[B, n]"),
        )
        checks.has_shape(links.first_child, "retrive_next_token", *links.candidates.shape)
        checks.has_shape(links.next_sibling, "retrive_next_sibling", *links.candidates.shape)
        return links


class _Answer(NamedTuple):
    """The arrays that the engine wants changed, and each candidate's place in `predicts`."""

    predicts: Int[Array, " P"]
    accept_index: Int[Array, "B S"]
    places: Int[Array, "B n"]

    @classmethod
    def of(cls, predicts: Numbers, accept_index: Numbers, places: Numbers) -> _Answer:
        return cls(
            checks.integers(predicts, "predicts", "[P]"),
            checks.integers(accept_index, "accept_index", "[B, S]"),
            checks.integers(places, "retrive_index", "[B, n]"),
        )

    @property
    def path_width(self) -> int:
        return self.accept_index.shape[1]


def _paths(
    keys: Key[Array, " B"],
    positions: Int[Array, " B"],
    links: _Links,
    log_q: Float[Array, "B n N"],
    scheme: Scheme,
    num_drafts: int,
    path_width: int,
) -> Path:
    def verify(key, position, links, log_q):
        tree = _tree(links, num_drafts, path_width)
        return scheme.verify_tree(key, position, tree, None, log_q)

    return jax.vmap(verify)(keys, positions, links, log_q)


def _greedy_paths(links: _Links, next_tokens: Int[Array, "B n"], path_width: int) -> Path:
    """The same walk: in place of a distribution each row holds the target's one token."""
    num_candidates = next_tokens.shape[1]

    def token(key, drafts, log_p, row, active):
        return row[0]

    def verify(links, next_tokens):
        tree = _tree(links, max(num_candidates - 1, 1), path_width)
        rows = next_tokens[:, None]
        # The draft distributions are not looked at; anything of their length will do.
        return walk(races.new_key(0), 0, tree, rows[1:], rows, token, diverse=False)

    return jax.vmap(verify)(links, next_tokens)


def _tree(links: _Links, num_drafts: int, path_width: int) -> Tree:
    """One tree; node `i` is candidate ``i + 1``, so that rows are candidates."""
    num_candidates = links.candidates.shape[0]
    candidates = jnp.arange(num_candidates, dtype=jnp.int32)

    def one_candidate_later(state, _):
        """One more link from the root: a candidate tells its first child and its next sibling."""
        parent, index, depth, known = state
        updates = (
            (links.first_child, candidates, jnp.zeros_like(index), depth + 1),
            (links.next_sibling, parent, index + 1, depth),
        )
        for to, new_parent, new_index, new_depth in updates:
            to = jnp.where(known & (to > 0), to, num_candidates)  # else nowhere
            parent = parent.at[to].set(new_parent, mode="drop")
            index = index.at[to].set(new_index, mode="drop")
            depth = depth.at[to].set(new_depth, mode="drop")
            known = known.at[to].set(True, mode="drop")
        return (parent, index, depth, known), None

    zeros = jnp.zeros(num_candidates, jnp.int32)
    start = (zeros, zeros, zeros - 1, candidates == 0)
    start = varying_like(start, links)
    length = max(num_candidates - 1, 1)
    (parent, index, depth, known), _ = jax.lax.scan(one_candidate_later, start, None, length=length)
    depth_limit = max(path_width - 1, 1)
    # Candidates that no link leads to are padding.
    is_alive = known & (depth < path_width - 1) & (index < num_drafts)
    return Tree(
        tokens=links.candidates[1:],
        parents=parent[1:].astype(jnp.int32),
        draft_index=index[1:],
        depths=depth[1:],
        alive=is_alive[1:],
        depth=depth_limit,
        list_size=num_drafts,
    )


def _written(path: Path, answer: _Answer, candidates: Int[Array, "B n"]) -> Verified:
    """The paths in the engine's arrays."""
    predicts, accept_index, places = answer
    step = jnp.arange(answer.path_width, dtype=jnp.int32)
    is_on_path = step <= path.length[:, None]
    # The root, and then the accepted nodes.
    rows = jnp.pad(row_of_node(path.nodes), ((0, 0), (1, 0)))[:, : answer.path_width]
    places = jnp.take_along_axis(places, rows, axis=1)
    # Each is followed by the token of the next one, the last one by the new token.
    tokens = jnp.take_along_axis(candidates, rows, axis=1)
    is_last = step == path.length[:, None]
    following = jnp.where(is_last, path.token[:, None], jnp.roll(tokens, -1, axis=1))
    written_places = jnp.where(is_on_path, places, predicts.shape[0])  # else nowhere
    predicts = predicts.at[written_places].set(following, mode="drop")
    return Verified(jnp.where(is_on_path, places, accept_index), path.length, predicts)
