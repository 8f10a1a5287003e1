"""The file of a benchmark run: what is written, read back, compared and refused. Nothing is timed."""

import json

import pytest

from experiments import __main__ as entry
from experiments import bench
from experiments.bench import results_file

LINE = {"benchmark": "race", "ratio": 4.0, "seconds": 0.5, "note": "quiet", "skipped": False}


@pytest.fixture
def suite(monkeypatch):
    """A suite of one benchmark, which returns this line."""
    line = dict(LINE)
    monkeypatch.setattr(bench, "SUITES", {"race": (lambda repeats: line | {"repeats": repeats},)})
    return line


def changes(before, now, *threshold):
    return list(results_file.changes(before, now, *threshold))


def test_changes_are_the_figures_that_differ():
    now = [
        LINE | {"ratio": 2.0, "seconds": 0.54, "note": "loud", "new": 1.0},
        {"benchmark": "other", "ratio": 9.0},
    ]
    new_figures = [("race", "new", None, 1.0), ("other", "ratio", None, 9.0)]
    assert changes([LINE], now) == [("race", "ratio", 4.0, 2.0), *new_figures]
    figures = [change.figure for change in changes([LINE], now, 0.01)]
    assert figures == ["ratio", "seconds", "new", "ratio"]
    # NaN counts as missing.
    assert changes([LINE], [LINE | {"ratio": float("nan")}]) == [("race", "ratio", 4.0, None)]
    # The threshold is a share of the earlier figure, not of the new one.
    (change,) = changes([LINE], [LINE | {"ratio": 4.42}])
    assert change.now == 4.42
    assert not changes([LINE], [LINE | {"ratio": 3.62}], 0.1)
    # A benchmark that has disappeared, the environment, and a change from zero.
    assert [change.now for change in changes([LINE], [])] == [None, None]
    assert not changes([{"benchmark": "environment", "load": 1.0}], [])
    assert changes([LINE | {"ratio": 0.0}], [LINE], 0.5) == [("race", "ratio", 0.0, 4.0)]


def test_run_writes_one_file_and_shows_changes(suite, tmp_path, capsys):
    first = tmp_path / "a" / "first.json"
    second = tmp_path / "second.json"
    assert entry.main(["bench", "race", "--repeats", "3", "--out", str(first)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == results_file.read(first)
    assert [line["benchmark"] for line in printed] == ["environment", "race"]
    assert {"device", "processor", "cores", "jax", "python", "gls_jax"} <= set(printed[0])

    assert entry.main(["bench", "all", "--repeats", "3", "--against", str(first)]) == 0
    shown = "".join(capsys.readouterr().err.split())  # the console wraps long lines
    assert f"nothingchangedsince{first}" in shown

    suite["ratio"] = 1.0
    other_line = {"benchmark": "of another suite", "ratio": 1.0}
    results_file.write(first, [*results_file.read(first), other_line])
    options = ["--repeats", "3", "--out", str(second), "--against", str(first)]
    assert entry.main(["bench", "race", *options]) == 0
    table = capsys.readouterr().err
    assert "0.25" in table and "ratio" in table
    assert "seconds" not in table and "another" not in table
    assert results_file.read(second)[1]["ratio"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "suite: expected one of race, or all, got 'nothing'"),
        (["race", "--repeats", "0"], "repeats: expected at least 1, got 0"),
        (
            ["race", "--against", "no.json"],
            "no.json: no such file; expected the results of an earlier",
        ),
        (
            ["race", "--against", __file__],
            "expected the results of an earlier python -m experiments bench --out",
        ),
        (["race", "--moved", "0"], "moved: expected a share above 0, got 0.0"),
        (["race", "--out", "/"], "/: expected a file that can be written, got a folder"),
    ],
)
def test_bad_input(suite, capsys, arguments, message):
    assert entry.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_interrupted_benchmark_offers_no_resume(suite, monkeypatch, capsys):
    def interrupted(repeats):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "SUITES", {"race": (interrupted,)})
    assert entry.main(["bench", "race"]) == 130
    assert capsys.readouterr().err == "experiments: interrupted\n"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 2, "lines": []}', '{"format": 1, "lines": [1]}', "\x00"]
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected the results of an earlier"):
        results_file.read(path)
