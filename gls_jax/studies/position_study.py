"""Exact acceptance at every position of a dump: chunk by chunk, to a file, with what the cut may
have changed.

A dump does not know how the mass outside its tokens is spread. Read once with tails *apart*, items
that the other law cannot produce, and once with tails *shared*, one item for both, it gives two
acceptances. They are ends, the truth lies between, for the schemes in :data:`BRACKETED` (single,
spectr, minhash, naive, GLS, Poisson lists: merging items can only help them; checked on random laws
with whole vocabularies in the tests). For `gumbel_topk` and `specinfer_wor` one item for a tail
takes one place in a list of distinct ones, where many items might take several; `specinfer`'s third
and later tests and the truncated program of `weighted_importance` are not monotone: there the two
are no ends, but both are exact without tails, with top-k sampling that keeps no more tokens than
the dump.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gls_jax import checks, schemes
from gls_jax.distributions.dump import Dump, fingerprint, open_array
from gls_jax.exact import batched
from gls_jax.runs import files

__all__ = ["BRACKETED", "Mean", "position_acceptance"]

BRACKETED: tuple[str, ...] = tuple(
    name for name in schemes.NAMES if (exact := schemes.get(name).exact) and exact.tails_bracket
)
"""Schemes for which the two readings of a dump are a lower and an upper end."""

_FORMAT, _CHUNK, _TAILS = 1, 256, ("apart", "shared")
_VALUES, _FACTS = "acceptance.npy", "acceptance.json"


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean acceptance over all positions for one scheme and K; None where it is not to be had at
    that size.

    Attributes:
        scheme, num_drafts: which.
        apart, shared: with the tails read as items apart, and as one shared item.
        bracketed: whether the truth lies between them.
    """

    scheme: str
    num_drafts: int
    apart: float | None
    shared: float | None
    bracketed: bool


def position_acceptance(
    dump: Dump,
    folder: Path,
    *,
    names: Sequence[str],
    num_drafts: Sequence[int],
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Mean]:
    """Exact acceptance by position, kept in the folder as `acceptance.npy`, `f32[scheme, position,
    K, reading]`.

    Args:
        dump: the laws.
        folder: made if missing; a finished sweep in it is replaced.
        names: schemes.
        num_drafts: list lengths K; NaN is written where a scheme does not take one, or has no exact
            value at this size.
        resume: go on with an unfinished sweep that was asked the same.
        progress: called with `(scheme, positions done, positions)`.

    Returns:
        One :class:`Mean` a scheme and K.

    Raises:
        ValueError: no or an unknown scheme, a list length below 1, an unfinished sweep in the
            folder without `resume`, another or a broken one with it.
        OSError: the folder cannot be written, or another run is at work in it.
    """
    if not names:
        raise ValueError(f"schemes: expected at least one of {', '.join(schemes.NAMES)}, got none")
    for name in names:
        schemes.get(name).check_token_level("acceptance")
    counts = checks.counts(num_drafts, "num_drafts")
    asked = {"format": _FORMAT, "dump": dump.facts["fingerprint"], "positions": len(dump)}
    asked |= {"schemes": list(names), "num_drafts": list(counts), "tails": list(_TAILS)}
    blocks = [(s, start) for s in range(len(names)) for start in range(0, len(dump), _CHUNK)]
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder):
        values, done = _open(
            folder, asked, (len(names), len(dump), len(counts), len(_TAILS)), resume
        )
        for at, (s, start) in enumerate(blocks):
            stop = min(start + _CHUNK, len(dump))
            if at >= done:
                values[s, start:stop] = _chunk(dump, start, stop, names[s], counts)
                values.flush()
                _write_facts(folder, asked, at + 1)
            if progress is not None:
                progress(names[s], stop, len(dump))
        means = np.stack(
            [np.mean(each, axis=0, dtype=np.float64) for each in values]
        )  # [scheme, K, reading]
    return [
        Mean(name, k, _known(means[s, c, 0]), _known(means[s, c, 1]), name in BRACKETED)
        for s, name in enumerate(names)
        for c, k in enumerate(counts)
    ]


def _known(value) -> float | None:
    return None if np.isnan(value) else float(value)


def _chunk(dump: Dump, start: int, stop: int, name: str, counts: tuple[int, ...]) -> np.ndarray:
    """`[positions, K, reading]`; the last chunk is filled up to keep one compilation."""
    scheme, items = schemes.get(name), dump.rows.tokens.shape[1] + 2
    most = scheme.max_drafts or max(counts)
    known = tuple(k for k in counts if k <= most and scheme.acceptance_limit(items, k) is None)
    found = np.full((stop - start, len(counts), len(_TAILS)), np.nan, np.float32)
    if not known:
        return found
    cut = np.any(dump.rows.tail_p[start:stop] > 0) or np.any(dump.rows.tail_q[start:stop] > 0)
    for reading, tails in enumerate(_TAILS if cut else _TAILS[:1]):
        short = _CHUNK - (stop - start)
        laws = [
            np.pad(law, ((0, short), (0, 0)), mode="edge")
            for law in dump.pairs(start, stop, tails=tails)
        ]
        values = batched.acceptance_curves(scheme, *laws, known)
        found[:, np.isin(counts, known), reading] = values[: stop - start]
    return found if cut else found[..., [0, 0]]


def _open(folder: Path, asked: dict, shape: tuple[int, ...], resume: bool) -> tuple[np.memmap, int]:
    """The values so far, and how many blocks of them are there."""
    path = folder / _FACTS
    if path.exists():
        earlier, done, blocks = _read_facts(path)
        if resume and earlier != asked:
            raise ValueError(
                f"{path}: the sweep here was asked something else; give another folder"
            )
        if resume:
            return open_array(
                folder / _VALUES, "the values of a sweep", "float32", shape, writable=True
            ), done
        if done < blocks:
            raise ValueError(
                f"{path}: an unfinished run is here; --resume goes on with it, else give another folder"
            )
    path.unlink(missing_ok=True)  # first: it must never speak of other values
    values = np.lib.format.open_memmap(folder / _VALUES, mode="w+", dtype=np.float32, shape=shape)
    _write_facts(folder, asked, 0)
    return values, 0


def _read_facts(path: Path) -> tuple[dict, int, int]:
    """What was asked, how many blocks are there, and of how many."""
    facts = files.read_json(path, "the facts of a sweep")
    try:
        asked, done = facts["asked"], facts["done"]
        good = facts["fingerprint"] == fingerprint(asked)
        blocks = len(asked["schemes"]) * -(-asked["positions"] // _CHUNK)
        good &= done in range(blocks + 1)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{path}: expected the facts of a sweep (asked and its fingerprint, done within its blocks), got other ones"
        )
    return asked, done, blocks


def _write_facts(folder: Path, asked: dict, done: int) -> None:
    text = json.dumps({"fingerprint": fingerprint(asked), "done": done, "asked": asked}, indent=1)
    files.write_whole(folder / _FACTS, lambda file: file.write(text + "\n"), mode="w")
