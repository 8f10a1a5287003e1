"""`gls-jax dump`, `plan` and the sweep of a dump: from a checkpoint folder to a plan with one command."""

import json
import shutil

import jax
import numpy as np
import pytest

from gls_jax import cli, distributions, planner
from gls_jax.planner import pair_plan
from gls_jax.runs.resume import configuration_hash

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = ["--num-positions", "40", "--num-kept", "20", "--top-k", "20"]


def run(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def plan(checkpoint, tmp_path_factory):
    """A folder with a plan of the tiny checkpoint, drafted by its first layer."""
    out = tmp_path_factory.mktemp("plan") / "here"
    args = ["--target", checkpoint, "--drop-layers", "1", "--out", out, *SMALL, "--schemes", "gls"]
    assert (
        run(
            "plan",
            *args,
            "--num-drafts",
            "1",
            "--lengths",
            "1",
            "2",
            "--trees",
            "1,1",
            "--batch",
            "2",
        )
        == 0
    )
    return out


def test_plan_from_one_command(plan):
    found = json.loads((plan / "plan.json").read_text())
    settings = sorted((tuple(each["setting"].values())[1:] for each in found["choices"]), key=str)
    assert settings == [(1, 1, None), (1, 2, None), (1, 2, [1, 1])]
    rates = [each["tokens_per_second"] for each in found["choices"]]
    assert rates == sorted(rates, reverse=True)
    assert all(
        1 < each["block_efficiency"] < 3 and each["truncation"] == 0 for each in found["choices"]
    )
    assert len(distributions.open_dump(plan / "dump")) == 40


@pytest.fixture
def again(plan, checkpoint, tmp_path):
    """A copy of that folder, and what it takes to plan there again."""
    out = shutil.copytree(plan, tmp_path / "copy")
    args = [
        "--target",
        checkpoint,
        "--drop-layers",
        "1",
        "--out",
        out,
        *SMALL,
        "--schemes",
        "gls",
        "--batch",
        "2",
    ]
    return out, [*args, "--num-drafts", "1", "--lengths", "1", "2", "--trees", "1,1"]


def test_best_settings_are_checked_on_new_texts_of_the_dumps_length(again, monkeypatch):
    out, args = again
    manifest = json.loads((out / "dump" / "dump.json").read_text())
    manifest["asked"]["length"] = 17
    manifest["fingerprint"] = configuration_hash([manifest["format"], manifest["asked"]])
    (out / "dump" / "dump.json").write_text(json.dumps(manifest))
    calls = []

    def generated(keys, target, drafter, texts, setting, **options):
        calls.append((keys, setting, options))
        return planner.Measured(1.5, 0.1, 4, 7.0, 1.2)

    monkeypatch.setattr(pair_plan, "measure_generation", generated)
    assert run("plan", *args, "--check", "4") == 0
    best, *others = json.loads((out / "plan.json").read_text())["choices"]
    assert best["measured"]["tokens_per_second"] == 7 and not any(
        "measured" in each for each in others
    )
    ((keys, setting, options),) = calls
    assert list(setting._asdict().values())[:3] == list(best["setting"].values())[:3]
    assert options["options"].max_new_tokens == 17 and len(keys) == 4
    of_dump = jax.vmap(lambda r: jax.random.fold_in(jax.random.key(0), r))(np.arange(4))
    assert not np.intersect1d(jax.random.key_data(keys), jax.random.key_data(of_dump)).size


def test_dump_that_keeps_fewer_tokens_is_not_reused(again, capsys):
    """One that cut nothing off is: there is no more to keep."""
    out, args = again
    assert run("plan", *args, "--num-kept", "30") == 0
    tails = np.lib.format.open_memmap(out / "dump" / "tail_p.npy", mode="r+")
    tails[3] = 0.1
    tails.flush()
    assert run("plan", *args, "--num-kept", "30") == 2
    assert (
        "expected num_kept 30, got one made with 20; give another path" in capsys.readouterr().err
    )


def test_costs_are_reused_by_another_plan(plan, tmp_path, capsys):
    args = [
        "--costs",
        plan / "costs.json",
        "--out",
        tmp_path,
        "--schemes",
        "gls",
        "--num-drafts",
        "1",
        "--json",
    ]
    args += ["--batch", "2"]
    assert run("plan", *args, "--acceptances", "0.8", "0.5") == 0
    best, other = sorted(
        json.loads(capsys.readouterr().out)["choices"], key=lambda each: each["nodes"]
    )
    assert best["block_efficiency"] == pytest.approx(1.8) and other[
        "block_efficiency"
    ] == pytest.approx(2.2)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--temperature", "0.5"], "expected sampling"),
        (["--target", "/nowhere"], "expected target /nowhere, got one made with"),
        (["--batch", "4"], "expected batch 4, got one made with 2"),
        (["--seed", "1"], "expected seed 1, got one made with 0"),
        (["--num-kept", "3"], "expected num_kept 3, got one made with 20"),
    ],
)
def test_files_of_another_configuration_are_refused(plan, checkpoint, change, line, capsys):
    args = [
        "--target",
        checkpoint,
        "--drop-layers",
        "1",
        "--out",
        plan,
        *SMALL,
        "--schemes",
        "gls",
        "--batch",
        "2",
    ]
    before = (plan / "plan.json").read_bytes()
    assert run("plan", *args, "--num-drafts", "1", "--lengths", "1", "--trees", "1,1", *change) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and (plan / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--schemes", "poisson"], "costs: expected those of poisson, got gls"),
        (["--num-drafts", "8"], "costs: expected target calls of 9 tokens, got none above 3"),
        (["--batch", "1"], "expected costs of batch 1, got batch 2"),
        (["--num-drafts", "2"], "costs: expected gls rounds of 2 chains, got none above 1"),
        (["--lengths", "1"], "acceptances: expected neither --lengths nor --trees"),
        (["--trees", "1,1"], "acceptances: expected neither --lengths nor --trees"),
    ],
)
def test_missing_costs_are_refused(plan, tmp_path, change, line, capsys):
    args = [
        "--costs",
        plan / "costs.json",
        "--out",
        tmp_path,
        "--schemes",
        "gls",
        "--num-drafts",
        "1",
        "--batch",
        "2",
    ]
    assert run("plan", *args, "--acceptances", "0.8", *change) == 2
    assert line in capsys.readouterr().err


def test_acceptance_at_every_position_of_a_dump(plan, tmp_path, capsys):
    args = [
        "--pairs",
        plan / "dump",
        "--out",
        tmp_path,
        "--schemes",
        "poisson",
        "--num-drafts",
        "1",
        "4",
        "--json",
    ]
    assert run("acceptance", *args) == 0
    one, four = json.loads(capsys.readouterr().out)["rows"]
    assert one["disjoint"] == one["merged"] < four["disjoint"] < 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "--schemes", "traversal"], "scheme: expected one of"),
        (["plan", "--trees", "2,x"], "trees: expected numbers such as 4,2,1"),
        (["plan", "--costs", "nowhere.json"], "nowhere.json: no such file"),
        (
            ["plan", "--acceptances", "0.5"],
            "acceptances: expected one scheme and one number of drafts",
        ),
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
