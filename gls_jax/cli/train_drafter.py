"""`gls-jax train-drafter`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from gls_jax.cli.console import print_json, progress
from gls_jax.drafter_options import DrafterTraining, TextSource

__all__ = ["TrainDrafter"]

_DEFAULT_SOURCE = TextSource()
_DEFAULT_TRAINING = DrafterTraining()


@dataclasses.dataclass(frozen=True)
class TrainDrafter:
    """Train a small drafter that observes a language model, on texts that the model writes itself.

    The result is DIR/drafter.safetensors: `gls-jax generate --target ... --draft DIR` uses it.
    """

    target: str = "smollm2"
    """`smollm2`, a Hugging Face folder or a .gguf file."""
    out: Path = Path("results/drafter")
    """Folder for texts, features, checkpoints, the drafter and a report with a figure."""
    source: tyro.conf.OmitArgPrefixes[TextSource] = _DEFAULT_SOURCE
    training: tyro.conf.OmitArgPrefixes[DrafterTraining] = _DEFAULT_TRAINING
    observed_layers: tuple[int, ...] | None = None
    """Layers of the target whose outputs the drafter gets; the last one must be its last. Default:
    those after a third, two thirds and all of its depth.
    """
    resume: bool = False
    """Continue the run in that folder."""
    json: bool = False
    """Print one JSON object instead of tables."""
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Write texts, read them, train, report."""
        from gls_jax.models import drafter, model_pair

        self.source.check()
        self.training.check()
        drafter.parse_objective(self.training.loss)
        with progress() as report:
            pair = model_pair.load_pair(self.target, "none", progress=report)
            trained = drafter.make_drafter(
                self.out,
                pair,
                self.source,
                self.training,
                observed_layers=self.observed_layers,
                resume=self.resume,
                progress=report,
            )
        if self.json:
            print_json({"out": str(self.out), **trained})
            return
        console = Console()
        console.print(_table(trained))
        console.print(
            f"{self.out}/{drafter.FILE_NAME}: the drafter, {trained['tokens']} tokens of "
            f"{trained['texts']} texts",
            highlight=False,
        )


def _table(trained: dict) -> Table:
    table = Table(title="acceptance of one draft (1 - TV) on held-out texts")
    table.add_column("steps", justify="right")
    num_depths = len(trained["validations"][0]["acceptance"])
    for depth in range(1, num_depths + 1):
        table.add_column(f"draft {depth}", justify="right")
    table.add_column("accepted in a chain", justify="right")
    for row in trained["validations"]:
        figures = [*row["acceptance"], row["length"]]
        table.add_row(str(row["step"]), *(f"{figure:.3f}" for figure in figures))
    return table
