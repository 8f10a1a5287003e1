"""`gls-jax acceptance`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from rich.table import Table

from gls_jax import decoding, distributions, races, studies
from gls_jax.cli.console import print_json, print_table, progress
from gls_jax.cli.distributed import SINGLE_PROCESS, Distributed
from gls_jax.cli.option_groups import DEFAULT_MODELS, ModelNames, top_k_or_all
from gls_jax.distributions.pairs import Pairs
from gls_jax.distributions.prompts import PROMPTS
from gls_jax.distributions.text_dump import read_document
from gls_jax.runs import files
from gls_jax.studies import acceptance_study
from gls_jax.typing import Report

__all__ = ["Acceptance"]


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """Acceptance against the number of drafts K, as a CSV file and a figure.

    Exact and simulated acceptance, the bound and the optimum.
    """

    pairs: str = "random"
    """`random`, `model` (next-token distributions of two language models over a text), FILE.npz
    with log_p and log_q, or the folder of a dump (gls-jax dump). For a dump only exact acceptances
    are computed; those of each position are written to acceptance.npy.
    """
    schemes: tuple[str, ...] = ("gls", "poisson", "gumbel_topk", "topk", "naive")
    """Schemes to compare."""
    num_drafts: tuple[int, ...] | None = None
    """List lengths K. Default: 1 to 20 for random pairs and files, 1 to 8 for models."""
    num_trials: int = 10_000
    """Simulated trials per pair and scheme."""
    seed: int = 0
    """Seed of the random pairs and of the simulation."""
    out: Path = Path("results/acceptance")
    """Folder for acceptance.csv, acceptance.png and cells.npz (the numbers of every pair)."""
    resume: bool = False
    """Continue the interrupted run in the --out folder."""
    json: bool = False
    """Print one JSON object instead of a table."""
    num_pairs: int = 100
    """Only with --pairs random: number of pairs."""
    num_categories: Annotated[int, tyro.conf.arg(aliases=["--num-items"])] = 10
    """Only with --pairs random: number of categories N."""
    family: str = "dirichlet"
    """Only with --pairs random: `dirichlet`, or `gaussian` for the softmax of normals."""
    scale: float = 1.0
    """Only with --pairs random: concentration of the Dirichlet distribution, or standard deviation
    of the normals.
    """
    models: tyro.conf.OmitArgPrefixes[ModelNames] = DEFAULT_MODELS
    temperature: float = 1.0
    """Only with --pairs model: temperature of the target."""
    draft_temperature: float | None = None
    """Only with --pairs model: temperature of the drafter. Default: that of the target."""
    top_k: int = 50
    """Only with --pairs model: keep the k most probable tokens of both models; 0 keeps all, which
    is slow to simulate.
    """
    text: Path | None = None
    """Only with --pairs model: a text file. Default: built-in English texts of several kinds."""
    num_positions: int = 256
    """Only with --pairs model: number of text positions."""
    context: int = 512
    """Only with --pairs model: texts are cut into pieces of at most this many tokens."""
    processes: tyro.conf.OmitArgPrefixes[Distributed] = SINGLE_PROCESS
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Compute, write the files, print."""
        if Path(self.pairs).is_dir():
            self._run_dump()
            return
        # Distributions of models have many categories, and each list length is slow.
        default_max_drafts = 8 if self.pairs == "model" else 20
        num_drafts = self._list_lengths(default_max_drafts)
        study = acceptance_study.Study(self.schemes, num_drafts, self.num_trials, self.seed)
        # Before models are loaded.
        study.check()
        with self.processes.joined_cluster() as is_primary:
            # This may fail on one host only; the others notice at the next barrier.
            files.check_folder(self.out)
            with progress(is_primary) as report:
                pairs, title = self._pairs(report)
                rows = acceptance_study.run(
                    study, pairs, self.out, resume=self.resume, progress=report
                )
            if not is_primary:
                return
            # Needs the extra `figures`, which a dump does not.
            from gls_jax.studies import figures

            figures.acceptance(self.out / "acceptance.png", rows, title)
            if self.json:
                self._print_json(rows, title)
            else:
                names = f"{self.out}/acceptance.csv, acceptance.png, cells.npz"
                print_table(_study_table(rows, title), names)

    def _run_dump(self) -> None:
        """Exact acceptances at every position of a dump."""
        if self.processes.is_requested:
            raise ValueError(
                "distributed: expected one process for a dump, got --distributed options"
            )
        files.check_folder(self.out)
        # Nothing is simulated along a dump: only exact values are computed, per position.
        dump = distributions.open_dump(self.pairs)
        with progress() as report:
            means = studies.position_acceptance(
                dump,
                self.out,
                names=self.schemes,
                num_drafts=self._list_lengths(8),
                resume=self.resume,
                progress=report,
            )
        title = f"{len(dump)} positions of {self.pairs}"
        if self.json:
            self._print_json(means, title)
        else:
            names = f"{self.out}/acceptance.npy, acceptance.json"
            print_table(_dump_table(means, title), names)

    def _list_lengths(self, default_max_drafts: int) -> tuple[int, ...]:
        if self.num_drafts is None:
            return tuple(range(1, default_max_drafts + 1))
        return self.num_drafts

    def _print_json(self, rows: Sequence[Any], title: str) -> None:
        records = [dataclasses.asdict(row) for row in rows]
        print_json({"title": title, "out": str(self.out), "rows": records})

    def _pairs(self, report: Report) -> tuple[Pairs, str]:
        """The pairs of distributions, and a title for them."""
        if self.pairs == "random":
            # The simulation uses other keys derived from this seed.
            key = races.private_key(races.new_key(self.seed))
            pairs = distributions.pairs.random(
                key, self.num_pairs, self.num_categories, family=self.family, scale=self.scale
            )
            kind = f"{self.family} {self.scale:g}"
            title = f"{self.num_pairs} random pairs ({kind}) on {self.num_categories} categories"
            return pairs, title
        if self.pairs == "model":
            return self._model_pairs(report)
        if not self.pairs.endswith(".npz"):
            raise ValueError(
                f"pairs: expected random, model or a file ending in .npz, got {self.pairs!r}"
            )
        pairs = distributions.pairs.load(self.pairs)
        return pairs, f"{pairs.log_q.shape[0]} pairs of {Path(self.pairs).name}"

    def _model_pairs(self, report: Report) -> tuple[Pairs, str]:
        """Next-token distributions of two models."""
        # Everything is checked before models are loaded.
        top_k = top_k_or_all(self.top_k)
        draft_temperature = self.draft_temperature
        if draft_temperature is None:
            draft_temperature = self.temperature
        for temperature in (self.temperature, draft_temperature):
            decoding.check_sampling(temperature, top_k)
        texts = PROMPTS if self.text is None else (read_document(self.text),)
        self.models.check(refused=("ngram", "none"))

        # Needs the extra `lm`, which other pairs do not.
        from gls_jax.models import logits_function

        model_pair = self.models.load(report)
        assert model_pair.draft_checkpoint is not None
        pairs = distributions.next_token_pairs(
            logits_function(model_pair.target.model),
            logits_function(model_pair.draft_checkpoint.model),
            [model_pair.tokenizer.encode(text).ids for text in texts],
            num_positions=self.num_positions,
            max_context=self.context,
            temperature=self.temperature,
            draft_temperature=draft_temperature,
            top_k=top_k,
            progress=lambda done, total: report("next-token distributions", done, total),
        )
        kept_tokens = "whole vocabulary" if top_k is None else f"top {top_k}"
        positions = f"{pairs.log_q.shape[0]} positions of text, {kept_tokens}"
        names = f"{model_pair.target_name} drafted by {model_pair.draft_name}"
        return pairs, f"{names}\n{positions}"


