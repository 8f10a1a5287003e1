"""Compilation in a third to half of the time, for tests that compare distributions, tokens, or values with tolerances.

Two settings of XLA:CPU are changed. LLVM does not optimise the code of a kernel, which makes long loops slower. And
the older emitter writes the kernels, where there still is one (jax 0.10): the newer one takes half of the time of a
program of many small kernels. Sums may round differently from what users get. Tests that compare bits with another
process, or measure time or memory, keep the defaults, unless that process has these settings as well. So do tests whose
long loops would take longer than they save.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import jax
import pytest
from jax._src import (
    compiler,
)  # there is no public way to give options to all compilations after the first

_NEWER_EMITTER = "xla_cpu_use_fusion_emitters"


@cache
def has_older_emitter() -> bool:
    """Whether this XLA can be asked for it: not every version can."""
    try:
        jax.jit(lambda x: x + 1, compiler_options={_NEWER_EMITTER: False}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@contextmanager
def quick() -> Iterator[None]:
    """In this process. Caches are cleared before and after, so that no program is shared with other tests."""
    with pytest.MonkeyPatch.context() as patch:
        if has_older_emitter() and hasattr(
            compiler, "get_compile_options"
        ):  # private: it may go away
            as_ever = compiler.get_compile_options

            def options(*arguments, env_options_overrides=None, **more):
                overrides = {_NEWER_EMITTER: False} | (env_options_overrides or {})
                return as_ever(*arguments, env_options_overrides=overrides, **more)

            patch.setattr(compiler, "get_compile_options", options)
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def quick_environment(num_devices: int = 1) -> dict[str, str]:
    """Environment variables that do the same in a separate process, with `num_devices` devices of the host."""
    flags = [f"--xla_force_host_platform_device_count={num_devices}"]
    if has_older_emitter():  # an unknown flag ends the process
        flags.append(f"--{_NEWER_EMITTER}=false")
    return os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }
