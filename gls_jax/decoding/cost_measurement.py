"""Costs of the modes of automatic drafting, measured in the first rounds of a batch.

Each round is forced into one mode, and timed. It is a round like any other: its tokens stay. A
measurement that a short batch leaves unfinished goes on in the next one of the same kind, and its
costs are kept for all later ones.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import jax
import jax.numpy as jnp

from gls_jax.decoding import engine
from gls_jax.decoding.state import EngineConfig, Requests, State

__all__ = ["CostMeasurement", "cost_measurement"]

# Rounds of each mode; the fastest counts.
_REPEATS = 3
_MEASUREMENTS: dict[Any, CostMeasurement] = {}


class CostMeasurement:
    """The measurement for one kind of batch.

    Attributes:
        costs: of each mode in plain steps; None until they are known.
    """

    def __init__(self, config: EngineConfig, costs: tuple[float, ...] | None) -> None:
        self._config = config
        self.costs = costs
        # Plain rounds first: the first of all compiles, and is not timed.
        self._waiting = [0, *list(range(len(config.modes))) * _REPEATS]
        self._seconds: list[list[float]] = [[] for _ in config.modes]
        self._has_compiled = False
        # Batches of several threads measure together, one after the other.
        self._lock = threading.Lock()

    @property
    def is_complete(self) -> bool:
        """Whether all costs are known."""
        return self.costs is not None

    def run(self, requests: Requests, state: State) -> State:
        """One round in the next mode to be measured; none if another thread was faster."""
        with self._lock:
            return state if self.is_complete else self._measure(requests, state)

    def _measure(self, requests: Requests, state: State) -> State:
        mode = self._waiting[0]
        choice = state.choice._replace(forced=jnp.int32(mode))
        state = jax.block_until_ready(state._replace(choice=choice))
        started = time.perf_counter()
        state = jax.block_until_ready(engine.run(self._config, requests, state, 1))
        if self._has_compiled:
            self._seconds[mode].append(time.perf_counter() - started)
        self._has_compiled = True
        # Only now: an interrupted round is measured again.
        self._waiting.pop(0)
        if not self._waiting:
            fastest = [min(seconds) for seconds in self._seconds]
            self.costs = tuple(seconds / fastest[0] for seconds in fastest)
        return state

    def known(self, state: State) -> State:
        """The state with the measured costs, which another batch may have completed."""
        costs = jnp.asarray(self.costs, jnp.float32)
        return state._replace(choice=state.choice._replace(costs=costs))


def cost_measurement(
    config: EngineConfig, requests: Requests, costs: tuple[float, ...] | None
) -> CostMeasurement:
    """The measurement for a kind of batch: models, configuration, sampling and size.

    It is complete if the costs are given or have been measured before.
    """
    if costs is not None:
        return CostMeasurement(config, costs)
    models = (requests.target, *requests.drafters)
    functions = tuple((model.apply, model.hidden) for model in models)
    sizes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(models))
    sampling = (jax.tree.structure(requests.sampling), requests.sampling.top_k)
    kind = (config, functions, sizes, sampling, len(requests.keys))
    if kind not in _MEASUREMENTS:
        _MEASUREMENTS[kind] = CostMeasurement(config, None)
    return _MEASUREMENTS[kind]
