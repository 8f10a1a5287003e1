"""Programs that compile in a third of the time, for tests that compare distributions, tokens or values with tolerances.

Two things are left out. LLVM leaves the code of each kernel as it comes, so that long loops are slower. And XLA's older
emitter writes the kernels: half of the time of a program of many small ones goes into the newer one. Sums may round
differently from what users get: tests of blobs, of noise, of several devices and of what is measured do without. The
older emitter repeats shared parts of a kernel, and a keyed permutation is all shared parts: codecs do without, too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest
from jax._src import compiler  # there is no public way to give options to all compilations after the first

_OLDER_EMITTER = "xla_cpu_use_fusion_emitters"


@contextmanager
def quick() -> Iterator[None]:
    """In this process. Nothing that is compiled within is used without, nor the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(compiler, "get_compile_options"):  # another JAX may have none: its tests are only slower
            as_ever = compiler.get_compile_options

            def options(*arguments, env_options_overrides=None, **more):
                overrides = {_OLDER_EMITTER: False} | (env_options_overrides or {})
                return as_ever(*arguments, env_options_overrides=overrides, **more)

            patch.setattr(compiler, "get_compile_options", options)
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def quick_environment(num_devices: int = 1) -> dict[str, str]:
    """The same for a process of its own, with as many devices."""
    flags = f"--{_OLDER_EMITTER}=false --xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
