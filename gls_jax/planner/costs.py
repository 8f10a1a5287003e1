"""What a round costs on this machine: calls of the drafter and the target by number of tokens, and
all that is beside.

A round of a tree reads the last tokens and then its levels with the drafter, all nodes with the
target in one call, and selects. Calls are timed in a loop inside one compiled function, as the
engine makes them; what is beside them is the engine itself with models that cost nothing. Between
the sizes that were timed, costs are linear.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import checks, decoding, races, schemes
from gls_jax.decoding import DecodeOptions, LanguageModel
from gls_jax.decoding.cache import with_length
from gls_jax.decoding.tree_shape import Shape
from gls_jax.runs import files

__all__ = ["Costs", "measure", "seconds_a_round"]

_LENGTH = 4  # of the rounds whose overhead is measured
_CALLS, _REPEATS = 3, 5
_TOKENS = 32  # of a run of the engine without models


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a round, for a batch.

    Attributes:
        batch: requests decoded together.
        slots: of the caches: attention reads all of them.
        draft, target: seconds of a call by tokens read for each request.
        beside: by scheme, seconds of a round of one chain and of K chains of length 4 without its
            models, by K.
        step: seconds of a plain step beside its call of the target.
        facts: what was measured: models, sampling parameters, device; as JSON.
    """

    batch: int
    slots: int
    draft: dict[int, float]
    target: dict[int, float]
    beside: dict[str, dict[int, float]]
    step: float
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, asked: Iterable[tuple[str, Shape]]) -> None:
        """Raise `ValueError` where a scheme or a size was not measured."""
        for scheme, shape in asked:
            if scheme not in self.beside:
                raise ValueError(
                    f"costs: expected those of {scheme}, got {', '.join(self.beside) or 'none'}"
                )
            levels, nodes = _sizes(shape)
            for known, size, part in (
                (self.draft, max(levels), "draft calls of {:g} tokens"),
                (self.target, 1 + nodes, "target calls of {:g} tokens"),
                (self.beside[scheme], _chains(scheme, shape), scheme + " rounds of {:g} chains"),
            ):
                if size > max(known, default=0):
                    most = max(known, default=0)
                    raise ValueError(f"costs: expected {part.format(size)}, got none above {most}")

    def plain(self) -> float:
        """Seconds of a token without drafts."""
        return self.target[1] + self.step

    def round(self, scheme: str, shape: Shape) -> float:
        """Seconds of a round."""
        levels, nodes = _sizes(shape)
        drafts = sum(_between(self.draft, size) for size in levels)
        beside = _between(self.beside[scheme], nodes / shape.depth) * shape.depth / _LENGTH
        return drafts + _between(self.target, 1 + nodes) + beside

    def save(self, path: Path) -> None:
        """As JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        files.write_whole(path, lambda file: file.write(text + "\n"), mode="w")

    @classmethod
    def load(cls, path: Path) -> Costs:
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: something else is in it, or a number that no cost is.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected measured costs (gls-jax plan)")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            batch, slots, draft, target, beside, step, facts = (
                found[field.name] for field in dataclasses.fields(cls)
            )
        except KeyError as error:
            raise ValueError(
                f"{path}: expected measured costs, got none of {error.args[0]}"
            ) from None
        except (ValueError, TypeError):
            raise ValueError(
                f"{path}: expected measured costs, got a file that cannot be read"
            ) from None
        try:
            batch, slots = checks.count(batch, "batch"), checks.count(slots, "slots")
            draft, target = _by_size(draft, "draft"), _by_size(target, "target")
            if 1 not in target:
                raise ValueError("target: expected a call of 1 token, got none")
            for name, table in (("beside", beside), ("facts", facts)):
                if not isinstance(table, dict):
                    raise ValueError(f"{name}: expected an object, got {table!r}")
            beside = {
                name: _by_size(each, f"beside.{name}", free=True) for name, each in beside.items()
            }
            return cls(
                batch, slots, draft, target, beside, _seconds(step, "step", free=True), facts
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def measure(
    target: LanguageModel,
    drafter: LanguageModel,
    names: Sequence[str],
    shapes: Sequence[Shape],
    *,
    batch: int = 1,
    text_length: int = 256,
    sampling: DecodeOptions | None = None,
    facts: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Costs:
    """Time the parts of rounds.

    Args:
        target, drafter: the models.
        names: schemes.
        shapes: what will be drafted: sizes are chosen to cover them.
        batch: requests decoded together.
        text_length: tokens of a text, prompt included, that the caches hold.
        sampling: options whose sampling parameters are used; None for the defaults.
        facts: what else the costs depend on, as JSON: names of the models, the device.
        progress: called with `(measurements done, measurements)`.

    Returns:
        :class:`Costs`.
    """
    checks.count(batch, "batch")
    nodes = [np.cumprod(shape.widths) for shape in shapes]
    reads = _doubling(max(int(sizes[-1]) for sizes in nodes))
    calls = [1, *(1 + size for size in _doubling(max(int(sizes.sum()) for sizes in nodes)))]
    slots = checks.count(text_length, "text_length") + calls[-1]
    free = _free(target, target.vocab_size, 0.0), _free(drafter, target.vocab_size, 0.5)
    sampling = dataclasses.replace(sampling or DecodeOptions(), max_new_tokens=_TOKENS)
    tasks: dict[tuple[str, int], Callable[[], float]] = {
        **{
            ("draft", size): partial(_call, drafter, batch, size, slots)
            for size in sorted({*reads, 2})
        },
        **{("target", size): partial(_call, target, batch, size, slots) for size in calls},
        ("step", 0): partial(_round, free[0], None, batch, sampling),
    }
    for name in names:
        for chains in sorted({1, math.ceil(max(_chains(name, shape) for shape in shapes))}):
            options = dataclasses.replace(
                sampling, scheme=name, num_drafts=chains, draft_length=_LENGTH
            )
            tasks[name, chains] = partial(_round, *free, batch, options)
    for done, task in enumerate(tasks.values()):
        if progress is not None:
            progress(done, len(tasks))
        task()  # compiles
    # In turns: a machine that is busy for a while slows all parts alike.
    turns = [{part: task() for part, task in tasks.items()} for _ in range(_REPEATS)]
    found: dict[str, dict[int, float]] = {}
    for part, size in tasks:
        found.setdefault(part, {})[size] = statistics.median(turn[part, size] for turn in turns)
    beside = {name: found[name] for name in names}
    return Costs(
        batch, slots, found["draft"], found["target"], beside, found["step"][0], facts or {}
    )


def _sizes(shape: Shape) -> tuple[list[int], int]:
    """Tokens that the drafter reads at each level, and nodes."""
    nodes = np.cumprod(shape.widths)  # of each level
    return [2, *nodes[:-1].tolist()], int(
        nodes.sum()
    )  # the root reads the last accepted token and the emitted one


def _chains(name: str, shape: Shape) -> float:
    """So many chains of the shape's depth have its nodes; at most those that the scheme takes."""
    return min(_sizes(shape)[1] / shape.depth, schemes.get(name).max_drafts or math.inf)


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    return sorted({most, *(2**i for i in range(most.bit_length()))})


