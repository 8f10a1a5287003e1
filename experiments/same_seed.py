"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Table 9: the same seed, another drafter.

The paper decodes with one drafter at T = 1 and once more at T = 0.5, the same seed, and compares
the outputs by ROUGE. Here the same is done with SmolLM2 and itself without layers 12-17, and exact
matches are counted too; a third drafter, without layers 10-19, is farther from the target. Under
strong invariance all outputs are those of plain generation, except for ties that rounding decides:
those are counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import decoding_runs, output, shared
from experiments.decoding_runs import Setting
from gls_jax import models
from gls_jax.typing import Report

SCHEMES = ("gls", "gls_strong", "gumbel_topk", "specinfer")
# Strongly invariant: their text does not depend on the drafts.
STRONG_SCHEMES = ("gls_strong", "gumbel_topk")
# The outputs with the first drafter are compared with those of the others.
FIRST_DRAFTER = "T = 1"
OTHER_DRAFTERS = ("T = 0.5", "fewer layers", "none")


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
    """GLS paper, Table 9: outputs of one seed with different drafters, by ROUGE and exact match.

    Attributes:
        num_prompts: Prompts, at most 50.
        new_tokens: Length of the texts.
        num_drafts: K chains of length 4.
        seed: Seed of all runs.
        out: Folder for same_seed.csv and same_seed.png.
        full: 50 prompts, 128 tokens.
    """

    FULL: ClassVar[dict] = {"num_prompts": 50, "new_tokens": 128}

    num_prompts: int = 15
    new_tokens: int = 24
    num_drafts: int = 2
    seed: int = 0
    out: Path = Path("results/same_seed")
    full: bool = False

    def run(self, report: Report) -> list:
        shared.check_counts(self, "num_prompts", "new_tokens", "num_drafts")
        target, texts = self._all_texts(report)
        rows = []
        for scheme in SCHEMES:
            first = texts[scheme, FIRST_DRAFTER]
            for drafter in OTHER_DRAFTERS:
                # Only under strong invariance should the text be that of plain generation.
                if drafter != "none" or scheme in STRONG_SCHEMES:
                    scores = compare(target, first, texts[scheme, drafter])
                    rows.append(Row(scheme, FIRST_DRAFTER, drafter, *scores, len(first)))
        texts_text = f"{self.num_prompts} texts of {self.new_tokens} tokens"
        title = f"SmolLM2, K = {self.num_drafts}, L = 4, {texts_text}, one seed"
        output.save_results(self.out, "same_seed", rows, _figure(rows, title))
        scores_header = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
        header = ("scheme", "drafter", "against", *scores_header, "equal texts", "of")
        return [output.table(title, header, rows)]

    def _all_texts(self, report: Report):
        """The target, and the texts of every scheme and drafter."""
        target, near = decoding_runs.load_pair((12, 17))
        _, far = decoding_runs.load_pair((10, 19))
        prompts = decoding_runs.question_prompts(target, self.num_prompts)
        # Drafters and their temperatures.
        drafters = {
            "T = 1": (near, None),
            "T = 0.5": (near, (0.5,)),
            "fewer layers": (far, None),
            "none": (None, None),
        }
        work = [(scheme, drafter_name) for scheme in SCHEMES for drafter_name in drafters]
        texts = {}
        with shared.resumable_arrays(self.out) as compute_once:
            for num_done, (scheme, drafter_name) in enumerate(work):
                report("schemes x drafters", num_done, len(work))
                drafter, draft_temperatures = drafters[drafter_name]
                setting = Setting(
                    "same seed", scheme, self.num_drafts, draft_temperatures=draft_temperatures
                )
                texts[scheme, drafter_name] = compute_once(
                    partial(self._texts, target, drafter, prompts, setting),
                    scheme,
                    drafter_name,
                    self.num_prompts,
                    self.new_tokens,
                    self.num_drafts,
                    self.seed,
                )
        return target, texts

    def _texts(self, target, drafter, prompts, setting: Setting) -> np.ndarray:
        """Generated tokens, `i32[prompts, new_tokens]`."""
        request_keys = decoding_runs.request_keys(self.seed, len(prompts))
        run = decoding_runs.start_run(
            target, drafter, prompts, request_keys, setting, self.new_tokens
        )
        return np.asarray(run.finish().tokens)


def compare(
    target: models.Checkpoint, texts: np.ndarray, other_texts: np.ndarray
) -> tuple[float, float, float, int]:
    """Mean ROUGE-1, -2 and -L F1 by words, and how many texts are equal token for token."""
    assert target.tokenizer is not None  # SmolLM2 has one
    decode = target.tokenizer.decode
    scores = []
    for text, other_text in zip(texts, other_texts, strict=True):
        words = decode(text.tolist()).split()
        other_words = decode(other_text.tolist()).split()
        scores.append(rouge(words, other_words))
    # Means over the texts.
    rouge_1, rouge_2, rouge_l = np.mean(scores, axis=0)
    num_equal = int((texts == other_texts).all(axis=1).sum())
    return float(rouge_1), float(rouge_2), float(rouge_l), num_equal


def rouge(words: list[str], other_words: list[str]) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 (Lin 2004).

    They count shared words, shared pairs of neighbouring words, and the words of the longest common
    subsequence.
    """
    longest = _longest_common_subsequence(words, other_words)
    return (
        _shared_f1(Counter(words), Counter(other_words)),
        _shared_f1(_pair_counts(words), _pair_counts(other_words)),
        _f1(longest, len(words), len(other_words)),
    )


def _pair_counts(words: list[str]) -> Counter:
    return Counter(pairwise(words))


def _shared_f1(counts: Counter, other_counts: Counter) -> float:
    return _f1((counts & other_counts).total(), counts.total(), other_counts.total())


def _f1(num_shared: int, size: int, other_size: int) -> float:
    """Harmonic mean of precision and recall; two empty texts are equal."""
    return 2 * num_shared / (size + other_size) if size + other_size else 1.0


def _longest_common_subsequence(words: list[str], other_words: list[str]) -> int:
    # `longest[j]` is the length for the words so far and the first j of the others.
    longest = [0] * (len(other_words) + 1)
    for word in words:
        row = [0]
        for j, other_word in enumerate(other_words):
            if word == other_word:
                row.append(longest[j] + 1)
            else:
                row.append(max(row[-1], longest[j + 1]))
        longest = row
    return longest[-1]


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(rows))
    # Three bars side by side for each row.
    for bar_index, field in enumerate(("rouge_1", "rouge_2", "rouge_l")):
        axes.bar(
            positions + 0.25 * (bar_index - 1),
            output.column(rows, field),
            0.24,
            label=field.replace("_", "-").upper(),
        )
    for position, row in enumerate(rows):
        axes.text(position, 1.02, f"{row.exact}/{row.texts} equal", ha="center", fontsize=6)
    row_names = [f"{row.scheme}\n{row.drafter} / {row.against}" for row in rows]
    axes.set_xticks(range(len(rows)), row_names, fontsize=6)
    axes.set(ylim=(0, 1.1), ylabel="F1 against the other drafter's text")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small", loc="lower left")
    return figure
