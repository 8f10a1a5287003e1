"""A study's rows are what they claim, and a run that was stopped goes on to the same files."""

import csv
import shutil

import jax
import numpy as np
import pytest

from gls_jax import schemes, trials
from gls_jax.distributions import pairs
from gls_jax.runs import files
from gls_jax.studies import acceptance_study, figures

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAIRS = pairs.random(jax.random.key(0), 40, 6)
STUDY = acceptance_study.Study(("gls", "gumbel_topk", "naive"), (1, 3), 200, seed=1)


def stop_after(num_blocks):
    """A progress callback that interrupts the run."""

    def report(name, done, total):
        if done == num_blocks:
            raise KeyboardInterrupt

    return report


def test_rows_are_means_of_exact_values_and_trials(tmp_path):
    rows = acceptance_study.run(STUDY, PAIRS, tmp_path / "made" / "here")
    assert [(row.scheme, row.num_drafts) for row in rows] == [
        (s, k) for s in STUDY.schemes for k in STUDY.num_drafts
    ]
    for row in rows:
        scheme = schemes.get(row.scheme)
        exact = jax.vmap(lambda p, q, s=scheme, k=row.num_drafts: s.acceptance(p, q, k))(*PAIRS)
        assert row.exact == pytest.approx(float(exact.mean()), abs=1e-6)
        estimate = trials.sweep(
            jax.random.key(1),
            *PAIRS,
            scheme=row.scheme,
            num_drafts=(row.num_drafts,),
            num_trials=200,
        )
        assert row.simulated == pytest.approx(float(estimate.mean.mean()), abs=1e-6)
        assert abs(row.simulated - row.exact) < 6 * row.standard_error  # 2e-9
        assert (row.bound is None) == (row.scheme == "naive")
        assert row.bound is None or row.bound <= row.exact + 1e-6
    with (tmp_path / "made" / "here" / "acceptance.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["exact"]) for line in lines] == [row.exact for row in rows]


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_interrupted_run_resumes_to_the_same_numbers(tmp_path, num_blocks):
    acceptance_study.run(STUDY, PAIRS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        acceptance_study.run(STUDY, PAIRS, tmp_path / "cut", progress=stop_after(num_blocks))
    assert not (tmp_path / "cut" / "acceptance.csv").exists()
    acceptance_study.run(STUDY, PAIRS, tmp_path / "cut", resume=True)
    whole_csv = (tmp_path / "whole" / "acceptance.csv").read_bytes()
    assert (tmp_path / "cut" / "acceptance.csv").read_bytes() == whole_csv
    with (
        np.load(tmp_path / "cut" / "cells.npz") as cut,
        np.load(tmp_path / "whole" / "cells.npz") as whole,
    ):
        assert sorted(cut.files) == sorted(whole.files)
        for field in whole.files:
            np.testing.assert_array_equal(cut[field], whole[field])
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "acceptance.csv",
        "cells.npz",
    ]


def test_resume_does_not_repeat_finished_blocks(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        acceptance_study.run(STUDY, PAIRS, tmp_path, progress=stop_after(4))
    computed = []

    def count(name, done, total):
        computed.append(name)

    acceptance_study.run(STUDY, PAIRS, tmp_path, resume=True, progress=count)
    assert computed == ["naive", "naive"]
    # A finished run has nothing left to do.
    acceptance_study.run(STUDY, PAIRS, tmp_path, resume=True, progress=count)
    assert computed == ["naive", "naive"]


def test_unfinished_run_is_not_overwritten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        acceptance_study.run(STUDY, PAIRS, tmp_path, progress=stop_after(2))
    before = (tmp_path / "cells.partial.0.npz").read_bytes()
    with pytest.raises(
        ValueError, match="an unfinished run is here; resume=True or --resume continues it"
    ):
        acceptance_study.run(STUDY, PAIRS, tmp_path)
    other = acceptance_study.Study(STUDY.schemes, STUDY.num_drafts, 201, seed=1)
    with pytest.raises(ValueError, match="got an unfinished run of another one"):
        acceptance_study.run(other, PAIRS, tmp_path, resume=True)
    assert (tmp_path / "cells.partial.0.npz").read_bytes() == before
    (tmp_path / "cells.partial.0.npz").write_bytes(before[:100])
    with pytest.raises(ValueError, match="got a file that cannot be read"):
        acceptance_study.run(STUDY, PAIRS, tmp_path, resume=True)
    (tmp_path / "cells.partial.0.npz").write_bytes(before)
    arrays = files.read_arrays(tmp_path / "cells.partial.0.npz", "cells")
    for broken in ({"done": arrays["done"][:1]}, {"exact": arrays["exact"][0]}):
        files.write_arrays(tmp_path / "cells.partial.0.npz", arrays | broken)
        with pytest.raises(
            ValueError, match="expected the results of an earlier run, got other arrays"
        ):
            acceptance_study.run(STUDY, PAIRS, tmp_path, resume=True)


def test_finished_run_is_replaced_by_another_study(tmp_path):
    acceptance_study.run(STUDY, PAIRS, tmp_path)
    other = acceptance_study.Study(("naive",), (2,), 50, seed=3)
    for resume in (False, True):
        rows = acceptance_study.run(other, PAIRS, tmp_path, resume=resume)
        assert [row.num_drafts for row in rows] == [2]
        shutil.copy(tmp_path / "acceptance.csv", tmp_path / f"{resume}.csv")
    assert (tmp_path / "True.csv").read_bytes() == (tmp_path / "False.csv").read_bytes()


def test_figure_is_a_png_file(tmp_path):
    figures.acceptance(
        tmp_path / "figure.png", acceptance_study.run(STUDY, PAIRS, tmp_path), "title"
    )
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
