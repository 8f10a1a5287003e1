"""Who takes part in a run of many processes, which share of it is mine, and where all of them meet.

Processes share no numbers, only files: a share is done when it is written, so one that dies costs
what it had not written. What they need of `jax.distributed` is who they are and who still lives. It
runs in its recoverable mode, or the death of one would end all.
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

__all__ = ["check", "deal", "index", "join", "leave", "meet", "size"]

_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_ARRIVAL = 300  # seconds in which all have to be there at the beginning
_places = itertools.count()  # of meetings; all processes come to them in the same order


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raise `ValueError` where options of :func:`join` do not go together, before anything waits
    for others.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) < len(given):
            raise ValueError(
                f"{', '.join(missing)}: expected with the other two of coordinator, num_processes and process_id, "
                f"got none; without all three the cluster is read from the environment"
            )
        return
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator: expected HOST:PORT of process 0, got {coordinator!r}")
    assert num_processes is not None and process_id is not None
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id: expected one within 0..num_processes - 1, got {process_id} of {num_processes}"
        )


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Become one of the processes of a cluster, before any JAX computation; waits for the others.

    Args:
        coordinator: HOST:PORT at which process 0 listens. Without it all is read from the
            environment, as JAX does: SLURM, Open MPI, TPU pods, Kubernetes.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: options that do not go together, or none and no cluster that JAX knows.
        ConnectionError: nobody answers at `coordinator`, or something else listens there already.
        (Where process 0
            waits in vain, JAX ends it with lines of its own.)
    """
    check(coordinator, num_processes, process_id)
    if coordinator is not None:
        (_knock if process_id else _find_free)(coordinator)
    jax.config.update("jax_enable_recoverability", True)
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
        _with_open_ears(initialize)
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(f"coordinator: expected a cluster to join, got {error}") from None
    except ValueError as error:
        if coordinator is not None:
            raise
        raise ValueError(
            "distributed: expected a cluster that JAX knows (SLURM, Open MPI, a TPU pod, Kubernetes), or coordinator, "
            f"num_processes and process_id, got none ({error})"
        ) from None


def index() -> int:
    """Number of this process, 0 where there is one alone."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def deal(count: int) -> range:
    """Which of `count` pieces of work are this process's; the shares of all processes make up the
    whole.

    >>> from gls_jax.runs import cluster
    >>> list(cluster.deal(3))  # a process alone has them all
    [0, 1, 2]
    """
    return range(index(), count, size())


def meet(purpose: str = "") -> None:
    """Wait until every process has come to the same place, for the same purpose.

    Args:
        purpose: what a process is about to do; expected to be the same text for all.

    Raises:
        ConnectionError: some are gone.
        ValueError: some have come for another purpose. All processes raise it.
    """
    if size() == 1:
        return
    extras.require("cluster")
    from orbax.checkpoint import multihost  # slow to import

    # Process 0 gathers those that live when it leaves, too: who has come here says so.
    words, place = multihost.get_jax_distributed_client(), f"gls_jax/{next(_places)}/"
    words.key_value_set(f"{place}{index()}", purpose or "-")
    came = _gather()
    said = (
        {int(name.rpartition("/")[2]): word for name, word in words.key_value_dir_get(place)}
        if came
        else {}
    )
    if gone := set(range(size())) - (came & set(said)):
        raise ConnectionError(
            f"expected {size()} processes to meet, but process {_names(gone)} is gone; what is written stays, "
            "--resume goes on"
        )
    if others := {process for process, word in said.items() if word != said[0]}:
        raise ValueError(
            f"expected all processes to be asked the same and to see the same files, but process {_names(others)} "
            "differs from process 0"
        )


def leave() -> None:
    """Take leave of the others; process 0, whose end would be theirs, goes last."""
    if not jax.distributed.is_initialized():
        return
    while index() == 0 and len(_gather()) > 1:
        pass
    jax.distributed.shutdown()


def _knock(coordinator: str) -> None:
    """Wait for process 0 to listen: JAX would end this process where it does not."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + _ARRIVAL
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConnectionError(
                    f"coordinator: expected process 0 at {coordinator}, got {error}"
                ) from None
            time.sleep(0.1)


def _find_free(coordinator: str) -> None:
    """Be sure that process 0 can listen there: where it cannot, JAX ends in a traceback or a crash."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise ConnectionError(
            f"coordinator: expected a free port in {coordinator}, got {error}"
        ) from None


def _names(processes: set[int]) -> str:
    return ", ".join(map(str, sorted(processes)))


def _with_open_ears(wait: Callable[[], None]) -> None:
    """JAX waits in native code, which hears no interrupt; a thread is waited for with open ears."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as failure:
            failures.append(failure)

    waiting = threading.Thread(target=run, daemon=True)
    waiting.start()
    waiting.join()
    for failure in failures:
        raise failure


def _gather() -> set[int]:
    """Wait for all that live; who came, and did not die on the way."""
    came: set[int] = set()

    def wait() -> None:
        try:
            with multihost_utils.live_devices(jax.devices()) as live:
                came.update(device.process_index for device in live)
        except multihost_utils.ProcessFailureError as failure:
            came.difference_update(device.process_index for device in failure.failed_devices)
        except jax.errors.JaxRuntimeError:
            came.clear()  # nobody answers

    _with_open_ears(wait)
    return came
