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

LAWS = pairs.random(jax.random.key(0), 40, 6)
ASK = acceptance_study.Study(("gls", "gumbel_topk", "naive"), (1, 3), 200, seed=1)


def stop_after(blocks):
    """A progress callback that is an interrupt in the middle of the run."""

    def report(name, done, total):
        if done == blocks:
            raise KeyboardInterrupt

    return report


def test_rows_are_means_of_exact_values_and_trials(tmp_path):
    rows = acceptance_study.run(ASK, LAWS, tmp_path / "made" / "here")
    assert [(row.scheme, row.num_drafts) for row in rows] == [
        (s, k) for s in ASK.schemes for k in ASK.num_drafts
    ]
    for row in rows:
        scheme = schemes.get(row.scheme)
        exact = jax.vmap(lambda p, q, s=scheme, k=row.num_drafts: s.acceptance(p, q, k))(*LAWS)
        assert row.exact == pytest.approx(float(exact.mean()), abs=1e-6)
        got = trials.sweep(
            jax.random.key(1),
            *LAWS,
            scheme=row.scheme,
            num_drafts=(row.num_drafts,),
            num_trials=200,
        )
        assert row.simulated == pytest.approx(float(got.mean.mean()), abs=1e-6)
        assert abs(row.simulated - row.exact) < 6 * row.standard_error  # 2e-9
        assert (row.bound is None) == (row.scheme == "naive")
        assert row.bound is None or row.bound <= row.exact + 1e-6
    with (tmp_path / "made" / "here" / "acceptance.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(line["exact"]) for line in read] == [row.exact for row in rows]


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, blocks):
    acceptance_study.run(ASK, LAWS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        acceptance_study.run(ASK, LAWS, tmp_path / "cut", progress=stop_after(blocks))
    assert not (tmp_path / "cut" / "acceptance.csv").exists()
    done = []
    acceptance_study.run(
        ASK, LAWS, tmp_path / "cut", resume=True, progress=lambda name, at, total: done.append(at)
    )
    for name in ("acceptance.csv",):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
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


def test_resume_does_not_repeat_finished_blocks(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        acceptance_study.run(ASK, LAWS, tmp_path, progress=stop_after(4))
    counted = []
    block = acceptance_study._block
    monkeypatch.setattr(study, "_block", lambda *args: counted.append(args[1]) or block(*args))
    acceptance_study.run(ASK, LAWS, tmp_path, resume=True)
    assert counted == ["naive", "naive"]
    acceptance_study.run(ASK, LAWS, tmp_path, resume=True)  # a finished run has nothing left to do
    assert counted == ["naive", "naive"]


def test_an_unfinished_run_is_not_overwritten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        acceptance_study.run(ASK, LAWS, tmp_path, progress=stop_after(2))
    before = (tmp_path / "cells.partial.0.npz").read_bytes()
    with pytest.raises(ValueError, match="an unfinished run is here; --resume goes on with it"):
        acceptance_study.run(ASK, LAWS, tmp_path)
    other = acceptance_study.Study(ASK.schemes, ASK.num_drafts, 201, seed=1)
    with pytest.raises(ValueError, match="the unfinished run here was asked something else"):
        acceptance_study.run(other, LAWS, tmp_path, resume=True)
    assert (tmp_path / "cells.partial.0.npz").read_bytes() == before
    (tmp_path / "cells.partial.0.npz").write_bytes(before[:100])
    with pytest.raises(ValueError, match="got a file that cannot be read"):
        acceptance_study.run(ASK, LAWS, tmp_path, resume=True)
    (tmp_path / "cells.partial.0.npz").write_bytes(before)
    arrays = files.read_arrays(tmp_path / "cells.partial.0.npz", "cells")
    for broken in ({"done": arrays["done"][:1]}, {"exact": arrays["exact"][0]}):
        files.write_arrays(tmp_path / "cells.partial.0.npz", arrays | broken)
        with pytest.raises(
            ValueError, match="expected the cells of an earlier run, got other arrays"
        ):
            acceptance_study.run(ASK, LAWS, tmp_path, resume=True)


def test_a_finished_run_makes_way_for_another(tmp_path):
    acceptance_study.run(ASK, LAWS, tmp_path)
    other = acceptance_study.Study(("naive",), (2,), 50, seed=3)
    for resume in (False, True):
        assert [
            row.num_drafts for row in acceptance_study.run(other, LAWS, tmp_path, resume=resume)
        ] == [2]
        shutil.copy(tmp_path / "acceptance.csv", tmp_path / f"{resume}.csv")
    assert (tmp_path / "True.csv").read_bytes() == (tmp_path / "False.csv").read_bytes()


def test_write_whole_leaves_nothing_behind(tmp_path):
    def fail(file):
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write_whole(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_figure(tmp_path):
    figures.acceptance(tmp_path / "figure.png", acceptance_study.run(ASK, LAWS, tmp_path), "title")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
