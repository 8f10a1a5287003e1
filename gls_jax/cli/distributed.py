"""Options of commands that several processes can share, on one host or many."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ALONE", "Distributed"]


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Share the work with processes that were started alike; all write into one folder. Numbers
    stay the same.
    """

    distributed: bool = False
    """Read the cluster from the environment, as JAX does: SLURM, Open MPI, TPU pods, Kubernetes."""
    coordinator: str | None = None
    """Elsewhere: HOST:PORT at which process 0 listens."""
    num_processes: int | None = None
    """Elsewhere: how many processes there are."""
    process_id: int | None = None
    """Elsewhere: which one this is, from 0."""

    @property
    def _explicit(self) -> tuple[str | None, int | None, int | None]:
        return self.coordinator, self.num_processes, self.process_id

    @property
    def asked(self) -> bool:
        """Whether there is more than this process to think of."""
        return self.distributed or self._explicit != (None, None, None)

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Be one of the processes; yields whether this one speaks for all."""
        if not self.asked:
            yield True
            return
        from gls_jax.runs import cluster

        cluster.join(*self._explicit)
        try:
            yield cluster.is_primary()
        except Exception as error:
            if cluster.is_primary():  # its end would be that of the others
                reason = " ".join(str(error).split())
                print(
                    f"gls-jax: {reason}; waiting until the others are through",
                    file=sys.stderr,
                    flush=True,
                )
            cluster.leave()
            raise
        cluster.leave()


ALONE = Distributed()
