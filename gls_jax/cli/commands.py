"""All commands, as tyro reads them.

To add a command:

1. Write a file in this folder with a frozen dataclass. Its fields are the options, and the strings
   below the fields are their help. The method `run` does the work and may return an exit code, and
   `resumable` says whether `--resume` can continue an interrupted run.
2. Add the class to the `Command` union and to `COMMANDS` below.
3. Add the name to `COMMANDS` in `needs.py`, in the same order (a test compares the two), and the
   extras that the command needs to `_extras_of` there. That file must not import tyro, which may be
   missing, so it repeats the names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tyro

from gls_jax.cli.acceptance import Acceptance
from gls_jax.cli.check import Check
from gls_jax.cli.compress import Compress
from gls_jax.cli.decompress import Decompress
from gls_jax.cli.dump import DumpDistributions
from gls_jax.cli.generate import Generate
from gls_jax.cli.plan import Plan
from gls_jax.cli.train import Train
from gls_jax.cli.train_drafter import TrainDrafter

__all__ = ["COMMANDS", "parse"]

Command: TypeAlias = (
    Acceptance
    | Check
    | Generate
    | DumpDistributions
    | Plan
    | Train
    | TrainDrafter
    | Compress
    | Decompress
)

COMMANDS: dict[str, Callable[..., Command]] = {
    "acceptance": Acceptance,
    "generate": Generate,
    "dump": DumpDistributions,
    "plan": Plan,
    "train": Train,
    "train-drafter": TrainDrafter,
    "compress": Compress,
    "decompress": Decompress,
    "check": Check,
}

_ABOUT = """Gumbel-max list sampling: acceptance of drafts, speculative decoding, compression with
side information.

`gls-jax COMMAND --help` lists the options of a command, `gls-jax --version` prints the versions."""


def parse(arguments: Sequence[str]) -> Command:
    """The command with its options; help and errors of options end the program."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="gls-jax", description=_ABOUT, args=arguments
    )
