"""The command for the first run on an accelerator, in its small form on the CPU."""

import json

import numpy as np
import pytest

from experiments.accelerator import __main__ as entry
from experiments.accelerator import correctness
from tests.compilation import quick_environment


@pytest.mark.usefixtures("quick_compilation")
def test_the_small_form(tmp_path, capsys, monkeypatch):
    """The shape of an accelerator here, that of a CPU in another process: equal integers."""
    for name, value in quick_environment().items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "results" / "accelerator.json"
    assert entry.main(["--out", str(out)]) == 0
    assert "0 functions with other results" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["environment"]["device"] == "cpu" and found["environment"]["is_small"]
    assert not [line for line in found["correctness"] + found["speed"] if "skipped" in line]
    assert all(line["is_good"] for line in found["correctness"])
    assert sum(line["integers"] for line in found["correctness"]) > 500
    assert all(line["different_integers"] == 0 for line in found["correctness"])
    assert all(line["largest_error"] < 1e-5 for line in found["correctness"])
    programs = [line for line in found["speed"] if "steps" in line]
    assert len(programs) == 6
    assert all(line["milliseconds"] > 0 < line["predicted_h100_milliseconds"] for line in programs)


def test_differences_are_counted():
    expected = {"f/0": np.array([1, 2, 3]), "f/1": np.array([0.5, np.inf, np.nan])}
    arrays = [np.array([1, 5, 4]), np.array([0.75, np.inf, np.nan]), np.array([1])]
    assert correctness._differences("f", arrays, expected) == {
        "integers": 3,
        "different_integers": 2,
        "other_shapes": 1,
        "largest_error": 0.25,
        "is_good": False,
    }
    nan = correctness._differences("f", [expected["f/0"], np.array([np.nan] * 3)], expected)
    assert nan["largest_error"] == np.inf and not nan["is_good"]
    assert correctness._differences("f", [expected["f/0"], expected["f/1"]], expected)["is_good"]
    failed = correctness._differences("f", "ValueError: no", expected)
    assert failed == {"error": "ValueError: no", "is_good": False}


def test_nothing_compared_is_no_success(tmp_path, monkeypatch):
    def missing(is_small):
        raise ModuleNotFoundError("no", name="flax")

    monkeypatch.setattr(entry, "_correctness", missing)
    monkeypatch.setattr(entry, "_speed", missing)
    assert entry.main(["--out", str(tmp_path / "a.json")]) == 1


def test_a_file_that_cannot_be_written(tmp_path, capsys):
    assert entry.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("accelerator: error: ")
