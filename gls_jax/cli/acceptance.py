"""`gls-jax acceptance`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from gls_jax.cli import layers
from gls_jax.cli.console import progress
from gls_jax.cli.distributed import ALONE, Distributed
from gls_jax.cli.dump import sweep

__all__ = ["Acceptance", "read_text"]


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """Acceptance against the number of drafts K: exact, simulated, bound and optimum; a CSV and a
    figure.
    """

    pairs: str = "random"
    """`random`, `model` (next-token laws of two language models over a text), FILE.npz with log_p
    and log_q, or the folder of a dump (gls-jax dump): then exact acceptances alone, by position, in
    acceptance.npy.
    """
    schemes: tuple[str, ...] = ("gls", "poisson", "gumbel_topk", "naive")
    """Schemes to compare."""
    num_drafts: tuple[int, ...] | None = None
    """List lengths K. Default: 1 to 20 for random pairs and files, 1 to 8 for models."""
    num_trials: int = 10_000
    """Simulated trials a pair and scheme."""
    seed: int = 0
    """Seed of the random pairs and of the simulation."""
    out: Path = Path("results/acceptance")
    """Folder for acceptance.csv, acceptance.png and cells.npz."""
    resume: bool = False
    """Go on with an interrupted run in that folder."""
    json: bool = False
    """Print one JSON object instead of a table."""
    num_pairs: int = 100
    """random: number of pairs."""
    num_items: int = 10
    """random: number of items N."""
    family: str = "dirichlet"
    """random: `dirichlet`, or `gaussian` for the softmax of normals."""
    scale: float = 1.0
    """random: concentration of the Dirichlet, or standard deviation of the normals."""
    target: str = "smollm2"
    """model: `smollm2`, a Hugging Face folder or a .gguf file."""
    draft: str | None = None
    """model: the drafter, likewise. Default: the target without --drop-layers."""
    drop_layers: str = "12-17"
    """model: layers the drafter leaves out, such as `12-17` or `3,7-9`; empty for none."""
    temperature: float = 1.0
    """model: of the target."""
    draft_temperature: float = 1.0
    """model: of the drafter."""
    top_k: int = 50
    """model: keep the k likeliest tokens of both; 0 keeps all (slow to simulate)."""
    text: Path | None = None
    """model: a text file. Default: built-in English texts of several kinds."""
    num_positions: int = 256
    """model: next-token laws to read from the text."""
    context: int = 512
    """model: longer texts are cut into pieces of so many tokens."""
    processes: tyro.conf.OmitArgPrefixes[Distributed] = ALONE
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Compute, write the files, print."""
        from gls_jax.runs import files
        from gls_jax.studies import acceptance_study

        default = (
            range(1, 9) if self.pairs == "model" or Path(self.pairs).is_dir() else range(1, 21)
        )
        ask = acceptance_study.Study(
            self.schemes,
            tuple(default) if self.num_drafts is None else self.num_drafts,
            self.num_trials,
            self.seed,
        )
        if Path(self.pairs).is_dir():
            if self.processes.asked:
                raise ValueError(
                    "distributed: expected one process for a dump, got the options of several"
                )
            files.check_folder(self.out)
            sweep(self)
            return
        ask.check()  # before models are loaded
        with self.processes.joined() as speaks:
            files.check_folder(
                self.out
            )  # hosts may differ in it: the others hear of it at their next meeting
            with progress(speaks) as report:
                pairs, title = self._pairs(report)
                rows = acceptance_study.run(
                    ask, pairs, self.out, resume=self.resume, progress=report
                )
            if speaks:
                self._show(rows, title)

    def _show(self, rows, title: str) -> None:
        from gls_jax.studies import figures

        figures.acceptance(self.out / "acceptance.png", rows, title)
        if self.json:
            print(
                json.dumps(
                    {
                        "title": title,
                        "out": str(self.out),
                        "rows": [dataclasses.asdict(row) for row in rows],
                    }
                )
            )
        else:
            _print_rows(rows, title, self.out)

    def _pairs(self, report):

        from gls_jax import races
        from gls_jax.distributions import pairs

        if self.pairs == "random":
            key = races.private_key(
                races.new_key(self.seed)
            )  # the simulation has the other folds of this seed
            laws = pairs.random(
                key, self.num_pairs, self.num_items, family=self.family, scale=self.scale
            )
            return (
                laws,
                f"{self.num_pairs} random pairs ({self.family} {self.scale:g}) on {self.num_items} items",
            )
        if self.pairs == "model":
            return self._model_pairs(report)
        if not self.pairs.endswith(".npz"):
            raise ValueError(
                f"pairs: expected random, model or a file ending in .npz, got {self.pairs!r}"
            )
        laws = pairs.load(self.pairs)
        return laws, f"{laws.log_q.shape[0]} pairs of {Path(self.pairs).name}"

    def _model_pairs(self, report):
        from gls_jax import decoding, models
        from gls_jax.distributions import next_token_pairs, prompts

        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (all) or more, got {self.top_k}")
        for temperature in (self.temperature, self.draft_temperature):
            decoding.check_sampling(temperature, self.top_k or None)
        texts = prompts.PROMPTS if self.text is None else (read_text(self.text),)
        dropped = layers.parse(self.drop_layers)
        target = models.load(self.target)
        if target.tokenizer is None:
            raise ValueError(f"{self.target}: expected a tokenizer beside the weights, found none")
        if self.draft is not None:
            drafter, name = models.load(self.draft), self.draft
        else:
            drafter = models.load(
                self.target, layers=layers.others(dropped, target.config.num_layers)
            )
            name = (
                f"{self.target} without layers {self.drop_layers}"
                if self.drop_layers
                else self.target
            )
        if (
            drafter.tokenizer is not None
            and drafter.tokenizer.get_vocab() != target.tokenizer.get_vocab()
        ):
            raise ValueError(f"{name}: expected the tokenizer of {self.target}, got another one")
        laws = next_token_pairs(
            models.logits_function(target.model),
            models.logits_function(drafter.model),
            [target.tokenizer.encode(text).ids for text in texts],
            num_positions=self.num_positions,
            max_context=self.context,
            temperature=self.temperature,
            draft_temperature=self.draft_temperature,
            top_k=self.top_k or None,
            progress=lambda done, total: report("next-token laws", done, total),
        )
        kept_tokens = f"top {self.top_k}" if self.top_k else "whole vocabulary"
        title = f"{self.target} drafted by {name}\n{laws.log_q.shape[0]} positions of text, {kept_tokens}"
        return laws, title


def _print_rows(rows, title: str, out: Path) -> None:
    table = Table(title=title)
    for name in ("scheme", "K", "exact", "simulated", "± s.e.", "bound", "optimum (i.i.d.)"):
        table.add_column(name, justify="left" if name == "scheme" else "right")
    previous = rows[0].scheme
    for row in rows:
        if row.scheme != previous:
            table.add_section()
        previous = row.scheme
        values = (row.exact, row.simulated, row.standard_error, row.bound, row.optimum_iid)
        table.add_row(
            row.scheme, str(row.num_drafts), *("" if x is None else f"{x:.4f}" for x in values)
        )
    console = Console()
    console.print(table)
    console.print(f"{out}/acceptance.csv, acceptance.png, cells.npz", highlight=False)


def read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a UTF-8 text file, got other bytes") from None
    if not text.strip():
        raise ValueError(f"{path}: expected a text, got an empty file")
    return text
