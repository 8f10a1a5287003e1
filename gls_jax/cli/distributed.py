"""Options of commands whose work several processes can share, on one host or many."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gls_jax.runs import cluster

__all__ = ["ALONE", "Distributed"]


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Share the work with processes started alike; all write into one folder. The numbers stay the
    same.
    """

    distributed: bool = False
    """Read the cluster from the environment, as JAX does: SLURM, Open MPI, TPU pods, Kubernetes."""
    coordinator: str | None = None
    """Elsewhere: HOST:PORT at which process 0 listens."""
    num_processes: int | None = None
    """Elsewhere: number of processes."""
    process_id: int | None = None
    """Elsewhere: index of this process, from 0."""

    @property
    def is_requested(self) -> bool:
        """Whether any of these options is given."""
        return self.distributed or any(option is not None for option in self._explicit)

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Be one of the processes; yields whether this one prints for all."""
        if not self.is_requested:
            yield True
            return
        cluster.join(*self._explicit)
        is_primary = cluster.index() == 0
        try:
            yield is_primary
        except Exception as error:
            # The end of process 0 would end the others, so it waits and says why.
            if is_primary:
                reason = " ".join(str(error).split())
                line = f"gls-jax: {reason}; waiting until the others are through"
                print(line, file=sys.stderr, flush=True)
            cluster.leave()
            raise
        cluster.leave()

    @property
    def _explicit(self) -> tuple[str | None, int | None, int | None]:
        return self.coordinator, self.num_processes, self.process_id


ALONE = Distributed()
