"""`gls-jax dump`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import tyro

from gls_jax.cli.console import print_json, progress
from gls_jax.cli.option_groups import DEFAULT_MODELS, DEFAULT_SAMPLING, ModelNames, SamplingOptions
from gls_jax.distributions.text_dump import DumpRequest, dump_pair

__all__ = ["DumpDistributions"]


@dataclasses.dataclass(frozen=True)
class DumpDistributions:
    """Next-token distributions of two models along texts, in memory-mapped files.

    The most probable tokens are kept, and the total probability of all others.
    """

    models: tyro.conf.OmitArgPrefixes[ModelNames] = DEFAULT_MODELS
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = DEFAULT_SAMPLING
    out: Path = Path("results/dump")
    """Folder of the dump."""
    text: Path | None = None
    """A text file. Default: continuations of built-in prompts, sampled from the target;
    acceptance along these equals acceptance in decoding.
    """
    num_positions: int = DumpRequest.num_positions
    """Number of text positions."""
    num_kept: int = DumpRequest.num_kept
    """Most probable tokens of each distribution that are kept, m."""
    dtype: str = DumpRequest.dtype
    """`float32`, or `float16` for half of the size."""
    length: int = DumpRequest.length
    """Longest continuation, in tokens."""
    batch: int = DumpRequest.batch
    """Continuations sampled together."""
    context: int = DumpRequest.context_length
    """A text file is cut into pieces of at most this many tokens."""
    seed: int = DumpRequest.seed
    """Seed of the continuations."""
    resume: bool = False
    """Continue the dump in the --out folder."""
    json: bool = False
    """Print one JSON object."""
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Dump, then print the size of the dump and the mass of the tokens that it leaves out."""
        request = DumpRequest(
            folder=self.out,
            model_names=dataclasses.asdict(self.models),
            sampling=self.sampling.sampling(),
            text=self.text,
            num_positions=self.num_positions,
            num_kept=self.num_kept,
            dtype=self.dtype,
            length=self.length,
            batch=self.batch,
            context_length=self.context,
            seed=self.seed,
        )
        # Everything is checked before models are loaded.
        self.models.check(refused=("none",))
        request.check()
        with progress() as report:
            pair = self.models.load(report)
            dump = dump_pair(request, pair, resume=self.resume, progress=report)
        configuration, rows = dump.configuration, dump.rows
        figures = {
            "positions": len(dump),
            "documents": int(rows.begins.sum()),
            "tokens_a_position": float((rows.tokens >= 0).sum(axis=1).mean()),
            "draft_tail": float(rows.tail_p.mean()),
            "target_tail": float(rows.tail_q.mean()),
            "log_prob_error": dump.log_prob_error,
        }
        if self.json:
            print_json({"out": str(self.out), "configuration": configuration, **figures})
        else:
            for name, value in figures.items():
                print(f"{name.replace('_', ' ')}: {value:.5g}")
