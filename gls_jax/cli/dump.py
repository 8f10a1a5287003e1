"""`gls-jax dump`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.table import Table

from gls_jax.cli import loading
from gls_jax.cli.console import progress
from gls_jax.cli.pair import Pair

if TYPE_CHECKING:
    from gls_jax.cli.acceptance import Acceptance
    from gls_jax.distributions import Dump

__all__ = ["DumpLaws", "sweep"]


@dataclasses.dataclass(frozen=True)
class DumpLaws(Pair):
    """Next-token laws of two models along texts, in a memory-mapped file: the likeliest tokens and
    the tails' mass.
    """

    out: Path = Path("results/dump")
    """Folder of the dump."""
    text: Path | None = None
    """A text file. Default: continuations of built-in prompts that the target samples, whose
    acceptances are those of decoding.
    """
    num_positions: int = 10_000
    """Positions of text."""
    dtype: str = "float32"
    """`float32`, or `float16` for half of the size."""
    length: int = 128
    """Longest continuation."""
    batch: int = 8
    """Continuations sampled together."""
    context: int = 512
    """A text file is cut into pieces of so many tokens."""
    resume: bool = False
    """Go on with the dump in the folder."""
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Load, dump, say what there is."""
        self.check()
        with progress() as report:
            dump = self.make(
                *loading.load(self.target, self.draft, self.drop_layers, report), report
            )
        asked, rows = dump.configuration, dump.rows
        figures = {
            "positions": len(dump),
            "documents": int(rows.begins.sum()),
            "tokens_a_position": float((rows.tokens >= 0).sum(axis=1).mean()),
            "draft_tail": float(rows.tail_p.mean()),
            "target_tail": float(rows.tail_q.mean()),
            "log_prob_error": dump.log_prob_error,
        }
        if self.json:
            print(json.dumps({"out": str(self.out), "asked": asked, **figures}))
        else:
            for name, value in figures.items():
                print(f"{name.replace('_', ' ')}: {value:.5g}")

    def check(self) -> None:
        """Raise for what can be told to be wrong before models are loaded."""
        from gls_jax import checks
        from gls_jax.cli import requests
        from gls_jax.distributions import DTYPES, check_context
        from gls_jax.runs import files

        loading.check(self.draft, self.drop_layers)
        if self.draft == "none":
            raise ValueError("draft: expected a drafter, got none")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (all) or more, got {self.top_k}")
        self.sampling().check()
        for name in ("num_positions", "num_kept", "length", "batch"):
            checks.count(getattr(self, name), name)
        check_context(self.context)
        checks.one_of(self.dtype, DTYPES, "dtype")
        requests.check_seed(self.seed)
        files.check_folder(self.out)
        if self.text is not None and not self.text.is_file():
            raise FileNotFoundError(f"{self.text}: no such file; expected a text")

    def make(self, source: Any, drafter: Any, report: Callable[[str, int, int], None]) -> Dump:
        """The dump of these models."""
        from gls_jax import distributions, races
        from gls_jax.cli.acceptance import read_text
        from gls_jax.distributions import prompts
        from gls_jax.runs import resume

        target, tokenizer, sampling = source.language_model, source.tokenizer, self.sampling()
        facts: dict[str, Any] = dict(self.models)
        if self.text is None:
            begun = [tokenizer.encode(text).ids for text in prompts.PROMPTS]
            ends = list(source.config.eos_token_ids)
            own = {
                "length": self.length,
                "batch": self.batch,
                "seed": self.seed,
                "stop_tokens": ends,
            }
            facts |= {"own_text": True, "prompts": resume.configuration_hash(begun), **own}
            context = max(map(len, begun)) + self.length

            def documents(first: int):
                key, more = races.new_key(self.seed), {"length": self.length, "batch": self.batch}
                return distributions.sampled_texts(
                    key, target, begun, sampling, stop_tokens=ends, first=first, **more
                )
        else:
            texts = [tokenizer.encode(read_text(self.text)).ids]
            if len(texts[0]) < 2:
                raise ValueError(
                    f"{self.text}: expected a text of at least 2 tokens, got {len(texts[0])}"
                )
            facts |= {
                "own_text": False,
                "text": self.text.name,
                "tokens": resume.configuration_hash(texts),
                "context": self.context,
            }
            context = self.context

            def documents(first: int):
                return distributions.text_pieces(texts, context, first)

        return distributions.write(
            self.out,
            target,
            drafter,
            documents,
            sampling,
            num_positions=self.num_positions,
            context=context,
            num_kept=self.num_kept,
            dtype=self.dtype,
            metadata=facts,
            resume=self.resume,
            progress=lambda done, total: report("next-token laws", done, total),
        )


def sweep(asked: Acceptance) -> None:
    """`gls-jax acceptance --pairs FOLDER`: exact acceptance at every position of a dump."""
    from gls_jax import distributions, studies

    dump = distributions.open_dump(asked.pairs)
    counts = tuple(range(1, 9)) if asked.num_drafts is None else asked.num_drafts
    with progress() as report:
        means = studies.position_acceptance(
            dump,
            asked.out,
            names=asked.schemes,
            num_drafts=counts,
            resume=asked.resume,
            progress=report,
        )
    title = f"{len(dump)} positions of {asked.pairs}"
    if asked.json:
        rows = [dataclasses.asdict(mean) for mean in means]
        print(json.dumps({"title": title, "out": str(asked.out), "rows": rows}))
        return
    table = Table(title=title)
    for name in ("scheme", "K", "exact, disjoint tails", "exact, merged tails", "truth"):
        table.add_column(name, justify="left" if name in ("scheme", "truth") else "right")
    for mean in means:
        values = ("" if x is None else f"{x:.4f}" for x in (mean.disjoint, mean.merged))
        table.add_row(
            mean.scheme, str(mean.num_drafts), *values, "between" if mean.bracketed else "near"
        )
    console = Console()
    console.print(table)
    console.print(f"{asked.out}/acceptance.npy, acceptance.json", highlight=False)
