"""`python -m experiments NAME [--full] [--out DIR] [...]`: options, progress and tables."""

from __future__ import annotations

import sys

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
    same_seed,
)
from gls_jax.cli.console import progress
from gls_jax.runs import files

EXPERIMENTS = {
    "gls_fig6": gls_fig6.GlsFig6,
    "daliri": daliri.Daliri,
    "khisti": khisti.Khisti,
    "diverse": diverse.Diverse,
    "block_efficiency": block_efficiency.BlockEfficiency,
    "per_token": per_token.PerToken,
    "same_seed": same_seed.SameSeed,
    "gaussian_tables": gaussian_tables.GaussianTables,
    "mnist_tables": mnist_tables.MnistTables,
}


def main(arguments: list[str] | None = None) -> int:
    """Run an experiment; bad input ends with one line and exit code 2, an interrupt with 130."""
    name, *options = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(
            "python -m experiments NAME [--full] [--out DIR] [...], --help after NAME for its options\n"
        )
        print("\n".join(f"  {name:<17} {kind.__doc__}" for name, kind in EXPERIMENTS.items()))
        return 0
    if name not in EXPERIMENTS:
        return _refuse(f"NAME: expected one of {', '.join(EXPERIMENTS)}, got {name!r}")
    kind = EXPERIMENTS[name]
    defaults = kind(full=True, **kind.FULL) if "--full" in options else kind()
    about = sys.modules[kind.__module__].__doc__
    try:
        ask = tyro.cli(
            kind,
            prog=f"python -m experiments {name}",
            description=about,
            args=options,
            default=defaults,
        )
        files.check_folder(ask.out)
        with progress() as report:
            tables = ask.run(report)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("experiments: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    console = Console(width=None if sys.stdout.isatty() else 100)
    for table in tables:
        console.print(table)
    console.print(f"{ask.out}/{name}.csv, {name}.png", highlight=False)
    return 0


def _refuse(reason: str) -> int:
    print(f"experiments: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
