"""The command line: reads options, calls the library, prints tables for people and JSON for programs."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from gls_jax.cli.acceptance import Acceptance
from gls_jax.cli.bench import Bench
from gls_jax.cli.compress import Compress
from gls_jax.cli.console import progress
from gls_jax.cli.decompress import Decompress
from gls_jax.cli.dump import DumpLaws
from gls_jax.cli.generate import Generate
from gls_jax.cli.plan import Plan
from gls_jax.cli.train import Train

__all__ = ["main", "progress"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with one line and exit code 2, an interrupt with 130."""
    commands = (
        Annotated[Acceptance, tyro.conf.subcommand("acceptance")]
        | Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[DumpLaws, tyro.conf.subcommand("dump")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Compress, tyro.conf.subcommand("compress")]
        | Annotated[Decompress, tyro.conf.subcommand("decompress")]
        | Annotated[Bench, tyro.conf.subcommand("bench")]
    )
    command: Acceptance | Generate | DumpLaws | Plan | Train | Compress | Decompress | Bench = tyro.cli(
        commands, prog="gls-jax", description=__doc__, args=arguments
    )
    try:
        command.run()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"gls-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gls-jax: interrupted" + "; --resume goes on from here" * command.resumable, file=sys.stderr)
        return 130
    return 0
