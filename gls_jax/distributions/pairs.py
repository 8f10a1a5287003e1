"""Where pairs of laws come from: random, next-token laws of two models over a text, or the user's
own file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import checks, races
from gls_jax.decoding import log_probs
from gls_jax.runs.files import read_arrays

__all__ = ["Pairs", "load", "next_token", "random"]

Logits = Callable[[Any], jax.Array]
"""A causal model: tokens `i32[B, T]` to logits `[B, T, V]`."""


class Pairs(NamedTuple):
    """`M` pairs of laws on `N` items.

    Attributes:
        log_p: draft log-probabilities `[M, N]`.
        log_q: target log-probabilities `[M, N]`.
    """

    log_p: np.ndarray
    log_q: np.ndarray


def random(
    key: PRNGKeyArray,
    num_pairs: int,
    num_items: int,
    *,
    family: str = "dirichlet",
    scale: float = 1.0,
) -> Pairs:
    """Random pairs, `p` and `q` independent.

    Args:
        key: one typed key.
        num_pairs: `M`.
        num_items: `N`.
        family: "dirichlet" (concentration `scale` on every item) or "gaussian" (softmax of normals,
            deviation `scale`).
        scale: positive.

    Returns:
        :class:`Pairs` of `f32[M, N]`.

    Raises:
        ValueError: an unknown family, or a size or scale that is not positive.

    >>> import jax
    >>> from gls_jax.distributions import pairs
    >>> pairs.random(jax.random.key(0), 3, 10).log_p.shape
    (3, 10)
    """
    checks.key(key)
    shape = (2, checks.count(num_pairs, "num_pairs"), checks.count(num_items, "num_items"))
    if shape[1] * shape[2] > 2**28:
        raise ValueError(
            f"num_pairs x num_items: expected at most 2^28 numbers, got {shape[1] * shape[2]}"
        )
    if not 1e-3 <= scale <= 1e6:
        raise ValueError(f"scale: expected a number within 1e-3..1e6, got {scale}")
    with races.keys.partitionable_bits():
        if family == "dirichlet":
            logits = jax.random.loggamma(
                key, scale, shape, jnp.float32
            )  # normalised gammas are Dirichlet
        elif family == "gaussian":
            logits = scale * jax.random.normal(key, shape, jnp.float32)
        else:
            raise ValueError(f"family: expected 'dirichlet' or 'gaussian', got {family!r}")
    log_p, log_q = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    return Pairs(log_p, log_q)


def next_token(
    target: Logits,
    drafter: Logits,
    texts: Sequence[Sequence[int]],
    *,
    num_positions: int,
    max_context: int = 512,
    temperature: float = 1.0,
    draft_temperature: float = 1.0,
    top_k: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Next-token laws of two models after every prefix of the texts.

    With `top_k` the pairs are cut to the items that either law can produce: the others change
    nothing, and a sweep over a hundred items is hundreds of times cheaper than one over a
    vocabulary.

    Args:
        target: the target model.
        drafter: the drafter, on the same vocabulary.
        texts: token ids, one sequence a text.
        num_positions: stop after so many pairs.
        max_context: longer texts are cut into pieces of so many tokens, each read on its own.
        temperature: of the target.
        draft_temperature: of the drafter.
        top_k: of both, or None.
        progress: called with `(positions done, positions)`.

    Returns:
        :class:`Pairs`, at most `num_positions` of them, in the order of the texts.

    Raises:
        ValueError: no text of at least one token, or vocabularies of different size.
    """
    num_positions = checks.count(num_positions, "num_positions")
    max_context = checks.count(max_context, "max_context")
    texts = [
        list(text[at : at + max_context])
        for text in texts
        for at in range(0, len(text), max_context)
    ]
    if not texts:
        raise ValueError("texts: expected at least one text of at least one token, got none")
    longest = max(map(len, texts))
    laws: list[Pairs] = []
    done, wanted = 0, min(num_positions, sum(map(len, texts)))
    for text in texts:
        if done == wanted:
            break
        tokens = np.zeros(
            (1, longest), np.int32
        )  # one shape, one compilation; causal, so the padding is never seen
        tokens[0, : len(text)] = text
        logits = [model(tokens)[0, : min(len(text), wanted - done)] for model in (drafter, target)]
        if logits[0].shape[-1] != logits[1].shape[-1]:
            sizes = f"{logits[0].shape[-1]} and {logits[1].shape[-1]}"
            raise ValueError(f"drafter and target: expected one vocabulary, got {sizes} tokens")
        p = log_probs(logits[0], temperature=draft_temperature, top_k=top_k)
        q = log_probs(logits[1], temperature=temperature, top_k=top_k)
        laws.append(Pairs(np.asarray(p), np.asarray(q)) if top_k is None else _joint_support(p, q))
        done += p.shape[0]
        if progress is not None:
            progress(done, wanted)
    width = max(law.log_p.shape[1] for law in laws)

    def join(parts):
        pad = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf)
            for part in parts
        ]
        return np.concatenate(pad)

    return Pairs(join([law.log_p for law in laws]), join([law.log_q for law in laws]))


def load(path: str | Path) -> Pairs:
    """The user's own pairs: an `.npz` file with arrays `log_p` and `log_q`, `[M, N]` (or `[N]`)
    each.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz file, arrays missing, of different shape, or not log-probabilities.
    """
    path = Path(path)
    arrays = read_arrays(path, "an .npz file with arrays log_p and log_q")
    missing = [name for name in ("log_p", "log_q") if name not in arrays]
    if missing:
        found = ", ".join(arrays) or "none"
        raise ValueError(f"{path}: expected arrays log_p and log_q of shape [M, N], got {found}")
    log_p, log_q = (
        np.atleast_2d(np.asarray(checks.floats(arrays[name], name))) for name in ("log_p", "log_q")
    )
    if log_p.shape != log_q.shape or log_p.ndim != 2 or not log_p.size:
        shapes = f"{list(log_p.shape)} and {list(log_q.shape)}"
        raise ValueError(f"{path}: expected log_p and log_q of one shape [M, N], got {shapes}")
    for name, rows in (("log_p", log_p), ("log_q", log_q)):
        checks.check_log_probs(rows, f"{path}: {name}")
    return Pairs(log_p, log_q)


def _joint_support(log_p, log_q) -> Pairs:
    """Per row, the items that either law can produce, filled up with impossible ones to one width."""
    alive = np.isfinite(np.asarray(log_p)) | np.isfinite(np.asarray(log_q))
    width = int(alive.sum(1).max())
    keep = np.argsort(~alive, axis=1, kind="stable")[:, :width]
    return Pairs(
        np.take_along_axis(np.asarray(log_p), keep, 1),
        np.take_along_axis(np.asarray(log_q), keep, 1),
    )
