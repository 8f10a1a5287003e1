"""Costs of the modes of automatic drafting, measured in the first rounds of a batch.

Each round is forced into one mode, and timed. It is a round like any other: its tokens stay. The
costs are kept, so that later batches of the same kind choose from the beginning.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from gls_jax.decoding import engine
from gls_jax.decoding.state import EngineConfig, Requests, State

__all__ = ["CostMeasurement", "measured_costs"]

# Rounds of each mode; the fastest counts. The first round of all also compiles, and is left out.
_REPEATS = 3
_MEASURED: dict[tuple[EngineConfig, int], tuple[float, ...]] = {}


class CostMeasurement:
    """The measurement for one kind of batch.

    Attributes:
        costs: of each mode in plain steps; None until they are known.
    """

    def __init__(
        self, config: EngineConfig, batch_size: int, costs: tuple[float, ...] | None
    ) -> None:
        self._config = config
        self._kind = (config, batch_size)
        self.costs = _MEASURED.get(self._kind) if costs is None else costs
        # Plain rounds first: the first of all compiles.
        self._waiting = [0, *list(range(len(config.modes))) * _REPEATS]
        self._is_first = True
        self._seconds = [float("inf")] * len(config.modes)

    @property
    def is_complete(self) -> bool:
        """Whether all costs are known."""
        return self.costs is not None

    def run(self, requests: Requests, state: State) -> State:
        """One round in the next mode to be measured."""
        mode = self._waiting.pop(0)
        choice = state.choice._replace(forced=jnp.int32(mode))
        state = jax.block_until_ready(state._replace(choice=choice))
        started = time.perf_counter()
        state = jax.block_until_ready(engine.run(self._config, requests, state, 1))
        seconds = time.perf_counter() - started
        if not self._is_first:
            self._seconds[mode] = min(self._seconds[mode], seconds)
        self._is_first = False
        if not self._waiting:
            self.costs = tuple(each / self._seconds[0] for each in self._seconds)
            _MEASURED[self._kind] = self.costs
            costs = jnp.asarray(self.costs, jnp.float32)
            state = state._replace(choice=state.choice._replace(costs=costs))
        return state


def measured_costs(
    config: EngineConfig, batch_size: int, costs: tuple[float, ...] | None
) -> CostMeasurement:
    """A measurement, which is complete if the costs are given or have been measured before."""
    return CostMeasurement(config, batch_size, costs)
