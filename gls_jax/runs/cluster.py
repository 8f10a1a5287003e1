"""Processes that share work: which one this is, its shard of the work, and barriers for all.

Processes exchange no numbers, only files. A shard is done when it is written, so a process that
dies costs what it had not written. `jax.distributed` tells who takes part and who still lives. It
runs in its recoverable mode; otherwise the death of one process would end all of them.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from gls_jax import extras

__all__ = ["barrier", "index", "is_primary", "join", "leave", "shard", "size"]

_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_ARRIVAL = 300  # seconds in which all processes must have joined

# Barriers are numbered, so that what processes say at one is not taken for what they say at
# another. All processes come to them in the same order.
_barrier_numbers = itertools.count()


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Become one of the processes of a cluster, before any JAX computation; waits for the others.

    Args:
        coordinator: HOST:PORT at which process 0 listens. Without it everything is read from the
            environment, as JAX does: SLURM, Open MPI, TPU pods, Kubernetes.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: options that do not go together, or none and no cluster that JAX knows.
        ConnectionError: nobody answers at `coordinator`, or something else listens there already.
            (Where process 0 waits in vain, JAX ends it with lines of its own.)
    """
    _check_options(coordinator, num_processes, process_id)
    if coordinator is not None and process_id:
        _wait_for_coordinator(coordinator)
    elif coordinator is not None:
        _check_port_is_free(coordinator)
    jax.config.update("jax_enable_recoverability", True)  # the death of another ends nobody
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM

    def initialize() -> None:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_ARRIVAL,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )

    try:
        _run_interruptibly(initialize)
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(f"coordinator: expected a cluster to join, got {error}") from None
    except ValueError as error:
        if coordinator is not None:
            raise
        raise ValueError(
            "distributed: expected a cluster that JAX knows (SLURM, Open MPI, a TPU pod, "
            "Kubernetes), or coordinator, num_processes and process_id, got none "
            f"({error})"
        ) from None


def index() -> int:
    """Number of this process, from 0; 0 without a cluster."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_primary() -> bool:
    """Whether this is process 0, which merges the files and prints the results."""
    return index() == 0


def size() -> int:
    """Number of processes; 1 without a cluster."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def shard(count: int) -> range:
    """Indices of the pieces of work, out of `count`, that this process does.

    The shards of all processes together are all pieces.

    >>> from gls_jax.runs import cluster
    >>> list(cluster.shard(3))  # without a cluster: all of them
    [0, 1, 2]
    """
    return range(index(), count, size())


def barrier(state: str = "") -> None:
    """Wait until every process has come to the same barrier, with the same state.

    Args:
        state: what the work depends on, such as a hash; expected to be equal on all processes.

    Raises:
        ConnectionError: a process is gone.
        ValueError: the states differ. All processes raise it.
    """
    if size() == 1:
        return
    extras.require("cluster")
    from orbax.checkpoint import multihost  # slow to import

    # `_wait_for_all` alone does not tell who is at this barrier: process 0 waits in it when it
    # leaves, too. So each process also writes its state under the barrier's number.
    key_value_store = multihost.get_jax_distributed_client()
    barrier_name = f"gls_jax/{next(_barrier_numbers)}/"
    key_value_store.key_value_set(f"{barrier_name}{index()}", state or "-")
    present = _wait_for_all()
    states: dict[int, str] = {}
    if present:  # else the store does not answer either
        for name, value in key_value_store.key_value_dir_get(barrier_name):
            process = int(name.rpartition("/")[2])
            states[process] = value
    if missing := set(range(size())) - (present & set(states)):
        raise ConnectionError(
            f"expected {size()} processes to meet, but process {_names(missing)} is gone; "
            "what is written stays, --resume goes on"
        )
    if different := {process for process, value in states.items() if value != states[0]}:
        raise ValueError(
            "expected all processes to have the same configuration and to see the same files, but "
            f"process {_names(different)} differs from process 0"
        )


def leave() -> None:
    """Leave the cluster. Process 0, whose end would end the others, waits until they have left."""
    if not jax.distributed.is_initialized():
        return
    while is_primary() and len(_wait_for_all()) > 1:
        pass
    jax.distributed.shutdown()


def _check_options(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raise `ValueError` where the options of :func:`join` do not go together."""
    options = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing_options = [name for name, value in options.items() if value is None]
    if len(missing_options) == len(options):
        return
    if missing_options:
        raise ValueError(
            f"{', '.join(missing_options)}: expected with the other two of coordinator, "
            "num_processes and process_id, got none; without all three the cluster is read from "
            "the environment"
        )
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator: expected HOST:PORT of process 0, got {coordinator!r}")
    assert num_processes is not None and process_id is not None
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            "process_id: expected one within 0..num_processes - 1, "
            f"got {process_id} of {num_processes}"
        )


def _wait_for_coordinator(coordinator: str) -> None:
    """Wait until process 0 listens; JAX would end this process where nobody does."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + _ARRIVAL
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"coordinator: expected process 0 at {coordinator}, got {error}"
                ) from None
            time.sleep(0.1)


def _check_port_is_free(coordinator: str) -> None:
    """Raise `ConnectionError` where process 0 cannot listen; JAX would crash there."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise ConnectionError(
            f"coordinator: expected a free port in {coordinator}, got {error}"
        ) from None


def _names(processes: set[int]) -> str:
    return ", ".join(map(str, sorted(processes)))


def _run_interruptibly(wait: Callable[[], None]) -> None:
    """Call `wait` in a thread, and raise what it raises.

    JAX waits in native code, and Python handles no signal until that returns: Ctrl-C would do
    nothing. Python does handle signals while the main thread joins another one.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def _wait_for_all() -> set[int]:
    """Wait for all live processes; which ones came, and did not die on the way."""
    present: set[int] = set()

    def wait() -> None:
        try:
            with multihost_utils.live_devices(jax.devices()) as live_devices:
                present.update(device.process_index for device in live_devices)
        except multihost_utils.ProcessFailureError as failure:
            # They died while the others waited.
            present.difference_update(device.process_index for device in failure.failed_devices)
        except jax.errors.JaxRuntimeError:
            present.clear()  # nobody answers

    _run_interruptibly(wait)
    return present
