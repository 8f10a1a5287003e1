"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Table 9: the same seed, another drafter.

The paper decodes with one drafter at T = 1 and once more at T = 0.5, the same seed, and compares
the outputs by ROUGE. Here the same is done with SmolLM2 and itself without layers 12-17, with exact
matches beside; a third drafter, without layers 10-19, is farther away. Under strong invariance all
outputs are those of plain generation, but for ties that rounding decides: those are counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import shared
from experiments.block_efficiency import Setting, pair, prompts_of, start_run
from gls_jax import checks, models, races

SCHEMES = ("gls", "gls_strong", "gumbel_topk", "specinfer")


class Row(NamedTuple):
    """Outputs with one drafter against outputs with another, or without any."""

    scheme: str
    drafter: str
    against: str
    rouge_1: float
    rouge_2: float
    rouge_l: float
    exact: int
    texts: int


@dataclasses.dataclass(frozen=True)
class SameSeed:
    """GLS paper, Table 9: outputs of one seed under different drafters, by ROUGE and exact match."""

    FULL: ClassVar[dict] = {"num_prompts": 50, "new_tokens": 128}

    num_prompts: int = 15
    """Prompts, at most 50."""
    new_tokens: int = 24
    """Length of the texts."""
    num_drafts: int = 2
    """K chains of length 4."""
    seed: int = 0
    """Seed of all runs."""
    out: Path = Path("results/same_seed")
    """Folder for same_seed.csv and same_seed.png."""
    full: bool = False
    """50 prompts, 128 tokens."""

    def run(self, report: shared.Report) -> list:
        for name in ("num_prompts", "new_tokens", "num_drafts"):
            checks.count(getattr(self, name), name)
        target, near = pair((12, 17))
        _, far = pair((10, 19))
        prompts = prompts_of(target, self.num_prompts)
        drafters = {
            "T = 1": (near, None),
            "T = 0.5": (near, (0.5,)),
            "fewer layers": (far, None),
            "none": (None, None),
        }
        rows, work = [], [(scheme, name) for scheme in SCHEMES for name in drafters]
        texts = {}
        with shared.unfinished(self.out) as keep:
            for done, (scheme, name) in enumerate(work):
                report("schemes x drafters", done, len(work))
                asked = (
                    scheme,
                    name,
                    self.num_prompts,
                    self.new_tokens,
                    self.num_drafts,
                    self.seed,
                )
                drafter, temperatures = drafters[name]
                setting = Setting(
                    "same seed", scheme, self.num_drafts, draft_temperatures=temperatures
                )
                texts[scheme, name] = keep(
                    lambda d=drafter, s=setting: self._texts(target, d, prompts, s), *asked
                )
        for scheme in SCHEMES:
            for name, against in (
                ("T = 1", "T = 0.5"),
                ("T = 1", "fewer layers"),
                ("T = 1", "none"),
            ):
                if against != "none" or scheme in ("gls_strong", "gumbel_topk"):
                    rows.append(
                        compare(
                            target,
                            scheme,
                            name,
                            against,
                            texts[scheme, name],
                            texts[scheme, against],
                        )
                    )
        shared.write_csv(self.out / "same_seed.csv", rows)
        title = f"SmolLM2, K = {self.num_drafts}, L = 4, {len(prompts)} texts of {self.new_tokens} tokens, one seed"
        shared.save(self.out / "same_seed.png", _figure(rows, title))
        header = (
            "scheme",
            "drafter",
            "against",
            "ROUGE-1",
            "ROUGE-2",
            "ROUGE-L",
            "equal texts",
            "of",
        )
        return [shared.table(title, header, rows)]

    def _texts(self, target, drafter, prompts, setting: Setting) -> np.ndarray:
        keys = races.keys.fold_in_each(shared.root_key(self.seed), np.arange(len(prompts)))
        run = start_run(target, drafter, prompts, keys, setting, self.new_tokens)
        return np.asarray(run.finish().tokens)


def compare(target: models.Checkpoint, scheme: str, drafter: str, against: str, one, other) -> Row:
    """Mean ROUGE F1 over the texts, by words, and how many are token for token the same."""
    assert target.tokenizer is not None
    words = [
        [target.tokenizer.decode(text.tolist()).split() for text in side] for side in (one, other)
    ]
    scores = np.mean([rouge(*both) for both in zip(*words, strict=True)], axis=0)
    return Row(
        scheme,
        drafter,
        against,
        *map(float, scores),
        int((one == other).all(axis=1).sum()),
        len(one),
    )


def rouge(one: list[str], other: list[str]) -> tuple[float, float, float]:
    """F1 of shared words, of shared pairs of words, and of the longest common subsequence (Lin
    2004).
    """

    def f1(hits: int, size: int, size_other: int) -> float:
        return 2 * hits / (size + size_other) if size + size_other else 1.0

    def shared_grams(n: int) -> float:
        grams = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (one, other)]
        return f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())

    longest = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for j, word_other in enumerate(other):
            row.append(longest[j] + 1 if word == word_other else max(row[-1], longest[j + 1]))
        longest = row
    return shared_grams(1), shared_grams(2), f1(longest[-1], len(one), len(other))


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    names = [f"{row.scheme}\n{row.drafter} / {row.against}" for row in rows]
    for at, field in enumerate(("rouge_1", "rouge_2", "rouge_l")):
        values = [getattr(row, field) for row in rows]
        axes.bar(
            np.arange(len(rows)) + 0.25 * (at - 1),
            values,
            0.24,
            label=field.replace("_", "-").upper(),
        )
    for at, row in enumerate(rows):
        axes.text(at, 1.02, f"{row.exact}/{row.texts} equal", ha="center", fontsize=6)
    axes.set_xticks(range(len(rows)), names, fontsize=6)
    axes.set(ylim=(0, 1.1), ylabel="F1 against the other drafter's text")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small", loc="lower left")
    return figure
