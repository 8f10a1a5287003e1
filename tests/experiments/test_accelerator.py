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
    assert "0 functions with other integers" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["environment"]["platform"] == "cpu" and found["environment"]["is_small"]
    assert not [line for line in found["correctness"] + found["speed"] if "skipped" in line]
    assert sum(line["integers"] for line in found["correctness"]) > 500
    assert all(line["different_integers"] == 0 for line in found["correctness"])
    assert all(line["largest_error"] < 1e-5 for line in found["correctness"])
    programs = [line for line in found["speed"] if "steps" in line]
    assert len(programs) == 6
    assert all(line["milliseconds"] > 0 < line["predicted_h100_milliseconds"] for line in programs)


def test_differences_are_counted():
    expected = {"f/0": np.array([1, 2, 3]), "f/1": np.array([0.5, np.inf])}
    arrays = [np.array([1, 5, 4]), np.array([0.75, np.inf])]
    assert correctness._differences("f", arrays, expected) == {
        "integers": 3,
        "different_integers": 2,
        "largest_error": 0.25,
    }


def test_a_file_that_cannot_be_written(tmp_path, capsys):
    assert entry.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("accelerator: error: ")
