"""What a round costs: sums of its parts by hand, what was not measured, and numbers that no cost is."""

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
    slots=64,
    draft={1: 1.0, 2: 3.0, 8: 15.0},
    target={1: 100.0, 5: 140.0, 29: 500.0},
    beside={"gls": {1: 10.0, 7: 70.0}, "single": {1: 8.0}},
    step=5.0,
)
WIDE = Setting(
    "gls", 4, 4, (4, 2, 1, 1)
)  # levels of 4, 8, 8, 8 nodes: as many as seven chains of 4


def test_parts_of_a_round():
    chains = (
        3 * 3.0 + 170 + 20 * 3 / 4
    )  # three levels read two tokens each, 1 + 6 verified, two chains of 3
    assert COSTS.round("gls", Setting("gls", 2, 3).shape) == pytest.approx(chains)
    assert COSTS.round("gls", WIDE.shape) == pytest.approx(
        (3 + 7 + 15 + 15) + 500 + 70
    )  # reads 2, 4, 8, 8 tokens
    assert COSTS.round("single", Setting("single", 1, 2).shape) == pytest.approx(
        (3 + 1) + 120 + 8 * 2 / 4
    )


def test_rates_are_of_the_batch_and_the_speedup_is_not():
    (choice,) = planner.from_acceptances([0.5, 0.5], [Setting("gls", 2, 2)], COSTS)
    seconds = 2 * 3.0 + 140 + 20 * 2 / 4
    assert choice.block_efficiency == 1.75 and COSTS.plain() == 100 + 5
    assert choice.tokens_per_second == pytest.approx(2 * 1.75 / seconds)
    assert choice.speedup == pytest.approx(1.75 / seconds * 105)


def test_a_call_is_one_of_several(monkeypatch):
    """On a clock by which a call takes half a second, and all that is around it two."""
    now = [0.0]

    def calls(model, count, **sizes):
        now[0] += 2 + 0.5 * count

    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(costs, "_calls", calls)
    assert costs._call(None, 1, 1, 8) == 0.5


def test_measured_is_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(costs, "_call", lambda model, batch, size, slots: float(size))
    monkeypatch.setattr(
        costs,
        "_round",
        lambda target, drafter, batch, options: 0.5 if drafter is None else options.num_drafts,
    )
    model = decoding.from_function(lambda params, tokens: params[tokens], jnp.zeros((3, 3)), 3)
    shapes = [WIDE.shape, Setting("gls", 2, 3).shape]
    found = planner.measure(model, model, ["gls", "single"], shapes)
    assert found.beside == {"gls": {1: 1, 7: 7}, "single": {1: 1}} and found.step == 0.5
    found.check([("gls", shape) for shape in shapes])


@pytest.mark.parametrize(
    ("scheme", "setting", "line"),
    [
        ("gls", Setting("gls", 8, 1), "gls rounds of 8 chains, got none above 7"),
        ("gls", Setting("gls", 4, 3, (9, 1, 1)), "draft calls of 9 tokens, got none above 8"),
        ("gls", Setting("gls", 6, 5), "target calls of 31 tokens, got none above 29"),
        ("spectr", Setting("spectr", 1, 1), "those of spectr, got gls, single"),
    ],
)
def test_not_measured(scheme, setting, line):
    with pytest.raises(ValueError, match=f"costs: expected {line}"):
        COSTS.check([("gls", WIDE.shape), (scheme, setting.shape)])


def test_a_file_of_costs(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    assert planner.Costs.load(tmp_path / "costs.json") == COSTS


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch": 0}, "batch: expected an int of at least 1, got 0"),
        ({"slots": 1.5}, "slots: expected an int of at least 1 .*, got 1.5"),
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
            {"beside": {"gls": {"1": float("inf")}}},
            "beside.gls.1: expected seconds, finite and at least 0, got inf",
        ),
        ({"beside": {"gls": {}}}, "beside.gls: expected seconds by numbers of at least 1, got {}"),
        ({"step": -1}, "step: expected seconds, finite and at least 0, got -1"),
        ({"step": "0.5"}, "step: expected seconds, finite and at least 0, got '0.5'"),
        ({"beside": []}, r"beside: expected an object, got \[\]"),
        ({"facts": 3}, "facts: expected an object, got 3"),
    ],
)
def test_numbers_that_no_cost_is(tmp_path, change, line):
    path = tmp_path / "costs.json"
    free = {"beside": {"gls": {"1": 0}}, "step": 0}  # what is beside the calls may be free
    path.write_text(json.dumps(dataclasses.asdict(COSTS) | free))
    planner.Costs.load(path)
    path.write_text(json.dumps(dataclasses.asdict(COSTS) | change))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {line}"):
        planner.Costs.load(path)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "a file that cannot be read"),
        ("[]", "a file that cannot be read"),
        ("{}", "none of batch"),
    ],
)
def test_a_file_of_something_else(tmp_path, text, got):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=f"{re.escape(str(path))}: expected measured costs, got {got}"
    ):
        planner.Costs.load(path)
