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
    ask += ["--batch", "2"]
    assert run("plan", *ask, "--acceptances", "0.8", "0.5") == 0
    best, other = sorted(json.loads(capsys.readouterr().out)["choices"], key=lambda each: each["nodes"])
    assert best["block_efficiency"] == pytest.approx(1.8) and other["block_efficiency"] == pytest.approx(2.2)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--temperature", "0.5"], "expected sampling"),
        (["--target", "/nowhere"], "expected target /nowhere, got one made with"),
        (["--batch", "4"], "expected batch 4, got one made with 2"),
        (["--seed", "1"], "expected seed 1, got one made with 0"),
    ],
)
def test_what_is_there_is_of_the_same_question(plan, checkpoint, change, line, capsys):
    ask = ["--target", checkpoint, "--drop-layers", "1", "--out", plan, *SMALL, "--schemes", "gls", "--batch", "2"]
    before = (plan / "plan.json").read_bytes()
    assert run("plan", *ask, "--num-drafts", "1", "--lengths", "1", "--trees", "1,1", *change) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and (plan / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--schemes", "poisson"], "costs: expected those of poisson, got gls"),
        (["--num-drafts", "8"], "costs: expected target calls of 9 tokens, got none above 3"),
        (["--batch", "1"], "expected costs of batch 1, got batch 2"),
    ],
)
def test_costs_that_were_not_measured(plan, tmp_path, change, line, capsys):
    ask = ["--costs", plan / "costs.json", "--out", tmp_path, "--schemes", "gls", "--num-drafts", "1", "--batch", "2"]
    assert run("plan", *ask, "--acceptances", "0.8", *change) == 2
    assert line in capsys.readouterr().err


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
        (["plan", "--acceptances", "0.5"], "acceptances: expected the one scheme and number of drafts"),
        (
            ["plan", "--acceptances", "1.5", "--schemes", "gls", "--num-drafts", "1"],
            "acceptances: expected numbers within 0..1, got 1.5",
        ),
        (["plan", "--schemes"], "schemes: expected at least one of"),
        (["plan", "--check", "-3"], "check: expected a multiple of batch (1), got -3"),
        (["plan", "--show", "0"], "show: expected an int of at least 1, got 0"),
        (["dump", "--draft", "none"], "draft: expected a drafter, got none"),
        (["dump", "--dtype", "int8"], "dtype: expected one of"),
        (["dump", "--text", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_bad_input(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert line in capsys.readouterr().err and not list(tmp_path.iterdir())
