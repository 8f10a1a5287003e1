"""`python -m experiments.accelerator [--small] [--out FILE]`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

import gls_jax
from gls_jax import work_shape
from gls_jax.runs import files

Line = dict[str, object]


def main(arguments: list[str] | None = None) -> int:
    """Run both parts and write the file; 1 if an integer differs from that of the CPU."""
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
    except (ValueError, OSError) as error:
        print(f"accelerator: error: {files.one_line(error)}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found: dict[str, Any] = {"environment": _environment(is_small)}
    # A CPU stands in for an accelerator.
    with work_shape.using("gpu" if is_cpu else None):
        for name, part in (("correctness", _correctness), ("speed", _speed)):
            found[name] = []
            for line in _lines_of(part, is_small):
                print(json.dumps(line), flush=True)
                found[name].append(line)
                # A run that is interrupted is not lost.
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    found["seconds"] = round(time.perf_counter() - start, 1)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    wrong = [line for line in found["correctness"] if line.get("different_integers")]
    print(f"{options.out}: {found['seconds']} s, {len(wrong)} functions with other integers")
    return 1 if wrong else 0


def _environment(is_small: bool) -> Line:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "is_small": is_small,
        "shape_of": "accelerators",
        "gls_jax": gls_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


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