def _study_table(rows: Sequence[acceptance_study.Row], title: str) -> Table:
    table = Table(title=title)
    for name in ("scheme", "K", "exact", "simulated", "± s.e.", "bound", "optimum (i.i.d.)"):
        table.add_column(name, justify="left" if name == "scheme" else "right")
    previous_scheme = rows[0].scheme
    for row in rows:
        if row.scheme != previous_scheme:
            table.add_section()
        previous_scheme = row.scheme
        values = (row.exact, row.simulated, row.standard_error, row.bound, row.optimum_iid)
        table.add_row(row.scheme, str(row.num_drafts), *map(_format, values))
    return table


def _dump_table(means: Sequence[studies.Mean], title: str) -> Table:
    table = Table(title=title)
    names = ("scheme", "K", "exact, disjoint tails", "exact, merged tails", "without truncation")
    for name in names:
        is_text = name in ("scheme", "without truncation")
        table.add_column(name, justify="left" if is_text else "right")
    for mean in means:
        # For some schemes the two treatments of the truncated mass give bounds, for others only
        # approximations.
        whole_vocabulary = "between the two" if mean.bracketed else "near the two"
        values = (_format(mean.disjoint), _format(mean.merged))
        table.add_row(mean.scheme, str(mean.num_drafts), *values, whole_vocabulary)
    return table


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
