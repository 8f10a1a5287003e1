"""Exact acceptance at every position of a dump, chunk by chunk, to a file.

A dump does not know how the mass outside its tokens is spread. So acceptance is computed twice:
with *disjoint* tails, one category for the tail of each model, which the other cannot produce; and
with *merged* tails, one category for both.

For the schemes in :data:`BRACKETED` the truth lies between the two values, because merging
categories can only help them: single, spectr, minhash, naive, GLS, Poisson lists (checked in the
tests on random distributions on whole vocabularies). For others the two need not bracket the truth.
The lists of `gumbel_topk`, `topk` and `specinfer_wor` have distinct tokens, and a tail takes one
rank where many tokens might take several, or none. The third and later tests of `specinfer` and the
truncated program of `weighted_importance` are not monotone. Without truncated mass both values are
exact for every scheme; this is so with top-k sampling that keeps no more tokens than the dump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gls_jax import checks, schemes
from gls_jax.distributions.dump_files import TAILS, Dump
from gls_jax.exact import batched
from gls_jax.runs import files
from gls_jax.runs.resume import Manifest, check_resumable, differing_entries
from gls_jax.studies.acceptance_study import computable_lengths, none_if_nan
from gls_jax.typing import Report

__all__ = ["BRACKETED", "Mean", "position_acceptance"]


def _has_bounds(name: str) -> bool:
    exact = schemes.get(name).exact
    return exact is not None and exact.tails_are_bounds


BRACKETED: tuple[str, ...] = tuple(filter(_has_bounds, schemes.NAMES))
"""Schemes for which the two treatments of the truncated mass give a lower and an upper bound."""

_FORMAT = 2  # format 1 had other words for the tails
_CHUNK = 256  # positions that are computed together; a stop loses at most this many
_VALUES, _MANIFEST = "acceptance.npy", "acceptance.json"


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean acceptance over all positions for one scheme and K.

    Attributes:
        scheme, num_drafts: the scheme and K.
        disjoint, merged: with disjoint and with merged tails; None where there is no exact value
            at this size.
        bracketed: whether the truth lies between them.
    """

    scheme: str
    num_drafts: int
    disjoint: float | None
    merged: float | None
    bracketed: bool


def position_acceptance(
    dump: Dump,
    folder: Path,
    *,
    names: Sequence[str],
    num_drafts: Sequence[int],
    resume: bool = False,
    progress: Report | None = None,
) -> list[Mean]:
    """Exact acceptance by position, written to files in the folder.

    The file `acceptance.npy` is `f32[scheme, position, K, tails]`, disjoint tails first.

    Args:
        dump: the distributions.
        folder: made if missing; a finished sweep in it is replaced.
        names: schemes.
        num_drafts: list lengths K; NaN is written where a scheme does not take one, or has no exact
            value at this size.
        resume: whether to continue an unfinished sweep of the same configuration.
        progress: called with `(scheme, positions done, positions)`.

    Returns:
        One :class:`Mean` per scheme and K.

    Raises:
        ValueError: no scheme or an unknown one; a list length below 1; an unfinished sweep is in
            the folder and `resume` is not set, or that sweep is broken or of another configuration.
        OSError: the folder cannot be written, or another run is using it.
    """
    if not names:
        raise ValueError(f"schemes: expected at least one of {', '.join(schemes.NAMES)}, got none")
    for name in names:
        schemes.get(name).check_token_level("acceptance")
    counts = checks.counts(num_drafts, "num_drafts")
    configuration = {
        "dump": dump.manifest.hash,
        "positions": len(dump),
        "schemes": list(names),
        "num_drafts": list(counts),
        "tails": list(TAILS),
    }
    manifest = Manifest(_FORMAT, configuration, {"done": 0})
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder):
        shape = (len(names), len(dump), len(counts), len(TAILS))
        values, num_done = _open_values(folder, manifest, shape, resume)
        for block_index, (scheme_index, start) in enumerate(_blocks(configuration)):
            scheme_name = names[scheme_index]
            stop = min(start + _CHUNK, len(dump))
            if block_index >= num_done:
                chunk_values = _compute_chunk(dump, start, stop, scheme_name, counts)
                values[scheme_index, start:stop] = chunk_values
                # The values must be on the disk before the manifest counts them.
                values.flush()
                manifest = Manifest(_FORMAT, configuration, {"done": block_index + 1})
                manifest.write(folder / _MANIFEST)
            if progress is not None:
                progress(scheme_name, stop, len(dump))
        return list(_means(values, names, counts))


