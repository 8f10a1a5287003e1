"""`python -m experiments.accelerator [--small] [--out FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.bench.timing import Line, environment
from gls_jax import work_shape
from gls_jax.runs import files


def main(arguments: list[str] | None = None) -> int:
    """Run both parts and write the file.

    Returns:
        The exit code: 1 if the results differ from those of the CPU by more than rounding can, or
        were not compared; 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.accelerator", description="Correctness and speed on a device."
    )
    parser.add_argument("--small", action="store_true", help="small sizes; always so on a CPU")
    parser.add_argument("--out", type=Path, default=Path("results/accelerator.json"))
    options = parser.parse_args(arguments)
    is_cpu = jax.default_backend() == "cpu"
    is_small = options.small or is_cpu
    try:
        files.check_file(options.out)
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"accelerator: error: {files.one_line(error)}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    found: dict[str, Any] = {"environment": environment() | {"is_small": is_small}}
    # A CPU stands in for an accelerator.
    with work_shape.using("gpu" if is_cpu else None):
        for name, part in (("correctness", _correctness), ("speed", _speed)):
            found[name] = []
            for line in _lines_of(part, is_small):
                print(json.dumps(line), flush=True)
                found[name].append(line)
                # The file has all lines so far.
                _write(options.out, found)
    found["seconds"] = round(time.perf_counter() - start, 1)
    _write(options.out, found)
    num_bad = sum(not line.get("is_good") for line in found["correctness"])
    print(f"{options.out}: {found['seconds']} s, {num_bad} functions with other results")
    return 1 if num_bad else 0


def _write(path: Path, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=1) + "\n"
    files.write_whole(path, lambda file: file.write(text), mode="w")


def _lines_of(part: Callable[[bool], Iterator[Line]], is_small: bool) -> Iterator[Line]:
    """The lines of a part; one that says why where a package is missing."""
    try:
        yield from part(is_small)
    except ModuleNotFoundError as error:
        yield {"skipped": f"needs the package {error.name}"}


def _correctness(is_small: bool) -> Iterator[Line]:
    from experiments.accelerator import correctness

    return correctness.compare(is_small)


def _speed(is_small: bool) -> Iterator[Line]:
    from experiments.accelerator import speed

    return speed.measure(is_small)


if __name__ == "__main__":
    sys.exit(main())
