"""The plan of a pair of models: costs and distributions are reused or made, the best is checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from gls_jax import checks, races
from gls_jax.decoding import DecodeOptions
from gls_jax.distributions import Dump, Sampling, open_dump
from gls_jax.distributions.dump_files import has_dump
from gls_jax.distributions.prompts import PROMPTS
from gls_jax.distributions.text_dump import DumpRequest, dump_pair
from gls_jax.planner import (
    Choice,
    Costs,
    Measured,
    Setting,
    check_acceptances,
    from_acceptances,
    measure,
    measure_generation,
    plan,
)
from gls_jax.runs import files
from gls_jax.typing import Report

if TYPE_CHECKING:
    # gls_jax.models imports flax, this package does not.
    from gls_jax.models.model_pair import ModelPair

__all__ = ["PairPlan", "PlanRequest", "plan_pair"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The settings to plan, and the files to use.

    Attributes:
        folder: folder of `costs.json`.
        settings: schemes with what they draft.
        dump: distributions along texts; a dump in its folder is used if it fits, and completed.
        is_given_dump: whether the user named the folder of the dump. Such a dump must be of these
            models and sampling parameters; any other dump must also have this seed and size.
        costs: file with measured costs, perhaps of another machine; None uses `costs.json` in the
            folder, and measures what is missing.
        acceptances: measured acceptances of the 1st, 2nd, ... draft, each given the ones before,
            in place of a dump.
        batch: requests decoded together.
        text_length: tokens of a text, prompt included, that the caches hold.
        num_check_texts: texts that are generated with the best setting of each scheme, to compare
            with the prediction; a multiple of `batch`.
    """

    folder: Path
    settings: Sequence[Setting]
    dump: DumpRequest
    is_given_dump: bool = False
    costs: Path | None = None
    acceptances: Sequence[float] = ()
    batch: int = 1
    text_length: int = 256
    num_check_texts: int = 0

    def check(self) -> None:
        """Check all that can be checked before models are loaded.

        Raises:
            ValueError: a parameter out of range.
            OSError: a folder that cannot be written.
        """
        check_acceptances(self.acceptances)
        self.dump.check()
        batch, num_texts = checks.count(self.batch, "batch"), self.num_check_texts
        if num_texts < 0 or num_texts % batch:
            raise ValueError(f"check: expected a multiple of batch ({batch}), got {num_texts}")
        files.check_folder(self.folder)

    @property
    def costs_path(self) -> Path:
        """File of the costs."""
        return self.folder / "costs.json" if self.costs is None else self.costs


class PairPlan(NamedTuple):
    """The plan of a pair of models.

    Attributes:
        model_names: names of the models.
        choices: all settings with their predictions, the fastest first.
        measured: measurements of the settings that were checked.
        costs: the costs that the predictions use.
    """

    model_names: Mapping[str, str | None]
    choices: list[Choice]
    measured: dict[Setting, Measured]
    costs: Costs

    @property
    def plain_tokens_per_second(self) -> float:
        """Rate of the whole batch without drafts."""
        return self.costs.batch / self.costs.plain()

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        records = []
        for choice in self.choices:
            record = _as_json(choice) | {"setting": choice.setting._asdict()}
            if choice.setting in self.measured:
                record["measured"] = _as_json(self.measured[choice.setting])
            records.append(record)
        return {
            "target": self.model_names["target"],
            "draft": self.model_names["draft"],
            "plain_tokens_per_second": self.plain_tokens_per_second,
            "choices": records,
        }


def plan_pair(
    request: PlanRequest,
    load_models: Callable[[], ModelPair],
    *,
    progress: Report | None = None,
) -> PairPlan:
    """Plan the decoding of a pair of models.

    Args:
        request: what to plan.
        load_models: loads the models, with a drafter; called only if the dump or the costs are
            missing, or for a check.
        progress: called with `(kind of work, done, total)`.

    Returns:
        The :class:`PairPlan`: all settings, and the measured best of each scheme if checked.

    Raises:
        ValueError: a parameter out of range, or a dump or costs of something else in the folder.
        OSError: a file that cannot be read or written.
    """
    request.check()
    report = progress or _ignore_progress
    costs = _reusable_costs(request)
    dump = None if request.acceptances else _reusable_dump(request)

    # Loading takes long, so models are loaded only where something is missing.
    pair = None
    is_dump_missing = dump is None and not request.acceptances
    if costs is None or is_dump_missing or request.num_check_texts:
        pair = load_models()
    request.folder.mkdir(parents=True, exist_ok=True)
    if pair is not None and is_dump_missing:
        dump = dump_pair(request.dump, pair, resume=True, progress=report)
    if costs is None:
        assert pair is not None
        # Saved at once, so that a run that is interrupted later does not measure again.
        costs = _measure_costs(request, pair, report)
        costs.save(request.costs_path)

    if dump is None:
        choices = from_acceptances(request.acceptances, request.settings, costs)
    else:
        choices = plan(dump, request.settings, costs, progress=partial(report, "settings"))

    # The texts of the check are as long as those of the dump, so the two can be compared.
    measured = {}
    if pair is not None and request.num_check_texts:
        length = DumpRequest.length
        if dump is not None:
            length = dump.configuration.get("length", length)
        measured = _measure_best(request, pair, choices, length, report)
    return PairPlan(request.dump.model_names, choices, measured, costs)


