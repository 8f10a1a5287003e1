"""All commands, as tyro reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

from gls_jax.cli.acceptance import Acceptance
from gls_jax.cli.compress import Compress
from gls_jax.cli.decompress import Decompress
from gls_jax.cli.dump import DumpLaws
from gls_jax.cli.generate import Generate
from gls_jax.cli.plan import Plan
from gls_jax.cli.train import Train

__all__ = ["parse"]

_ABOUT = """Gumbel-max list sampling: acceptance of drafts, speculative decoding, compression with side information.

`gls-jax COMMAND --help` lists the options of a command, `gls-jax --version` says what is installed."""

Command = Acceptance | Generate | DumpLaws | Plan | Train | Compress | Decompress


def parse(arguments: Sequence[str]) -> Command:
    """The command with its options; help and errors of options end the program."""
    commands = (
        Annotated[Acceptance, tyro.conf.subcommand("acceptance")]
        | Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[DumpLaws, tyro.conf.subcommand("dump")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Compress, tyro.conf.subcommand("compress")]
        | Annotated[Decompress, tyro.conf.subcommand("decompress")]
    )
    command: Command = tyro.cli(commands, prog="gls-jax", description=_ABOUT, args=arguments)
    return command
