"""Trials of a verifier of trees: shapes, drafts of their nodes, and the form of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax.conformance import emitted, same_key
from gls_jax.conformance.calling import Caller, VerifierError
from gls_jax.conformance.languages import Language, complete
from gls_jax.conformance.problem_set import first_arrivals
from gls_jax.conformance.session import Example, Session

__all__ = ["SHAPES", "Shape", "TreeTrials"]


class Shape:
    """A tree without tokens.

    Attributes:
        name: of the shape.
        parents: `i32[n]`, 0 for the root, ``i + 1`` for node `i`.
        depths: `i32[n]`, 0 for children of the root.
        depth: nodes of the longest path.
        list_size: most children of one parent.
    """

    def __init__(self, name: str, parents: list[int]):
        self.name: str = name
        self.parents: Int[np.ndarray, " n"] = np.array(parents, np.int32)
        depths: list[int] = []
        for parent in parents:
            depths.append(depths[parent - 1] + 1 if parent else 0)
        self.depths: Int[np.ndarray, " n"] = np.array(depths)
        self.depth: int = max(depths) + 1
        self.list_size: int = max(parents.count(parent) for parent in parents)


SHAPES: tuple[Shape, ...] = (
    Shape("chain", [0, 1, 2]),
    Shape("siblings", [0, 0, 0]),
    Shape("branches", [0, 0, 1, 1, 2, 2]),
    Shape("uneven", [0, 1, 0, 2, 2]),
)
"""The trees of every problem."""


class TreeTrials:
    """Trials of one language and one shape.

    Attributes:
        tokens: `i32[T, n]`, of the nodes.
        keys: one for each trial.
    """

    def __init__(
        self,
        session: Session,
        language: Language,
        shape: Shape,
        num_trials: int,
        *,
        way: same_key.Way | None = None,
        keys: Key[Array, " T"] | None = None,
    ):
        self.language: Language = language
        self.shape: Shape = shape
        names = (language.name, shape.name)
        if keys is None:
            keys = session.keys(num_trials, "verify", *names)
        self.keys: Key[Array, " T"] = keys
        num_trials, num_nodes = len(self.keys), len(shape.parents)
        self._completion = session.uniforms((num_trials, shape.depth + 1), "completion", *names)
        uniforms = session.uniforms((num_trials, num_nodes), "drafts", *names)
        shared = None
        if way is not None:
            noise, size = session.options.noise, language.num_categories
            shared = same_key.noise_of(way, self.keys, noise, num_nodes, size)
        self.tokens: Int[np.ndarray, "T n"] = np.zeros((num_trials, num_nodes), np.int32)
        for node in range(num_nodes):
            if session.options.without_replacement:
                self.tokens[:, node] = self._distinct(node, uniforms[:, node])
            else:
                given = uniforms[:, node] if shared is None else shared[:, node]
                self.tokens[:, node] = self._independent(node, given)

    def _previous(self, node: int) -> Int[np.ndarray, " T"]:
        """The token that a node follows, -1 at the root."""
        parent = self.shape.parents[node]
        if parent == 0:
            return np.full(len(self.keys), -1)
        return self.tokens[:, parent - 1]

    def _independent(self, node: int, noise: np.ndarray) -> Int[np.ndarray, " T"]:
        """A draft from uniforms `[T]`, or from the exponential noise `[T, N]` of a race."""
        depth, previous = int(self.shape.depths[node]), self._previous(node)
        if noise.ndim == 1:
            return self.language.draft_tokens(depth, previous, noise)
        return first_arrivals(noise, self.language.draft_rows(depth, previous))

    def _distinct(self, node: int, uniforms: Float[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        """A draft that none of the siblings before it is."""
        depth = int(self.shape.depths[node])
        probs = self.language.draft_rows(depth, self._previous(node)).astype(np.float64)
        probs = np.broadcast_to(probs, (len(self.keys), probs.shape[-1])).copy()
        for sibling in range(node):
            if self.shape.parents[sibling] == self.shape.parents[node]:
                probs[np.arange(len(probs)), self.tokens[:, sibling]] = 0
        edges = np.cumsum(probs, -1)
        chosen = (uniforms[:, None] * edges[:, -1:] >= edges).sum(-1)
        return np.minimum(chosen, probs.shape[-1] - 1)

    def keep(self, num_trials: int) -> None:
        """Only the first trials."""
        self.keys, self.tokens = self.keys[:num_trials], self.tokens[:num_trials]

    def reverse(self) -> None:
        """The last trial first."""
        self.keys, self.tokens = self.keys[::-1], self.tokens[::-1]

    def arguments(self) -> tuple[np.ndarray, ...]:
        """The arguments after the key, with an axis of trials in front."""
        num_trials, num_nodes = self.tokens.shape
        parents = np.broadcast_to(self.shape.parents, (num_trials, num_nodes))
        if self.language.is_one_distribution:
            # A view: a row for every node of every trial would not fit into memory.
            p, q = self.language.p[0, 0], self.language.q[0, 0]
            draft_rows = np.broadcast_to(p, (num_trials, num_nodes, len(p)))
            target_rows = np.broadcast_to(q, (num_trials, num_nodes + 1, len(q)))
            return self.tokens, parents, draft_rows, target_rows
        depths = self.shape.depths.tolist()
        root = self.language.target_rows(0, np.full(num_trials, -1))
        draft_rows = np.stack(
            [self.language.draft_rows(t, self._previous(i)) for i, t in enumerate(depths)], 1
        )
        after = [self.language.target_rows(t + 1, self.tokens[:, i]) for i, t in enumerate(depths)]
        return self.tokens, parents, draft_rows, np.stack([root, *after], 1)

    def answers(self, caller: Caller, seconds: float) -> Int[np.ndarray, "T W"]:
        """What was emitted, after a look at its form; at most depth + 1 tokens."""
        answers = caller.answers(self.keys, self.arguments(), (), seconds=seconds)
        self._check_form(answers)
        return answers[:, : self.shape.depth + 1]

    def texts(self, answers: Int[np.ndarray, "T W"]) -> Int[np.ndarray, "T length"]:
        """What was emitted, completed by the target."""
        uniforms = self._completion[: len(answers)]
        return complete(self.language, answers, self.shape.depth + 1, uniforms)

    def example(self, trial: int | None) -> Example:
        """The arguments of one trial; without a number, of the first one without its key."""
        tokens, parents, draft_rows, target_rows = (row[trial or 0] for row in self.arguments())
        example: dict[str, Any] = {"N": self.language.num_categories}
        if trial is not None:
            example["key"] = emitted.described_key(self.keys[trial])
        example["tokens"], example["parents"] = tokens.tolist(), parents.tolist()
        example.update(emitted.described_probs(draft_probs=draft_rows, target_probs=target_rows))
        return example

    def _check_form(self, answers: np.ndarray) -> None:
        """A path of the tree, one more token, then -1."""
        least, size = self.shape.depth + 1, self.language.num_categories
        is_table = answers.ndim == 2 and answers.shape[1] >= least
        if not is_table or not np.issubdtype(answers.dtype, np.integer):
            expected = f"expected integers of shape [{least}] or longer"
            raise VerifierError(f"{expected}, got {answers.dtype} of shape {answers.shape[1:]}")
        lengths = (answers >= 0).sum(-1)
        is_padding = np.arange(answers.shape[1]) >= lengths[:, None]
        faults = {
            f"expected 1 to {least} tokens": (lengths < 1) | (lengths > least),
            "expected tokens first, and then only -1": (
                ((answers != -1) & is_padding) | ((answers < 0) & ~is_padding)
            ).any(-1),
            f"expected tokens within 0..{size - 1}": (answers >= size).any(-1),
            "expected a path of the tree before the last token": self._leaves_tree(
                answers, lengths
            ),
        }
        for message, is_faulty in faults.items():
            if is_faulty.any():
                trial = int(is_faulty.argmax())
                tree = (
                    f"tokens {self.tokens[trial].tolist()}, parents {self.shape.parents.tolist()}"
                )
                raise VerifierError(f"{message}, got {answers[trial].tolist()} for {tree}", trial)

    def _leaves_tree(self, answers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the accepted tokens are no path from the root."""
        num_trials, num_nodes = len(answers), len(self.shape.parents)
        leaves = np.zeros(num_trials, bool)
        # Rows that the path so far may have reached: several where siblings are alike.
        is_reached = np.zeros((num_trials, num_nodes + 1), bool)
        is_reached[:, 0] = True
        for t in range(min(self.shape.depth, answers.shape[1])):
            follows = is_reached[:, self.shape.parents]
            is_next = np.zeros_like(is_reached)
            is_next[:, 1:] = follows & (self.tokens[:num_trials] == answers[:, t, None])
            is_accepted = t < lengths - 1
            leaves |= is_accepted & ~is_next.any(-1)
            is_reached = is_next
        return leaves