def _call(model: LanguageModel, batch: int, size: int, slots: int) -> float:
    def seconds(count: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(_calls(model, count, batch=batch, size=size, slots=slots))
        return time.perf_counter() - started

    return (
        max(seconds(1 + _CALLS) - seconds(1), 1e-9) / _CALLS
    )  # an empty cache is made once, and is not counted


@partial(jax.jit, static_argnames=("batch", "size", "slots"))
def _calls(model: LanguageModel, count, *, batch: int, size: int, slots: int):
    """The same call, again and again, on a full cache; each waits for the logits of the one before."""
    start = jnp.full(batch, slots - size, jnp.int32)
    positions = start[:, None] + jnp.arange(size, dtype=jnp.int32)
    mask = jnp.arange(slots) <= positions[..., None]

    def again(_, carry):
        tokens, cache = carry
        logits, cache = model.apply(
            model.params, tokens, positions, mask, with_length(cache, start)
        )
        return (jnp.max(logits, axis=-1) > 1e9).astype(jnp.int32), cache

    return jax.lax.fori_loop(
        0, count, again, (jnp.zeros((batch, size), jnp.int32), model.init_cache(batch, slots))
    )[0]


def _round(
    target: LanguageModel, drafter: LanguageModel | None, batch: int, options: DecodeOptions
) -> float:
    run = decoding.stream(races.new_key(0), target, drafter, [[0]] * batch, options=options)
    return statistics.median(seconds_a_round(run))


def seconds_a_round(run: Iterator[Any]) -> list[float]:
    """How long each round of a stream takes."""
    seconds, last = [], time.perf_counter()
    for _ in run:
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds


def _free(model: LanguageModel, vocab_size: int, noise: float) -> LanguageModel:
    """A model that costs nothing and keeps its cache."""
    own, other = jax.random.normal(races.new_key(0), (2, vocab_size))
    return dataclasses.replace(
        model, params=2.5 * (own + noise * other), apply=_constant, vocab_size=vocab_size
    )


def _constant(params, tokens, positions, mask, cache):
    logits = jnp.broadcast_to(params, (*tokens.shape, params.shape[0]))
    return logits, with_length(cache, cache.length + tokens.shape[1])


def _between(known: dict[int, float], size: float) -> float:
    sizes = sorted(known)
    return float(np.interp(size, sizes, [known[n] for n in sizes]))


def _by_size(found: Any, name: str, *, free: bool = False) -> dict[int, float]:
    if not (
        isinstance(found, dict) and found and all(size.isdecimal() and int(size) for size in found)
    ):
        raise ValueError(f"{name}: expected seconds by numbers of at least 1, got {found!r}")
    return {int(size): _seconds(each, f"{name}.{size}", free=free) for size, each in found.items()}


def _seconds(value: Any, name: str, *, free: bool) -> float:
    """A number of seconds; 0 only of what may be free."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and (value > 0 or (free and value == 0))):
        raise ValueError(
            f"{name}: expected seconds, finite and {'at least' if free else 'above'} 0, got {value!r}"
        )
    return float(value)
