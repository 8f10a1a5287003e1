"""Experiments through their entry point, tiny, against the library, with a table as language model."""

import csv
from collections import Counter

import jax
import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import daliri, diverse, gls_fig6, khisti, shared
from gls_jax import bounds, couplings, races, schemes
from gls_jax.distributions import pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY = 12
DALIRI = ["--num-prompts", 2, "--num-positions", 9, "--num-trials", 400, "--top-k", 5]
DALIRI += ["--drop", 3, 4]
LOWER, DISTINCT = gls_fig6.BOUNDS


@pytest.fixture
def fake_model(monkeypatch):
    """Models whose next logits depend on the last token only; the drafter's are noisier."""
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=(2, 1), size=(VOCABULARY, VOCABULARY, 2))
    tables = noise.cumsum(-1).astype(np.float32)

    def encode(text):
        return [ord(letter) % VOCABULARY for letter in text]

    def model(dropped=None):
        table = tables[:, :, 0]
        if dropped is not None:
            shared.remaining_layers(dropped, 30)
            table = tables[:, :, 1]
        return shared.Model(logits=lambda tokens: table[tokens], encode=encode, num_layers=30)

    monkeypatch.setattr(shared, "smollm2", model)


def run(name, folder, *options):
    assert entry.main([name, "--out", str(folder), *map(str, options)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.csv", f"{name}.png"]
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def number(row, field):
    return float(row[field])


def test_fig6(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gls_fig6, "_MOST_CHAINS", 0)  # specinfer_wor is estimated while K < N
    sizes = ["--num-pairs", 3, "--num-categories", 3, "--max-drafts", 3]
    sizes += ["--num-trials", 2000, "--num-chains", 500]
    rows = run("gls_fig6", tmp_path / "out", *sizes, "--schemes", "minhash", "specinfer_wor")
    assert "3 random pairs" in capsys.readouterr().out
    assert tuple(rows[0]) == gls_fig6.Row._fields
    value, error = [
        {
            (row["scheme"], int(row["num_drafts"]), row["method"]): float(row[field] or 0)
            for row in rows
        }
        for field in ("acceptance", "standard_error")
    ]
    kinds = {"minhash": 2, "specinfer_wor": 2 * 3, "optimal": 2 * 3, LOWER: 3, DISTINCT: 3}
    assert len(value) == len(rows) and Counter(row["scheme"] for row in rows) == kinds
    random_pairs = pairs.random(races.private_key(jax.random.key(0)), 3, 3)
    truth = {}
    for name, counts in (("minhash", (1,)), ("optimal", (1, 2, 3)), ("specinfer_wor", (1, 2))):
        scheme = schemes.get(name)
        curves = [scheme.acceptance_curve(p, q, counts) for p, q in zip(*random_pairs, strict=True)]
        truth[name] = np.mean(curves, axis=0)
    assert value["minhash", 1, "exact"] == pytest.approx(truth["minhash"][0], abs=1e-5)
    optimal = [value["optimal", k, "exact"] for k in (1, 2, 3)]
    assert optimal == pytest.approx(truth["optimal"], abs=1e-5)
    assert value["specinfer_wor", 3, "exact"] == 1
    for k in (1, 2):
        cell = ("specinfer_wor", k, "estimate")
        assert abs(value[cell] - truth["specinfer_wor"][k - 1]) < 5 * error[cell] + 1e-5
    for name, k, method in value:
        if method == "simulated":
            line = value.get((name, k, "exact"), value.get((name, k, "estimate")))
            assert abs(value[name, k, method] - line) < 5 * error[name, k, method], (name, k)
    for k in (1, 2, 3):
        assert value[LOWER, k, "bound"] <= value["optimal", k, "exact"]
        assert value["optimal", k, "exact"] <= value[DISTINCT, k, "bound"] + 1e-5
    assert value["specinfer_wor", 2, "estimate"] <= value[DISTINCT, 2, "bound"]


def test_daliri(tmp_path, capsys, fake_model):
    rows = run("daliri", tmp_path / "out", *DALIRI)
    assert "400 repetitions" in capsys.readouterr().out
    model_pairs = shared.next_token_pairs((3, 4), num_prompts=2, num_positions=9, top_k=5)
    # More than one block: the last one is filled up.
    assert len(rows) == 2 * 18 == 2 * model_pairs.log_q.shape[0]
    matches = {"gumbel": couplings.gumbel_match, "minhash": couplings.minhash_match}
    for coupling, match in matches.items():
        coupling_rows = [row for row in rows if row["coupling"] == coupling]
        for row, p, q in zip(coupling_rows, *model_pairs, strict=True):
            tv = float(bounds.total_variation(p, q))
            exact = number(row, "exact")
            assert number(row, "tv") == pytest.approx(tv, abs=1e-6)
            assert number(row, "lower") == pytest.approx((1 - tv) / (1 + tv), abs=1e-5)
            assert exact == pytest.approx(float(match(p, q)), abs=1e-5)
            assert number(row, "lower") - 1e-5 <= exact <= number(row, "upper") + 1e-5
            difference = abs(number(row, "simulated") - exact)
            assert difference < 5 * number(row, "standard_error"), row
    # Every position is simulated separately.
    assert len({row["simulated"] for row in rows}) > 18


def test_stopped_run_is_resumed(tmp_path, monkeypatch, capsys, fake_model):
    """The third of four blocks is interrupted: the first two are not computed again."""
    whole = run("daliri", tmp_path / "whole", *DALIRI)
    agreement = daliri.agreement
    simulated = []

    def interrupted(*arguments, **options):
        simulated.append(options["coupling"].__name__)
        if len(simulated) == 3:
            raise KeyboardInterrupt
        return agreement(*arguments, **options)

    monkeypatch.setattr(daliri, "agreement", interrupted)
    assert entry.main(["daliri", "--out", str(tmp_path / "cut"), *map(str, DALIRI)]) == 130
    assert "the same command continues from here" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "daliri.csv").exists()
    assert run("daliri", tmp_path / "cut", *DALIRI) == whole
    assert simulated == ["gumbel"] * 2 + ["weighted_minhash"] * 3


def test_khisti(tmp_path, capsys, monkeypatch, fake_model):
    monkeypatch.delitem(khisti.SCHEMES, "weighted_importance_15")  # compiles long
    few = ["--num-prompts", 1, "--num-positions", 6, "--top-k", 4, "--num-drafts", 2, 4]
    rows = run("khisti", tmp_path / "out", *few)
    assert tuple(rows[0]) == khisti.Row._fields
    table = {
        (row["distributions"], row["scheme"], int(row["num_drafts"])): number(row, "acceptance")
        for row in rows
    }
    assert len(table) == len(rows) == 2 * len(khisti.SCHEMES) + 3 * 4
    for k in (2, 4):
        by_scheme = [table["top 4", name, k] for name in ("specinfer", "spectr", "optimal")]
        assert by_scheme == sorted(by_scheme)
        assert table["top 4", "weighted_importance", k] <= table["top 4", "optimal", k] + 1e-5
    # The paper's numbers are passed on as they are.
    for name, curve in khisti.PAPER.items():
        assert [table["paper", name, k] for k in khisti.PAPER_NUM_DRAFTS] == list(curve)
    model_pairs = shared.next_token_pairs(
        (12, 17), num_prompts=1, num_positions=6, top_k=4, draft_temperature=1.2
    )
    gls = schemes.get("gls")
    exact = [gls.acceptance(p, q, 4) for p, q in zip(*model_pairs, strict=True)]
    assert table["top 4", "gls", 4] == pytest.approx(np.mean(exact), abs=1e-5)
    assert "gap 8" in capsys.readouterr().out


def test_diverse(tmp_path, capsys, monkeypatch, fake_model):
    monkeypatch.delitem(diverse.SCHEMES, "weighted_importance_15")
    rows = run("diverse", tmp_path / "out", "--num-prompts", 1, "--num-positions", 5, "--top-k", 4)
    assert tuple(rows[0]) == diverse.Row._fields
    table = {
        (float(row["first_temperature"]), float(row["second_temperature"]), row["scheme"]): row
        for row in rows
    }
    table = {key: number(row, "acceptance") for key, row in table.items()}
    assert len(table) == len(rows) == 3 * (len(diverse.SCHEMES) + 1)
    for pair in ((0.5, 1.0), (1.0, 0.5), (1.0, 1.0)):
        assert table[*pair, diverse.BOUND] - 1e-5 <= table[*pair, "gls"]
        assert max(table[*pair, name] for name in diverse.SCHEMES) <= 1
    assert table[0.5, 1.0, "gls"] == pytest.approx(table[1.0, 0.5, "gls"], abs=1e-5)
    options = {"num_prompts": 1, "num_positions": 5, "top_k": 4, "temperature": 2.0}
    first = shared.next_token_pairs((12, 17), **options, draft_temperature=0.5)
    second = shared.next_token_pairs((12, 17), **options, draft_temperature=1.0)
    exact = [
        schemes.get("specinfer").acceptance(np.stack([p1, p2]), q, 2)
        for p1, p2, q in zip(first.log_p, second.log_p, first.log_q, strict=True)
    ]
    assert table[0.5, 1.0, "specinfer"] == pytest.approx(np.mean(exact), abs=1e-5)
    assert "draft temperatures" in capsys.readouterr().out


def test_full_changes_only_defaults(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(gls_fig6.GlsFig6, "run", lambda self, report: started.append(self) or [])
    for options in ([], ["--full"], ["--full", "--num-trials", "7"]):
        assert entry.main(["gls_fig6", "--out", str(tmp_path), *options]) == 0
    assert [experiment.num_trials for experiment in started] == [2_000, 20_000, 7]


def test_help(capsys):
    assert entry.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in (*entry.EXPERIMENTS, "bench"))
    with pytest.raises(SystemExit, match="0"):
        entry.main(["daliri", "--help"])
    assert "2408.07978" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"NAME: expected one of {', '.join(entry.EXPERIMENTS)} or bench, got ''"),
        (
            ["gls_fig7"],
            f"NAME: expected one of {', '.join(entry.EXPERIMENTS)} or bench, got 'gls_fig7'",
        ),
        (["gls_fig6", "--max-drafts", "0"], "max_drafts: expected an int of at least 1, got 0"),
        (["gls_fig6", "--schemes", "block"], "scheme 'block' verifies whole paths"),
        (["gls_fig6", "--seed", "-1"], "seed: expected one int within"),
        (
            ["daliri", "--drop", "17", "12"],
            "drop: expected the first and last of some of the layers 0-29",
        ),
        (["daliri", "--num-trials", "0"], "num_trials: expected an int of at least 1, got 0"),
        (["daliri", "--num-positions", "0"], "num_positions: expected an int of at least 1, got 0"),
        (["khisti", "--draft-temperature", "-1"], "temperature: expected 0 or a finite number"),
        (["khisti", "--top-k", "0"], "top_k: expected an int of at least 1, got 0"),
        (
            ["diverse", "--top-k", "3", "--draft-temperatures", "0", "1"],
            "draft_temperatures: expected positive temperatures",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, arguments, message, fake_model
):
    monkeypatch.chdir(tmp_path)
    assert entry.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("experiments: error: ") and message in printed.err
    assert len(printed.err.splitlines()) == 1 and not printed.out
