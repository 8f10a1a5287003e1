"""The experiment through its entry point, tiny."""

import csv
import json

import pytest

from experiments import __main__ as entry
from experiments import gaussian_tables

SIZES = {"--num-bins": "2", "--num-candidates": "64", "--num-trials": "300"}
SIZES |= {"--num-choosing": "100", "--num-posterior": "40"}
SMALL = ["--num-decoders", "1", "2", *(part for size in SIZES.items() for part in size)]


def run(folder):
    return entry.main(["gaussian_tables", "--out", str(folder), *SMALL])


def read_rows(folder):
    with (folder / "gaussian_tables.csv").open() as file:
        return list(csv.DictReader(file))


def test_tables(tmp_path, capsys, monkeypatch):
    """All rows, one decoder as the baseline, and a stopped run that ends with the same numbers."""
    simulate = gaussian_tables.compression.simulate
    whole_calls = []

    def counted(*args, **options):
        whole_calls.append(args)
        return simulate(*args, **options)

    monkeypatch.setattr(gaussian_tables.compression, "simulate", counted)
    assert run(tmp_path / "whole") == 0
    assert "standard errors" in capsys.readouterr().out
    rows = read_rows(tmp_path / "whole")
    assert tuple(rows[0]) == gaussian_tables.Row._fields
    # A fixed variance and two metrics for each code, and the posterior mean for each `gls` code.
    assert len(rows) == 2 * 2 * 3 + 2
    # With one decoder the two schemes are the same.
    one_decoder = {
        scheme: [
            {**row, "scheme": ""}
            for row in rows
            if row["scheme"] == scheme and row["num_decoders"] == "1"
        ]
        for scheme in gaussian_tables.SCHEMES
    }
    plug_in = [row for row in one_decoder["gls"] if row["estimator"] == gaussian_tables.PLUG_IN]
    assert plug_in == one_decoder["baseline"]
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert files == {"gaussian_tables.csv", "controls.csv", "gaussian_tables.png", "match.png"}

    calls = []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return simulate(*args, **options)

    monkeypatch.setattr(gaussian_tables.compression, "simulate", stopped)
    assert run(tmp_path / "stopped") == 130
    num_before = len(calls)
    assert run(tmp_path / "stopped") == 0
    assert json.dumps(read_rows(tmp_path / "stopped")) == json.dumps(rows)
    # Of all that a whole run measures, the first 19 are not done again.
    assert num_before == 20
    assert len(calls) - num_before == len(whole_calls) - 19


def test_published_points():
    """36 points, each with one of the paper's target variances, falling in L."""
    points = gaussian_tables.published()
    assert len(points) == 36
    variances = {variance for variance, _ in points.values()}
    assert variances <= set(gaussian_tables.PAPER_VARIANCES)
    for (scheme, num_decoders, num_bins), (_, distortion) in points.items():
        next_code = (scheme, num_decoders, 2 * num_bins)
        assert points.get(next_code, (0, -100))[1] < distortion


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
