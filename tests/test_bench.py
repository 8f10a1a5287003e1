"""The record of a benchmark run: what is written, read back, compared and refused. Nothing here is timed."""

import json

import pytest

from gls_jax import bench, cli
from gls_jax.bench import record

FAST = {"benchmark": "race", "ratio": 4.0, "seconds": 0.5, "note": "quiet", "skipped": False}


@pytest.fixture
def suite(monkeypatch):
    """One benchmark that says what it is told."""
    line = dict(FAST)
    monkeypatch.setattr(bench, "SUITES", {"race": (lambda repeats: line | {"repeats": repeats},)})
    return line


def test_moves_are_what_changed():
    now = [
        FAST | {"ratio": 2.0, "seconds": 0.54, "note": "loud", "new": 1.0},
        {"benchmark": "other", "ratio": 9.0},
    ]
    other = [("race", "new", None, 1.0), ("other", "ratio", None, 9.0)]
    assert list(record.moves([FAST], now)) == [("race", "ratio", 4.0, 2.0), *other]
    assert [move.figure for move in record.moves([FAST], now, 0.01)] == [
        "ratio",
        "seconds",
        "new",
        "ratio",
    ]
    assert list(record.moves([FAST], [FAST | {"ratio": float("nan")}])) == [
        ("race", "ratio", 4.0, None)
    ]
    (move,) = record.moves(
        [FAST], [FAST | {"ratio": 4.42}]
    )  # a share of the earlier figure, not of the new one
    assert move.now == 4.42 and not list(record.moves([FAST], [FAST | {"ratio": 3.62}], 0.1))
    assert [move.now for move in record.moves([FAST], [])] == [None, None]
    assert not list(record.moves([{"benchmark": "environment", "load": 1.0}], []))
    assert list(record.moves([FAST | {"ratio": 0.0}], [FAST], 0.5)) == [("race", "ratio", 0.0, 4.0)]


def test_a_run_leaves_one_file_and_says_what_moved(suite, tmp_path, capsys):
    first, second = tmp_path / "a" / "first.json", tmp_path / "second.json"
    assert cli.main(["bench", "race", "--repeats", "3", "--out", str(first)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == record.read(first)
    assert [line["benchmark"] for line in printed] == ["environment", "race"]
    assert {"device", "processor", "cores", "jax", "python", "gls_jax"} <= set(printed[0])
    assert cli.main(["bench", "all", "--repeats", "3", "--against", str(first)]) == 0
    assert f"nothingmovedsince{first}" in "".join(
        capsys.readouterr().err.split()
    )  # the console wraps long lines
    suite["ratio"] = 1.0
    record.write(first, [*record.read(first), {"benchmark": "of another suite", "ratio": 1.0}])
    assert (
        cli.main(["bench", "race", "--repeats", "3", "--out", str(second), "--against", str(first)])
        == 0
    )
    table = capsys.readouterr().err
    assert (
        "0.25" in table and "ratio" in table and "seconds" not in table and "another" not in table
    )
    assert record.read(second)[1]["ratio"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "nothing"], "suite: expected one of race, or all, got 'nothing'"),
        (["bench", "race", "--repeats", "0"], "repeats: expected at least 1, got 0"),
        (
            ["bench", "race", "--against", "no.json"],
            "no.json: no such file; expected the results of an earlier",
        ),
        (
            ["bench", "race", "--against", __file__],
            "expected the results of an earlier gls-jax bench --out",
        ),
        (["bench", "race", "--moved", "0"], "moved: expected a share above 0, got 0.0"),
        (["bench", "race", "--out", "/"], "/: expected a file that can be written, got a folder"),
    ],
)
def test_bad_input(suite, capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 2, "lines": []}', '{"format": 1, "lines": [1]}', "\x00"]
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected the results of an earlier"):
        record.read(path)
