"""The command line: reads options, calls the library, prints tables for people and JSON for
programs.

This file imports nothing of the extra `cli`, so that a missing package is one line and not a
traceback.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from gls_jax.cli import needs

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with one line and exit code 2, an interrupt with 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(_version())
        return 0
    resumable = False
    try:
        needs.check(arguments)
        from gls_jax.cli.commands import parse

        command = parse(arguments)
        resumable = command.resumable
        command.run()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"gls-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gls-jax: interrupted" + "; --resume goes on from here" * resumable, file=sys.stderr)
        return 130
    return 0


def _version() -> str:
    """What a report of a fault should say."""
    from gls_jax import __version__

    return (
        f"gls-jax {__version__} (Python {platform.python_version()}, jax {metadata.version('jax')})"
    )
