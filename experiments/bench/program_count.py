"""What a program does, counted without running it: sequential steps, width, operations, bytes.

A program is traced for a shape of work, and its loops are found in the traced form, where their
lengths are known. A *sequential step* is one step of a loop, whatever it does; loops inside it are
counted instead of it. A loop that is unrolled as a whole is no loop, and a sort is none either.

Operations and bytes are those that XLA counts in the compiled program. XLA counts the body of a
loop once, so each body is compiled by itself as well, and counted as often as it runs. The compiler
is that of JAX's default backend. On a CPU its fusions stand in for those of an accelerator. So
bytes are an estimate, and times that are computed from them are no measurements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import numpy as np

__all__ = [
    "DEVICES",
    "Device",
    "ProgramCount",
    "count",
    "lowers_for_accelerators",
    "steps_and_width",
]


@dataclasses.dataclass(frozen=True)
class Device:
    """What a device can do at best.

    Attributes:
        bytes_per_second: of its memory.
        operations_per_second: in float32.
        step_seconds: of a sequential step, however little it does.
    """

    bytes_per_second: float
    operations_per_second: float
    step_seconds: float

    def seconds(self, program: ProgramCount) -> float:
        """The least time for a program: its steps, and the slower of operations and bytes."""
        working = max(
            program.operations / self.operations_per_second,
            program.bytes_accessed / self.bytes_per_second,
        )
        return working + program.steps * self.step_seconds


# Rounded down from the vendors' data sheets. Their float32 rates count a fused multiplication and
# addition as two operations, and integer operations are slower: in that the times are optimistic.
# For TPU v5e it is the rate of the vector unit, as far as it is known. A step on a GPU is taken for
# a few launches of kernels.
DEVICES = {
    "h100": Device(3.0e12, 60e12, 10e-6),
    "h200": Device(4.8e12, 60e12, 10e-6),
    "tpu_v5e": Device(0.8e12, 6e12, 2e-6),
}


@dataclasses.dataclass(frozen=True)
class ProgramCount:
    """The count of a program.

    Attributes:
        steps: sequential steps, and one for everything outside loops.
        width: elements of the largest array in a step, in the narrowest loop that has at least a
            tenth of the steps; without loops, that of the program.
        operations: one for each element of an elementwise operation, two for each product and sum
            of a matrix product.
        bytes_accessed: read and written.
        temporary_bytes: memory for intermediate arrays.
        has_unknown_loops: whether a loop runs as often as its data ask for, so that its steps are
            an assumption.
    """

    steps: int
    width: int
    operations: float
    bytes_accessed: float
    temporary_bytes: int
    has_unknown_loops: bool


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A loop of a traced program.

    Attributes:
        body: of one iteration.
        length: number of iterations; None if only the data know.
        unroll: iterations in one step.
    """

    body: Any
    length: int | None
    unroll: int = 1

    def iterations(self, unknown_trips: int) -> int:
        """Number of iterations."""
        return unknown_trips if self.length is None else self.length

    def total_steps(self, unknown_trips: int, body_steps: int) -> int:
        """Number of steps, if the body has `body_steps` with the one outside its own loops."""
        if body_steps > 1:
            # The loops inside run in every iteration, also where several are unrolled.
            return self.iterations(unknown_trips) * (body_steps - 1)
        return -(-self.iterations(unknown_trips) // self.unroll)


def count(function: Callable[..., Any], *arrays: Any, unknown_trips: int = 1) -> ProgramCount:
    """Count the program ``jax.jit(function)`` for arrays of these shapes; nothing is computed.

    Args:
        function: of arrays.
        *arrays: pytrees of arrays or of `jax.ShapeDtypeStruct`.
        unknown_trips: how often loops run whose number of iterations only their data know.
    """
    traced = _trace(function, arrays)
    compiled = traced.lower().compile()
    steps, has_unknown_loops = _steps(traced.jaxpr, unknown_trips)
    operations, bytes_accessed = _work(traced.jaxpr, compiled, unknown_trips)
    return ProgramCount(
        steps=steps,
        width=_narrowest(traced.jaxpr, steps, unknown_trips),
        operations=operations,
        bytes_accessed=bytes_accessed,
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        has_unknown_loops=has_unknown_loops,
    )


def steps_and_width(function: Callable[..., Any], *arrays: Any) -> tuple[int, int]:
    """`(steps, width)` of :func:`count`, for which nothing is compiled."""
    traced = _trace(function, arrays)
    steps, _ = _steps(traced.jaxpr, unknown_trips=1)
    return steps, _narrowest(traced.jaxpr, steps, unknown_trips=1)


def lowers_for_accelerators(function: Callable[..., Any], *arrays: Any) -> bool:
    """Whether JAX makes programs of it for CUDA and for TPU, which takes none of these devices."""
    flat, leaves = _flattened(function, arrays)
    exported = jax.export.export(jax.jit(flat), platforms=("cuda", "tpu"))(*leaves)
    return exported.platforms == ("cuda", "tpu")


def _trace(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    flat, leaves = _flattened(function, arrays)
    return jax.jit(flat).trace(*leaves)


def _flattened(
    function: Callable[..., Any], arrays: tuple[Any, ...]
) -> tuple[Callable[..., Any], list[Any]]:
    """The function of flat arrays, and these.

    While JAX traces, it makes records of placeholders that are no arrays, and the records of this
    library may check the types of their fields.
    """
    leaves, structure = jax.tree.flatten(arrays)
    return lambda *leaves: function(*jax.tree.unflatten(structure, leaves)), leaves


def _loops(jaxpr: Any) -> Iterator[_Loop]:
    """The outermost loops of a traced program."""
    for equation in jaxpr.eqns:
        loop = _as_loop(equation)
        if loop is not None:
            yield loop
            continue
        # XLA copies the body of a `scan` that is unrolled as a whole.
        num_copies = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in _parts(equation):
            yield from list(_loops(part)) * num_copies


def _as_loop(equation: Any) -> _Loop | None:
    """The loop that an operation is; None for other operations, and where no loop is left."""
    parameters = equation.params
    if equation.primitive.name == "while":
        return _Loop(parameters["body_jaxpr"], length=None)
    if equation.primitive.name == "scan":
        unroll = max(1, int(parameters["unroll"]))
        if unroll < parameters["length"]:
            return _Loop(parameters["jaxpr"], parameters["length"], unroll)
    return None


def _parts(equation: Any) -> Iterator[Any]:
    """The traced programs inside an operation that is no loop."""
    for value in equation.params.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _steps(closed: Any, unknown_trips: int) -> tuple[int, bool]:
    """Sequential steps, and whether some of them are an assumption."""
    steps = 1
    has_unknown_loops = False
    for loop in _loops(closed.jaxpr):
        body_steps, body_is_unknown = _steps(loop.body, unknown_trips)
        steps += loop.total_steps(unknown_trips, body_steps)
        has_unknown_loops |= body_is_unknown or loop.length is None
    return steps, has_unknown_loops


def _work(closed: Any, compiled: Any, unknown_trips: int) -> tuple[float, float]:
    """Operations and bytes of a program, with loop bodies as often as they run."""
    operations, bytes_accessed = _once(compiled)
    for loop in _loops(closed.jaxpr):
        iterations = loop.iterations(unknown_trips)
        body = jax.jit(jax.extend.core.jaxpr_as_fun(loop.body))
        compiled_body = body.lower(*loop.body.in_avals).compile()
        body_operations, body_bytes = _work(loop.body, compiled_body, unknown_trips)
        once_operations, once_bytes = _once(compiled_body)
        # XLA has counted one step of the loop, with the loops inside it once, and the iterations
        # that are left after the last full step.
        num_counted = loop.unroll + iterations % loop.unroll
        operations += max(0.0, iterations * body_operations - num_counted * once_operations)
        bytes_accessed += max(0.0, iterations * body_bytes - num_counted * once_bytes)
    return operations, bytes_accessed


def _once(compiled: Any) -> tuple[float, float]:
    """XLA's count, in which every loop runs once."""
    costs = compiled.cost_analysis()
    operations = costs.get("flops", 0.0) + costs.get("transcendentals", 0.0)
    return operations, costs.get("bytes accessed", 0.0)


def _narrowest(closed: Any, all_steps: int, unknown_trips: int, outer_steps: int = 1) -> int:
    """Elements of the largest array in a step of the narrowest loop that matters."""
    widths = []
    for loop in _loops(closed.jaxpr):
        body_steps, _ = _steps(loop.body, unknown_trips)
        if outer_steps * loop.total_steps(unknown_trips, body_steps) >= all_steps / 10:
            iterations = outer_steps * loop.iterations(unknown_trips)
            widths.append(_narrowest(loop.body, all_steps, unknown_trips, iterations))
    return min(widths, default=_width(closed.jaxpr))


def _width(jaxpr: Any) -> int:
    """Elements of the largest array that a program computes, outside its loops."""
    sizes = [1]
    for equation in jaxpr.eqns:
        if _as_loop(equation) is not None:
            continue
        inner = [_width(part) for part in _parts(equation)]
        sizes += inner or [int(np.prod(out.aval.shape)) for out in equation.outvars]
    return max(sizes)
