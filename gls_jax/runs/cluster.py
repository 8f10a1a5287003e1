"""Processes that share work: the index of this one, its shard of the work, and barriers.

Processes exchange results only through files. At a :func:`barrier` they also compare a short
string, such as a hash of their configuration. A shard is done when it is written: if a process
dies, only its unwritten work is lost. `jax.distributed` knows the processes and detects those that
died. It runs in its recoverable mode, so that processes survive the failure of another process.
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

_HEARTBEAT_TIMEOUT = 30  # seconds without a sign of life after which a process counts as dead
_JOIN_TIMEOUT = 300  # seconds in which all processes must have joined

# Barriers are numbered, so states written at one barrier are not read at another. All processes
# reach them in the same order.
_barrier_numbers = itertools.count()


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the cluster and wait for all processes; call before any JAX computation.

    Args:
        coordinator: HOST:PORT at which process 0 listens. Without it everything is read from the
            environment, as JAX does: SLURM, Open MPI, TPU pods, Kubernetes.
        num_processes: number of processes.
        process_id: index of this process, from 0.

    Raises:
        ValueError: options that do not go together, or no options and no cluster that JAX knows.
        ConnectionError: no process answers at `coordinator`, or another program listens there. (If
            processes do not join in time, JAX aborts process 0 with its own message.)
    """
    _check_options(coordinator, num_processes, process_id)
    if coordinator is not None and process_id:
        _wait_for_coordinator(coordinator)
    elif coordinator is not None:
        _check_port_is_free(coordinator)
    jax.config.update("jax_enable_recoverability", True)  # survive the failure of another process
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM

    def initialize() -> None:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_JOIN_TIMEOUT,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
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
    """Index of this process, from 0; 0 without a cluster."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_primary() -> bool:
    """Whether this is process 0, which merges the files and prints the results."""
    return index() == 0


def size() -> int:
    """Number of processes; 1 without a cluster."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def shard(count: int) -> range:
    """Indices of the pieces of work, out of `count`, that this process does.

    Shards are disjoint and cover all `count` pieces; they are interleaved.

    >>> from gls_jax.runs import cluster
    >>> list(cluster.shard(3))  # without a cluster: all of them
    [0, 1, 2]
    """
    return range(index(), count, size())


def barrier(state: str = "") -> None:
    """Wait until all processes reach this barrier, and check that their states are equal.

    Args:
        state: a short string that must be equal on all processes, such as a hash of the
            configuration and of the finished work.

    Raises:
        ConnectionError: a process has died or left.
        ValueError: the states differ. All processes raise it.
    """
    if size() == 1:
        return
    extras.require("cluster")
    from orbax.checkpoint import multihost  # slow to import

    # Each process writes its state under the number of the barrier, then waits. The waiting alone
    # does not show that a process reached this barrier: process 0 also waits in `leave`.
    key_value_store = multihost.get_jax_distributed_client()
    barrier_name = f"gls_jax/{next(_barrier_numbers)}/"
    key_value_store.key_value_set(f"{barrier_name}{index()}", state or "-")
    present = _wait_for_all()
    # Read the states of all processes; the keys end with the index of the process. Without process
    # 0, `present` is empty and the store cannot be read.
    states: dict[int, str] = {}
    if present:
        for name, value in key_value_store.key_value_dir_get(barrier_name):
            process = int(name.rpartition("/")[2])
            states[process] = value
    if missing := set(range(size())) - (present & set(states)):
        raise ConnectionError(
            f"expected {size()} processes at this barrier, but lost {_process_numbers(missing)}; "
            "completed work is saved, and resume=True or --resume continues it"
        )
    if different := {process for process, value in states.items() if value != states[0]}:
        raise ValueError(
            "expected all processes to have the same configuration and to see the same files, got "
            f"differences from process 0 on {_process_numbers(different)}"
        )


def leave() -> None:
    """Leave the cluster; process 0, whose exit would terminate the others, leaves last."""
    if not jax.distributed.is_initialized():
        return
    while is_primary() and len(_wait_for_all()) > 1:
        pass
    jax.distributed.shutdown()


def _check_options(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raise `ValueError` if the options of :func:`join` do not go together."""
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
    """Wait until process 0 listens; otherwise JAX would abort this process."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + _JOIN_TIMEOUT
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
    """Raise `ConnectionError` if process 0 cannot listen, where JAX would crash."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise ConnectionError(
            f"coordinator: expected a free port in {coordinator}, got {error}"
        ) from None


def _process_numbers(processes: set[int]) -> str:
    """`process 1`, or `processes 1, 2`."""
    noun = "process" if len(processes) == 1 else "processes"
    return f"{noun} {', '.join(map(str, sorted(processes)))}"


def _run_interruptibly(wait: Callable[[], None]) -> None:
    """Call `wait` in a thread, and raise its exceptions here.

    JAX waits in native code, and Python handles no signal until that returns, so Ctrl-C would have
    no effect. Python does handle signals while the main thread joins another one.
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
    """Wait for all live processes. Returns the indices of those that reached the barrier alive."""
    present: set[int] = set()

    def wait() -> None:
        try:
            with multihost_utils.live_devices(jax.devices()) as live_devices:
                present.update(device.process_index for device in live_devices)
        except multihost_utils.ProcessFailureError as failure:
            # These processes died while the others waited.
            present.difference_update(device.process_index for device in failure.failed_devices)
        except jax.errors.JaxRuntimeError:
            present.clear()  # process 0 does not answer

    _run_interruptibly(wait)
    return present