def _means(values: np.ndarray, names: Sequence[str], counts: Sequence[int]) -> Iterable[Mean]:
    for scheme_index, scheme_name in enumerate(names):
        # float64, because a dump can have millions of positions.
        curve = values[scheme_index].mean(axis=0, dtype=np.float64)
        for k, (disjoint, merged) in zip(counts, curve, strict=True):
            yield Mean(
                scheme=scheme_name,
                num_drafts=k,
                disjoint=none_if_nan(disjoint),
                merged=none_if_nan(merged),
                bracketed=scheme_name in BRACKETED,
            )


def _blocks(configuration: dict) -> list[tuple[int, int]]:
    """The blocks of a sweep in their order: index of the scheme, and first position."""
    num_schemes = len(configuration["schemes"])
    starts = range(0, configuration["positions"], _CHUNK)
    return [(scheme_index, start) for scheme_index in range(num_schemes) for start in starts]


def _compute_chunk(
    dump: Dump, start: int, stop: int, scheme_name: str, counts: tuple[int, ...]
) -> np.ndarray:
    """Acceptances at some positions, `f32[positions, K, tails]`."""
    num_positions = stop - start
    num_categories = dump.rows.tokens.shape[1] + 2
    values = np.full((num_positions, len(counts), len(TAILS)), np.nan, np.float32)
    scheme = schemes.get(scheme_name)
    known_counts = computable_lengths(scheme, counts, num_categories)
    if not known_counts:
        return values
    # Without truncated mass the two treatments are equal, and only one is computed.
    tail_p, tail_q = dump.rows.tail_p[start:stop], dump.rows.tail_q[start:stop]
    has_tails = np.any(tail_p > 0) or np.any(tail_q > 0)
    # The last chunk is filled up with its last position: one shape, one compilation.
    padding = ((0, _CHUNK - num_positions), (0, 0))
    for column, tails in enumerate(TAILS if has_tails else TAILS[:1]):
        pairs = dump.pairs(start, stop, tails=tails)
        log_p = np.pad(pairs.log_p, padding, mode="edge")
        log_q = np.pad(pairs.log_q, padding, mode="edge")
        curves = batched.acceptance_curves(scheme, log_p, log_q, known_counts)
        values[:, np.isin(counts, known_counts), column] = curves[:num_positions]
    return values if has_tails else values[..., [0, 0]]


def _open_values(
    folder: Path, manifest: Manifest, shape: tuple[int, ...], resume: bool
) -> tuple[np.memmap, int]:
    """The values so far, and how many blocks of them are done."""
    path = folder / _MANIFEST
    if path.exists():
        earlier = Manifest.read(path, run="a sweep", format=_FORMAT, is_valid=_is_valid)
        num_done = earlier.progress["done"]
        # A finished sweep is replaced, unless it is to be resumed.
        if resume or num_done < len(_blocks(earlier.configuration)):
            differences = differing_entries(earlier.configuration, manifest.configuration)
            check_resumable(path, "an unfinished run", resume=resume, differences=differences)
            earlier_values = files.open_array(
                folder / _VALUES, "the values of a sweep", "float32", shape, writable=True
            )
            return earlier_values, num_done
    # The old manifest is removed first: it must never count values of another run.
    path.unlink(missing_ok=True)
    values = files.new_array(folder / _VALUES, np.float32, shape)
    manifest.write(path)
    return values, 0


def _is_valid(manifest: Manifest) -> bool:
    num_blocks = len(_blocks(manifest.configuration))
    return manifest.progress["done"] in range(num_blocks + 1)
