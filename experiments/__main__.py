"""`python -m experiments NAME [--full] [--out DIR] [...]`: options, progress and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console

from experiments import (
    block_efficiency,
    daliri,
    diverse,
    gaussian_tables,
    gls_fig6,
    khisti,
    mnist_tables,
    per_token,
    public_samplers,
    same_seed,
    trained_drafters,
    tree_budget,
)
from experiments.bench import command
from gls_jax.cli.console import progress
from gls_jax.runs import files

# Dataclasses of options: `run(report)` returns tables, `FULL` has the defaults under `--full`, and
# `--help` shows the first line of the docstring.
EXPERIMENTS: dict[str, Any] = {
    "gls_fig6": gls_fig6.GlsFig6,
    "daliri": daliri.Daliri,
    "khisti": khisti.Khisti,
    "diverse": diverse.Diverse,
    "block_efficiency": block_efficiency.BlockEfficiency,
    "per_token": per_token.PerToken,
    "same_seed": same_seed.SameSeed,
    "tree_budget": tree_budget.TreeBudget,
    "trained_drafters": trained_drafters.TrainedDrafters,
    "gaussian_tables": gaussian_tables.GaussianTables,
    "mnist_tables": mnist_tables.MnistTables,
    "public_samplers": public_samplers.PublicSamplers,
}

# Experiments that store unfinished arrays (`shared.resumable_arrays`); the others start anew.
RESUMABLE = (
    "gls_fig6",
    "daliri",
    "block_efficiency",
    "same_seed",
    "tree_budget",
    "trained_drafters",
    "gaussian_tables",
    "mnist_tables",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment or the benchmarks.

    Returns:
        The exit code. Bad input ends with one line and code 2, an interrupt with 130.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    name = arguments[0] if arguments else ""
    options = arguments[1:]
    try:
        if name in ("-h", "--help"):
            _print_help()
        elif name == "bench":
            command.run_command(options)
        elif name in EXPERIMENTS:
            _run_experiment(name, options)
        else:
            expected = ", ".join(EXPERIMENTS)
            raise ValueError(f"NAME: expected one of {expected} or bench, got {name!r}")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"experiments: error: {files.one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; the same command continues from here" if name in RESUMABLE else ""
        print(f"experiments: interrupted{advice}", file=sys.stderr)
        return 130
    return 0


def _print_help() -> None:
    print(
        "python -m experiments NAME [--full] [--out DIR] [...], --help after NAME for its options\n"
    )
    for name, options_type in {**EXPERIMENTS, "bench": command.Bench}.items():
        summary = options_type.__doc__.splitlines()[0]
        print(f"  {name:<17} {summary}")


def _run_experiment(name: str, options: Sequence[str]) -> None:
    options_type = EXPERIMENTS[name]
    # `--full` changes the defaults, so that other options still count.
    default_options = options_type()
    if "--full" in options:
        default_options = options_type(full=True, **options_type.FULL)
    experiment = tyro.cli(
        options_type,
        prog=f"python -m experiments {name}",
        # What the paper did, and what is different here.
        description=sys.modules[options_type.__module__].__doc__,
        args=options,
        default=default_options,
    )
    files.check_folder(experiment.out)
    with progress() as report:
        tables = experiment.run(report)
    # A file or a pipe has no width.
    console = Console(width=None if sys.stdout.isatty() else 100)
    for table in tables:
        console.print(table)
    suffixes = getattr(experiment, "SUFFIXES", (".csv", ".png"))
    written = ", ".join(name + suffix for suffix in suffixes)
    console.print(f"{experiment.out}/{written}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
