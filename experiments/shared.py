"""What the experiments share: SmolLM2 read once, values of many pairs, work that can be stopped,
files and tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from gls_jax import checks, decoding, models, races, schemes
from gls_jax.distributions import next_token_pairs, pairs, prompts
from gls_jax.runs import files

Report = Callable[[str, int, int], None]
"""Progress: what, how many done, of how many."""


_AT_ONCE = (
    2**13
)  # numbers of one law that are worked on together: 64 pairs at top 50, one pair of a vocabulary


class Model(NamedTuple):
    """A language model as two functions: tokens `i32[B, T]` to logits `[B, T, V]`, and text to
    tokens.
    """

    logits: Callable[[np.ndarray], Any]
    encode: Callable[[str], list[int]]
    num_layers: int


@cache
def smollm2(dropped: tuple[int, int] | None = None) -> Model:
    """SmolLM2, whole or without the layers from the first to the last of `dropped`; reads no text
    twice.
    """
    layers = None if dropped is None else others(dropped, smollm2().num_layers)
    found = models.load("smollm2", layers=layers)
    forward, known = models.logits_function(found.model), {}

    def logits(tokens: np.ndarray):
        text = tokens.tobytes()
        if text not in known:
            known[text] = forward(tokens)
        return known[text]

    return Model(logits, lambda text: found.tokenizer.encode(text).ids, found.config.num_layers)


def others(dropped: tuple[int, int], num_layers: int) -> list[int]:
    """The layers that stay."""
    first, last = dropped
    layers = [layer for layer in range(num_layers) if not first <= layer <= last]
    if not 0 <= first <= last < num_layers or not layers:
        raise ValueError(
            f"drop: expected the first and last of some of the layers 0-{num_layers - 1}, got {dropped}"
        )
    return layers


def next_token_laws(
    dropped: tuple[int, int],
    *,
    num_prompts: int,
    num_positions: int,
    top_k: int,
    temperature: float = 1.0,
    draft_temperature: float = 1.0,
) -> pairs.Pairs:
    """Laws of SmolLM2 and of itself without some layers.

    Args:
        dropped: first and last of the layers that the drafter leaves out.
        num_prompts: how many of the library's texts, at most eight.
        num_positions: the first so many positions of each.
        top_k: keep so many tokens of each model; 0 keeps the vocabulary.
        temperature: of the target.
        draft_temperature: of the drafter.
    """
    num_prompts, num_positions = (
        checks.count(num_prompts, "num_prompts"),
        checks.count(num_positions, "num_positions"),
    )
    for value in (temperature, draft_temperature):  # before the models are loaded
        decoding.check_sampling(value, top_k or None)
    target, drafter = smollm2(), smollm2(dropped)
    texts = [target.encode(text)[:num_positions] for text in prompts.PROMPTS[:num_prompts]]
    return next_token_pairs(
        target.logits,
        drafter.logits,
        texts,
        num_positions=sum(map(len, texts)),
        temperature=temperature,
        draft_temperature=draft_temperature,
        top_k=top_k or None,
    )


def root_key(seed: int):
    """The key of a seed, or a `ValueError`."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an int within 0..2^32 - 1, got {seed}")
    return races.new_key(seed)


def exact(scheme: schemes.Scheme, log_p, log_q, num_drafts: Sequence[int]) -> np.ndarray:
    """Exact acceptance of every pair at every K, `f[M, len(num_drafts)]`."""
    return over_pairs(_curve(scheme, tuple(num_drafts)), log_p, log_q)


@cache
def _curve(scheme: schemes.Scheme, num_drafts: tuple[int, ...]) -> Callable:
    return partial(scheme.acceptance_curve, num_drafts=num_drafts)  # one object, one compilation


def over_pairs(function: Callable, *arrays) -> np.ndarray:
    """`function` of one pair, applied to each and compiled once a function and shape; the last
    array is `[M, N]`.
    """
    return np.asarray(_over_pairs(arrays, function))


@partial(jax.jit, static_argnames="function")
def _over_pairs(arrays, function: Callable):
    batch = max(1, _AT_ONCE // arrays[-1].shape[-1])
    return jax.lax.map(lambda pair: function(*pair), arrays, batch_size=batch)


@contextmanager
def unfinished(folder: Path) -> Iterator[Callable]:
    """Yields `keep(compute, *asked)`: what `compute()` gave, kept on disk until all the work of
    this run is done.

    `asked` is all that the array depends on. A run that is stopped leaves its arrays behind, and
    the next one that asks for the same takes them up; a finished run leaves none.
    """
    kept = folder / "unfinished"
    kept.mkdir(parents=True, exist_ok=True)

    def keep(compute: Callable[[], Any], *asked) -> np.ndarray:
        digest = hashlib.sha256()
        for part in asked:
            digest.update(
                repr(
                    (part.shape, part.tobytes()) if isinstance(part, np.ndarray) else part
                ).encode()
            )
        path = kept / f"{digest.hexdigest()[:32]}.npz"
        if not path.exists():
            files.write_arrays(path, {"array": np.asarray(compute())})
        return files.read_arrays(path, "part of an earlier run")["array"]

    yield keep
    shutil.rmtree(kept)


def write_csv(path: Path, rows: Sequence[NamedTuple]) -> None:
    """One line a row under the field names; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: io.TextIOBase) -> None:
        text = csv.writer(file, lineterminator="\n")
        text.writerow(rows[0]._fields)
        text.writerows(rows)

    files.write_whole(path, write, mode="w")


def save(path: Path, figure: Figure) -> None:
    """The figure as a `.png` file."""
    files.write_whole(
        path, lambda file: figure.savefig(file, format="png", dpi=90, metadata={"Software": None})
    )


def table(title: str, header: Sequence[str], lines: Iterable[Sequence], note: str = "") -> Table:
    """Numbers to four digits, to the right; words to the left."""
    made, lines = Table(title=title, caption=note or None, box=box.SIMPLE_HEAD), list(lines)
    for name, *cells in zip(header, *lines, strict=True):
        made.add_column(
            name, justify="left" if all(isinstance(cell, str) for cell in cells) else "right"
        )
    for line in lines:
        made.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in line))
    return made
