"""The command line: it reads options, calls the library, and prints tables or JSON.

A command is a dataclass in the file of its name: its fields are the options, and `run` does the
work. (The class in `dump.py` is `DumpDistributions`, since :class:`gls_jax.distributions.Dump` is
the dump itself.) :mod:`gls_jax.cli.commands` says how to add a command. This file imports nothing
of the extra `cli`, so that a missing package gives one line and no traceback.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from gls_jax.cli import needs

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: arguments of the command line, without the name of the program; None reads those
            of this process.

    Returns:
        The exit code: 0; 1 where `check` found something; 2 after bad input, with one line on
        stderr; 130 after an interrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(_versions())
        return 0
    is_resumable = False
    try:
        needs.check(arguments)
        # Needs the extra `cli`.
        from gls_jax.cli.commands import parse

        command = parse(arguments)
        is_resumable = command.resumable
        exit_code = command.run()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"gls-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; --resume continues from here" if is_resumable else ""
        print(f"gls-jax: interrupted{advice}", file=sys.stderr)
        return 130
    return exit_code or 0


def _versions() -> str:
    """The versions that a bug report should name."""
    from gls_jax import __version__

    return (
        f"gls-jax {__version__} (Python {platform.python_version()}, jax {metadata.version('jax')})"
    )
