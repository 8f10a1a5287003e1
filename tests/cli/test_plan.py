"""`gls-jax dump`, `plan` and the sweep of a dump: from a checkpoint folder to a plan with one command."""

import json

import pytest

from gls_jax import cli, laws

SMALL = ["--num-positions", "40", "--num-kept", "20", "--top-k", "20"]


def run(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def plan(checkpoint, tmp_path_factory):
    """A folder with a plan of the tiny checkpoint, drafted by its first layer."""
    out = tmp_path_factory.mktemp("plan") / "here"
    ask = ["--target", checkpoint, "--drop-layers", "1", "--out", out, *SMALL, "--schemes", "gls"]
    assert run("plan", *ask, "--num-drafts", "1", "--lengths", "1", "2", "--trees", "1,1", "--batch", "2") == 0
    return out


def test_one_command_makes_a_plan(plan):
    found = json.loads((plan / "plan.json").read_text())
    settings = sorted((tuple(each["setting"].values())[1:] for each in found["choices"]), key=str)
    assert settings == [(1, 1, None), (1, 2, None), (1, 2, [1, 1])]
    rates = [each["tokens_per_second"] for each in found["choices"]]
    assert rates == sorted(rates, reverse=True)
    assert all(1 < each["block_efficiency"] < 3 and each["truncation"] == 0 for each in found["choices"])
    assert len(laws.open_dump(plan / "dump")) == 40


def test_costs_serve_another_plan(plan, tmp_path, capsys):
    ask = ["--costs", plan / "costs.json", "--out", tmp_path, "--schemes", "gls", "--num-drafts", "1", "--json"]
    assert run("plan", *ask, "--acceptances", "0.8", "0.5") == 0
    best, other = sorted(json.loads(capsys.readouterr().out)["choices"], key=lambda each: each["nodes"])
    assert best["block_efficiency"] == pytest.approx(1.8) and other["block_efficiency"] == pytest.approx(2.2)


def test_sweep_of_a_dump(plan, tmp_path, capsys):
    ask = ["--pairs", plan / "dump", "--out", tmp_path, "--schemes", "poisson", "--num-drafts", "1", "4", "--json"]
    assert run("acceptance", *ask) == 0
    one, four = json.loads(capsys.readouterr().out)["rows"]
    assert one["apart"] == one["shared"] < four["apart"] < 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "--schemes", "traversal"], "scheme: expected one of"),
        (["plan", "--trees", "2,x"], "trees: expected numbers such as 4,2,1"),
        (["plan", "--costs", "nowhere.json"], "nowhere.json: no such file"),
        (["plan", "--acceptances", "1.5"], "acceptances: expected numbers within 0..1, got 1.5"),
        (["dump", "--draft", "none"], "draft: expected a drafter, got none"),
        (["dump", "--dtype", "int8"], "dtype: expected one of"),
        (["dump", "--text", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_bad_input(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert line in capsys.readouterr().err and not list(tmp_path.iterdir())
