"""The hot paths counted for accelerators, beside the time that this machine takes.

A line has the steps of a program in the shape for CPUs and in the shape for accelerators, and for
the latter its width, operations, bytes and temporary memory, and the least time that a device would
take by them. These times are no measurements: see :mod:`experiments.bench.program_count`.
"""

from __future__ import annotations

from functools import partial

import jax

from experiments.bench import program_count
from experiments.bench.hot_paths import HOT_PATHS, random_arrays
from experiments.bench.timing import Line, rounded_median, time_call, waiting
from gls_jax import work_shape

__all__ = ["SUITE", "hot_path"]


def hot_path(repeats: int, *, name: str) -> Line:
    """The count of one hot path, and the milliseconds that it takes here, scaled from a part."""
    path = HOT_PATHS[name]
    narrow_steps, wide_steps = path.data_steps
    with work_shape.using("cpu"):
        function, arrays = path.make()
        narrow = program_count.count(function, *arrays, unknown_trips=narrow_steps)
    with work_shape.using("cuda"):
        function, arrays = path.make()
        wide = program_count.count(function, *arrays, unknown_trips=wide_steps)
        lowers = program_count.lowers_for_accelerators(function, *arrays)
    line: Line = {
        "benchmark": f"roofline: {name}",
        "steps_on_cpu": narrow.steps,
        "steps_on_cpu_depend_on_data": narrow.has_unknown_loops,
        "steps": wide.steps,
        "most_steps": path.most_steps,
        "steps_depend_on_data": wide.has_unknown_loops,
        "width": wide.width,
        "gigaoperations": round(wide.operations / 1e9, 3),
        "gigabytes": round(wide.bytes_accessed / 1e9, 3),
        "temporary_megabytes": round(wide.temporary_bytes / 1e6, 1),
        "lowers_for_cuda_and_tpu": lowers,
    }
    for device_name, device in program_count.DEVICES.items():
        line[f"{device_name}_milliseconds"] = round(1e3 * device.seconds(wide), 3)
    line["milliseconds_here"] = _milliseconds_here(name, repeats)
    return line


def _milliseconds_here(name: str, repeats: int) -> float | None:
    """The time of the whole program on this machine's default device."""
    path = HOT_PATHS[name]
    if path.make_part is None:
        return None
    function, arrays = path.make_part()
    call = waiting(jax.jit(function), *random_arrays(arrays))
    call()  # compiles
    part = rounded_median([time_call(call) for _ in range(repeats)], 5)
    return round(1e3 * part * path.num_parts, 1)


SUITE = tuple(partial(hot_path, name=name) for name in HOT_PATHS)
