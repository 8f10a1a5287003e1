"""Counts of programs without running them, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import hot_paths, program_count
from experiments.bench.program_count import ProgramCount, count
from gls_jax import races, work_shape


def test_a_loop_of_matrix_products():
    """By hand: a product has 2 n^3 operations and a sine n^2; the loop runs 7 times."""
    n, length = 64, 7

    def program(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c) @ c, None), x, None, length=length)[0]

    counted = count(program, jnp.ones((n, n)))
    assert counted.steps == length + 1 and counted.width == n * n
    assert counted.operations == pytest.approx(length * (2 * n**3 + n * n), rel=0.01)
    # The sine reads one array and writes one, the product reads two and writes one.
    assert counted.bytes_accessed == pytest.approx(length * 5 * 4 * n * n, rel=0.3)
    assert not counted.has_unknown_loops


def test_a_race():
    """By hand, for one number: threefry has 20 rounds of 5 operations, and 5 times adds 2 or 3 keys.

    Then come some ten for the uniform number, its logarithm, the time and the comparisons.
    """
    num_streams, size = 8, 5000
    log_q = jnp.full(size, -jnp.log(size))
    with work_shape.using("cuda"):
        counted = count(
            lambda log_q: races.first_arrivals(races.new_key(0), num_streams, log_q), log_q
        )
    per_number = counted.operations / (num_streams * size)
    assert 110 < per_number < 150 and counted.steps == 1 and counted.width == num_streams * size
    with work_shape.using("cpu"):
        counted = count(
            lambda log_q: races.first_arrivals(races.new_key(0), num_streams, log_q), log_q
        )
    assert counted.steps == 2501 and counted.width == num_streams


@pytest.mark.parametrize("unroll", [1, 4, 10])
def test_unrolled_loops(unroll):
    """Ten iterations in steps of several; where one step is left there is no loop."""

    def program(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=10, unroll=unroll)[0]

    counted = count(program, jnp.ones((64, 64)))
    assert counted.steps == {1: 11, 4: 4, 10: 1}[unroll]
    assert counted.operations == pytest.approx(10 * 2 * 64**3, rel=0.01)


def test_loops_in_loops_and_loops_that_only_the_data_know():
    def inner(c, _):
        return jax.lax.scan(lambda c, _: (c + 1, None), c, None, length=5)[0], None

    def program(x):
        x = jax.lax.scan(inner, x, None, length=3)[0]
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x)

    partly = jax.jit(lambda x: jax.lax.scan(inner, x, None, length=4, unroll=2)[0])
    assert count(partly, jnp.ones(100)).steps == 1 + 4 * 5
    counted = count(program, jnp.ones(100), unknown_trips=20)
    assert counted.steps == 1 + 3 * 5 + 20 and counted.has_unknown_loops
    assert counted.operations >= (3 * 5 + 20) * 100


def test_times_are_the_slower_of_work_and_memory_and_the_steps():
    device = program_count.Device(1e9, 1e12, 1e-5)
    counted = ProgramCount(
        steps=10,
        width=1,
        operations=1e9,
        bytes_accessed=1e9,
        temporary_bytes=0,
        has_unknown_loops=False,
    )
    assert device.seconds(counted) == pytest.approx(1 + 1e-4)


@pytest.mark.parametrize("name", hot_paths.HOT_PATHS)
def test_hot_paths(name):
    """On accelerators they keep to what is asked of them, and lower for both kinds."""
    path = hot_paths.HOT_PATHS[name]
    with work_shape.using("cuda"):
        function, arrays = path.make()
        steps, width = program_count.steps_and_width(function, *arrays)
        assert program_count.lowers_for_accelerators(function, *arrays)
    if path.most_steps is not None:
        assert steps <= path.most_steps
    if path.least_width is not None:
        assert width >= path.least_width
