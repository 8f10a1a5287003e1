"""The experiment through its entry point, tiny."""

import csv
import json

import pytest

from experiments import __main__ as entry
from experiments import gaussian_tables

SMALL = [
    "--num-decoders",
    "1",
    "2",
    "--num-bins",
    "2",
    "--num-candidates",
    "64",
    "--num-trials",
    "300",
]
SMALL += ["--num-choosing", "100", "--num-posterior", "40"]


def rows(folder):
    with (folder / "gaussian_tables.csv").open() as file:
        return list(csv.DictReader(file))


def test_tables(tmp_path, capsys, monkeypatch):
    """Every line, one decoder as the baseline, and a run that was stopped goes on to the same numbers."""
    assert entry.main(["gaussian_tables", "--out", str(tmp_path / "whole"), *SMALL]) == 0
    assert "standard errors" in capsys.readouterr().out
    found = rows(tmp_path / "whole")
    assert tuple(found[0]) == gaussian_tables.Row._fields
    assert (
        len(found) == 2 * 2 * 3 + 2
    )  # fixed and two metrics a code, the posterior mean under lists
    lists, shared = (
        [
            {**row, "scheme": ""}
            for row in found
            if row["scheme"] == scheme and row["num_decoders"] == "1"
        ]
        for scheme in gaussian_tables.SCHEMES
    )
    assert [row for row in lists if row["estimator"] == "plug_in"] == shared
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert files == {"gaussian_tables.csv", "controls.csv", "gaussian_tables.png", "match.png"}

    simulate, calls = gaussian_tables.compression.simulate, []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return simulate(*args, **options)

    monkeypatch.setattr(gaussian_tables.compression, "simulate", stopped)
    assert entry.main(["gaussian_tables", "--out", str(tmp_path / "stopped"), *SMALL]) == 130
    before = len(calls)
    assert entry.main(["gaussian_tables", "--out", str(tmp_path / "stopped"), *SMALL]) == 0
    assert json.dumps(rows(tmp_path / "stopped")) == json.dumps(found)
    assert (
        len(calls) - before < 4 * 17
    )  # of all that a whole run measures, the first 19 are not done again


def test_published_points():
    """36 points, each with one of the paper's target variances, falling in L."""
    known = gaussian_tables.published()
    assert len(known) == 36 and {variance for variance, _ in known.values()} <= set(
        gaussian_tables.PAPERS
    )
    for (scheme, count, size), (_, distortion) in known.items():
        assert known.get((scheme, count, 2 * size), (0, -100))[1] < distortion


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-bins", "0"], "num_bins: expected an int of at least 1, got 0"),
        (
            ["--num-candidates", "2", "--num-bins", "4"],
            "num_bins: expected at most num_candidates (2), got 4",
        ),
        (["--num-trials", "0"], "num_trials: expected an int of at least 1, got 0"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    assert entry.main(["gaussian_tables", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
