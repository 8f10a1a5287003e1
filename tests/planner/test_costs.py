"""What a round costs: sums of its parts by hand, sizes that were not measured, and invalid files."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from gls_jax import decoding, planner
from gls_jax.planner import Setting, costs

COSTS = planner.Costs(
    batch=2,
    cache_slots=64,
    draft={1: 1.0, 2: 3.0, 8: 15.0},
    target={1: 100.0, 5: 140.0, 29: 500.0},
    overhead={"gls": {1: 10.0, 7: 70.0}, "single": {1: 8.0}},
    step=5.0,
)
# Levels of 4, 8, 8, 8 nodes: as many as seven chains of 4.
WIDE = Setting("gls", 4, 4, (4, 2, 1, 1))


def test_round_is_the_sum_of_its_parts():
    # Three levels of two tokens each, 1 + 6 tokens verified, the overhead of two chains of 3.
    chains = 3 * 3.0 + 170 + 20 * 3 / 4
    assert COSTS.round("gls", Setting("gls", 2, 3).shape) == pytest.approx(chains)
    # The drafter reads 2, 4, 8, 8 tokens.
    tree = (3 + 7 + 15 + 15) + 500 + 70
    assert COSTS.round("gls", WIDE.shape) == pytest.approx(tree)
    single = (3 + 1) + 120 + 8 * 2 / 4
    assert COSTS.round("single", Setting("single", 1, 2).shape) == pytest.approx(single)


def test_rates_are_of_the_batch_and_the_speedup_is_not():
    (choice,) = planner.from_acceptances([0.5, 0.5], [Setting("gls", 2, 2)], COSTS)
    seconds = 2 * 3.0 + 140 + 20 * 2 / 4
    assert choice.block_efficiency == 1.75 and COSTS.plain() == 100 + 5
    assert choice.tokens_per_second == pytest.approx(2 * 1.75 / seconds)
    assert choice.speedup == pytest.approx(1.75 / seconds * 105)


def test_time_around_the_calls_is_left_out(monkeypatch):
    """On a clock by which a call takes half a second, and starting the program two."""
    now = [0.0]

    def calls(model, count, **sizes):
        now[0] += 2 + 0.5 * count

    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(costs, "_calls", calls)
    assert costs._call_seconds(None, 1, 1, 8) == 0.5


def test_measured_sizes_cover_the_shapes(monkeypatch):
    def call_seconds(model, batch, size, cache_slots):
        return float(size)

    def round_seconds(target, drafter, batch, options):
        return 0.5 if drafter is None else options.num_drafts

    monkeypatch.setattr(costs, "_call_seconds", call_seconds)
    monkeypatch.setattr(costs, "_median_round_seconds", round_seconds)
    model = decoding.from_function(lambda params, tokens: params[tokens], jnp.zeros((3, 3)), 3)
    shapes = [WIDE.shape, Setting("gls", 2, 3).shape]
    measured = planner.measure(model, model, ["gls", "single"], shapes)
    assert measured.overhead == {"gls": {1: 1, 7: 7}, "single": {1: 1}}
    assert measured.step == 0.5
    measured.check([("gls", shape) for shape in shapes])


@pytest.mark.parametrize(
    ("scheme", "setting", "line"),
    [
        ("gls", Setting("gls", 8, 1), "gls rounds of 8 chains, got none above 7"),
        ("gls", Setting("gls", 4, 3, (9, 1, 1)), "draft calls of 9 tokens, got none above 8"),
        ("gls", Setting("gls", 6, 5), "target calls of 31 tokens, got none above 29"),
        ("spectr", Setting("spectr", 1, 1), "those of spectr, got gls, single"),
    ],
)
def test_sizes_that_were_not_measured_are_refused(scheme, setting, line):
    with pytest.raises(ValueError, match=f"costs: expected {line}"):
        COSTS.check([("gls", WIDE.shape), (scheme, setting.shape)])


def test_costs_come_back_from_their_file(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    assert planner.Costs.load(tmp_path / "costs.json") == COSTS


def test_earlier_files_with_other_names_are_read(tmp_path):
    content = dataclasses.asdict(COSTS)
    for name, old_name in (("cache_slots", "slots"), ("overhead", "beside"), ("metadata", "facts")):
        content[old_name] = content.pop(name)
    (tmp_path / "costs.json").write_text(json.dumps(content))
    assert planner.Costs.load(tmp_path / "costs.json") == COSTS


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch": 0}, "batch: expected an int of at least 1, got 0"),
        ({"cache_slots": 1.5}, "cache_slots: expected an int of at least 1 .*, got 1.5"),
        ({"draft": {"1": 0.1, "2": 0}}, "draft.2: expected seconds, finite and above 0, got 0"),
        ({"target": {"1": -0.1}}, "target.1: expected seconds, finite and above 0, got -0.1"),
        (
            {"target": {"1": float("nan")}},
            "target.1: expected seconds, finite and above 0, got nan",
        ),
        ({"target": {"1": True}}, "target.1: expected seconds, finite and above 0, got True"),
        ({"target": {"8": 0.1}}, "target: expected a call of 1 token, got none"),
        (
            {"target": {"1": 0.1, "-4": 0.1}},
            "target: expected seconds by numbers of at least 1, got {'1': 0.1, '-4'",
        ),
        ({"draft": {"0": 0.1}}, "draft: expected seconds by numbers of at least 1, got {'0'"),
        ({"draft": {}}, "draft: expected seconds by numbers of at least 1, got {}"),
        ({"draft": 0.1}, "draft: expected seconds by numbers of at least 1, got 0.1"),
        (
            {"overhead": {"gls": {"1": float("inf")}}},
            "overhead.gls.1: expected seconds, finite and at least 0, got inf",
        ),
        (
            {"overhead": {"gls": {}}},
            "overhead.gls: expected seconds by numbers of at least 1, got {}",
        ),
        ({"step": -1}, "step: expected seconds, finite and at least 0, got -1"),
        ({"step": "0.5"}, "step: expected seconds, finite and at least 0, got '0.5'"),
        ({"overhead": []}, r"overhead: expected an object, got \[\]"),
        ({"metadata": 3}, "metadata: expected an object, got 3"),
    ],
)
def test_numbers_that_cannot_be_costs_are_refused(tmp_path, change, line):
    path = tmp_path / "costs.json"
    free = {"overhead": {"gls": {"1": 0}}, "step": 0}  # the overhead may be free
    path.write_text(json.dumps(dataclasses.asdict(COSTS) | free))
    planner.Costs.load(path)
    path.write_text(json.dumps(dataclasses.asdict(COSTS) | change))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {line}"):
        planner.Costs.load(path)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "a file that cannot be read"),
        ("[]", "another JSON file"),
        ("{}", "none of batch"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, text, got):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(
        ValueError,
        match=f"{re.escape(str(path))}: expected measured costs of gls-jax plan, got {got}",
    ):
        planner.Costs.load(path)