def _reusable_costs(request: PlanRequest) -> Costs | None:
    """Costs from a file, or None if they must be measured."""
    path = request.costs_path
    if request.costs is None and not path.exists():
        return None
    costs = Costs.load(path)
    sizes = [(setting.scheme, setting.shape) for setting in request.settings]
    if request.costs is None:
        _check_same(path, costs.metadata, _costs_metadata(request))
        try:
            costs.check(sizes)
        except ValueError:
            # They were measured for fewer schemes or smaller shapes.
            return None
    # Costs that the user gave are never replaced, so a gap in them is an error.
    costs.check(sizes)
    if costs.batch != request.batch:
        raise ValueError(
            f"{path}: expected costs of batch {request.batch}, got batch {costs.batch}"
        )
    return costs


def _reusable_dump(request: PlanRequest) -> Dump | None:
    """A finished dump from a folder, or None if it must be made or completed."""
    wanted = request.dump
    if not has_dump(wanted.folder):
        return None
    dump = open_dump(wanted.folder)
    configuration = dump.configuration
    expected: dict[str, Any] = dict(wanted.model_names)
    expected["sampling"] = dataclasses.asdict(wanted.sampling)
    if not request.is_given_dump:
        expected |= {"seed": wanted.seed, "positions": wanted.num_positions}
        # A dump that cut nothing off also serves a request to keep more.
        is_cut = dump.rows.tail_p.any() or dump.rows.tail_q.any()
        num_kept = wanted.num_kept
        expected["num_kept"] = num_kept if is_cut else min(num_kept, configuration["num_kept"])
    _check_same(wanted.folder, configuration, expected)
    return dump if dump.finished else None


def _check_same(path: Path, configuration: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if configuration.get(name) != value:
            raise ValueError(
                f"{path}: expected {name} {value}, got one made with {configuration.get(name)}; "
                "give another path"
            )


def _measure_costs(request: PlanRequest, pair: ModelPair, report: Report) -> Costs:
    assert pair.drafter is not None
    return measure(
        pair.target.language_model,
        pair.drafter,
        list(dict.fromkeys(setting.scheme for setting in request.settings)),
        [setting.shape for setting in request.settings],
        batch=request.batch,
        text_length=request.text_length,
        sampling=DecodeOptions(**_decode_sampling(request.dump.sampling)),
        metadata=_costs_metadata(request),
        progress=partial(report, "costs"),
    )


def _measure_best(
    request: PlanRequest,
    pair: ModelPair,
    choices: Sequence[Choice],
    length: int,
    report: Report,
) -> dict[Setting, Measured]:
    """Generate texts with the best setting of each scheme, as long as those of the dump."""
    target = pair.target
    assert pair.drafter is not None
    # The fastest setting of a scheme comes last here, and replaces the slower ones.
    best = {choice.setting.scheme: choice.setting for choice in reversed(choices)}
    # The texts of the dump use other folds of this seed.
    key = races.private_key(races.new_key(request.dump.seed))
    text_numbers = jnp.arange(request.num_check_texts)
    sampling = _decode_sampling(request.dump.sampling)
    # The default as a number: the dump has one for all schemes, decoding one for each scheme.
    sampling["draft_temperatures"] = request.dump.sampling.drafter_temperature
    keys = races.keys.fold_in_each(key, text_numbers)
    options = DecodeOptions(
        max_new_tokens=length,
        stop_tokens=target.config.eos_token_ids,
        **sampling,
    )
    prompts = [pair.tokenizer.encode(text).ids for text in PROMPTS]
    measured = {}
    for num_done, setting in enumerate(best.values()):
        report("check", num_done, len(best))
        measured[setting] = measure_generation(
            keys,
            target.language_model,
            pair.drafter,
            prompts,
            setting,
            batch=request.batch,
            options=options,
        )
    return measured


def _costs_metadata(request: PlanRequest) -> dict[str, Any]:
    """What costs depend on, as JSON."""
    return request.dump.model_names | {
        "sampling": _decode_sampling(request.dump.sampling),
        "batch": request.batch,
        "text_length": request.text_length,
        "device": jax.devices()[0].device_kind,
    }


def _decode_sampling(sampling: Sampling) -> dict[str, Any]:
    """Sampling parameters under the names of :class:`gls_jax.decoding.DecodeOptions`."""
    return {
        "temperature": sampling.temperature,
        "draft_temperatures": sampling.draft_temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }


def _as_json(figures: Choice | Measured) -> dict[str, Any]:
    """Fields of a result; NaN, which JSON does not have, becomes None."""

    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return [convert(number) for number in value]
        is_nan = isinstance(value, float) and math.isnan(value)
        return None if is_nan else value

    return {name: convert(value) for name, value in figures._asdict().items()}


def _ignore_progress(kind: str, done: int, total: int) -> None:
    pass
