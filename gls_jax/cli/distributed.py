"""Options of commands whose work several processes can share, on one host or many."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gls_jax.runs import cluster, files

__all__ = ["SINGLE_PROCESS", "Distributed"]


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Share the work among several processes; the results stay the same.

    All are started with the same options and write into one folder.
    """

    distributed: bool = False
    """Read the cluster from the environment, as JAX does: SLURM, Open MPI, TPU pods, Kubernetes."""
    coordinator: str | None = None
    """Without --distributed: HOST:PORT at which process 0 listens."""
    num_processes: int | None = None
    """Without --distributed: number of processes."""
    process_id: int | None = None
    """Without --distributed: index of this process, from 0."""

    @property
    def is_requested(self) -> bool:
        """Whether any of these options is given."""
        return self.distributed or any(option is not None for option in self._explicit)

    @contextmanager
    def joined_cluster(self) -> Iterator[bool]:
        """Join the cluster, and leave it at the end; yields whether this process prints."""
        if not self.is_requested:
            yield True
            return
        cluster.join(*self._explicit)
        is_primary = cluster.is_primary()
        try:
            yield is_primary
        except Exception as error:
            # The exit of process 0 would terminate the others, so it prints the reason and waits.
            if is_primary:
                line = f"gls-jax: {files.one_line(error)}; waiting until the others have finished"
                print(line, file=sys.stderr, flush=True)
            cluster.leave()
            raise
        cluster.leave()

    @property
    def _explicit(self) -> tuple[str | None, int | None, int | None]:
        return self.coordinator, self.num_processes, self.process_id


SINGLE_PROCESS = Distributed()
