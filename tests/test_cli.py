import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from gls_jax import cli
from gls_jax.distributions import pairs
from gls_jax.studies import acceptance_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = [
    "--num-pairs",
    "3",
    "--num-categories",
    "4",
    "--num-trials",
    "50",
    "--num-drafts",
    "1",
    "2",
]


def acceptance(*arguments):
    return cli.main(["acceptance", *map(str, arguments)])


def test_random_pairs(tmp_path, capsys):
    assert acceptance("--out", tmp_path, *SMALL, "--schemes", "gls", "poisson") == 0
    printed = capsys.readouterr()
    assert "poisson" in printed.out and "optimum" in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "acceptance.csv",
        "acceptance.png",
        "cells.npz",
    ]


def test_json_is_the_only_output(tmp_path, capsys):
    assert acceptance("--out", tmp_path, *SMALL, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    names = {"gls", "poisson", "gumbel_topk", "topk", "naive"}
    assert {row["scheme"] for row in answer["rows"]} == names


def test_a_file_of_pairs(tmp_path, capsys):
    random_pairs = pairs.random(jax.random.key(0), 3, 5)
    np.savez(tmp_path / "mine.npz", log_p=random_pairs.log_p, log_q=random_pairs.log_q)
    assert acceptance("--pairs", tmp_path / "mine.npz", "--out", tmp_path, *SMALL) == 0
    assert "3 pairs of mine.npz" in capsys.readouterr().out


def test_a_model_pair(tmp_path, capsys):
    """SmolLM2 against itself without most of its layers, a few positions."""
    few = [
        "--num-positions",
        "6",
        "--num-trials",
        "100",
        "--num-drafts",
        "1",
        "4",
        "--drop-layers",
        "2-27",
        "--json",
    ]
    few += ["--schemes", "gls"]  # a vocabulary of 49,152 compiles slowly
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris, and the capital of Italy is Rome.")
    assert acceptance("--pairs", "model", "--text", text, "--out", tmp_path / "out", *few) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    gls = {row["num_drafts"]: row for row in rows if row["scheme"] == "gls"}
    assert 0 < gls[1]["exact"] < gls[4]["exact"] < 1
    assert gls[4]["bound"] <= gls[4]["exact"] <= gls[4]["optimum_iid"] and gls[4]["num_pairs"] == 6


def test_resume_after_an_interrupt(tmp_path, capsys, monkeypatch):
    ask = [*SMALL, "--schemes", "gls", "naive"]
    assert acceptance("--out", tmp_path / "whole", *ask) == 0
    block, calls = acceptance_study._compute_blocks, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return block(*arguments)

    monkeypatch.setattr(acceptance_study, "_compute_blocks", interrupted)
    assert acceptance("--out", tmp_path / "cut", *ask) == 130
    assert "--resume continues from here" in capsys.readouterr().err
    assert acceptance("--out", tmp_path / "cut", *ask, "--resume") == 0
    for name in ("acceptance.csv", "acceptance.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schemes", "gls", "specdec"], "scheme: expected one of gls, .*, got 'specdec'"),
        (["--schemes", "single", "--num-drafts", "2"], "scheme 'single' takes at most 1, got 2"),
        (["--num-drafts", "0"], "num_drafts: expected an int of at least 1, got 0"),
        (["--num-trials", "0"], "num_trials: expected an int of at least 1, got 0"),
        (["--num-pairs", "0"], "num_pairs: expected an int of at least 1, got 0"),
        (["--family", "cauchy"], "family: expected one of dirichlet, gaussian"),
        (["--scale", "-1"], "scale: expected a number within"),
        (["--schemes", "gls", "gls"], "schemes: expected each at most once, got gls, gls"),
        (["--num-trials", "3000000000"], "num_trials: expected at most"),
        (["--num-drafts"], "num_drafts: expected at least one K, got none"),
        (["--seed", "99999999999999999999"], "seed: expected one int within"),
        (["--num-items", "100000000000"], "num_pairs x num_categories: expected at most"),
        (["--pairs", "model", "--drop-layers", "17-12"], "drop_layers: expected layers such as"),
        (
            ["--pairs", "model", "--drop-layers", "0-99999999999"],
            "drop_layers: expected layers within 0-29",
        ),
        (["--pairs", "pairs.csv"], "pairs: expected random, model or a file ending in .npz"),
        (["--pairs", "missing.npz"], "missing.npz: no such file"),
        (["--pairs", "model", "--target", "missing.gguf"], "missing.gguf: no such file"),
        (
            ["--pairs", "model", "--drop-layers", "4-99"],
            "drop_layers: expected layers within 0-29, got 99",
        ),
        (["--pairs", "model", "--drop-layers", "0-29"], "expected some of the 30 layers to stay"),
        (["--pairs", "model", "--drop-layers", "a-b"], "drop_layers: expected layers such as"),
        (["--pairs", "model", "--text", "missing.txt"], "missing.txt"),
        (
            ["--pairs", "model", "--temperature", "-1"],
            "temperature: expected 0 or a finite number of at least 1e-6, got -1",
        ),
        (
            ["--pairs", "model", "--draft-temperature", "nan"],
            "temperature: expected 0 or a finite number of at least 1e-6",
        ),
        (["--pairs", "model", "--top-k", "-1"], r"top_k: expected 0 \(all\) or more, got -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert acceptance("--out", "made/by/this", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1:]
    assert error and error[0].startswith("gls-jax: error: ")
    assert re.search(message, error[0])
    assert not list(tmp_path.iterdir())  # not even a folder


def test_bad_files_and_folders(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "nan.npz", log_p=np.array([[np.nan]]), log_q=np.zeros((1, 1)))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for arguments, message in (
        (["--out", tmp_path / "file", *SMALL], "file is not a folder"),
        (["--out", tmp_path / "file" / "below", *SMALL], "file is not a folder"),
        (["--out", "/proc/1/x", *SMALL], "/proc/1"),
        (
            ["--out", tmp_path / "o", "--pairs", tmp_path / "nan.npz"],
            "log_p[0]: expected log-probabilities, got NaN",
        ),
        (
            ["--out", tmp_path / "o", "--pairs", "model", "--target", tmp_path / "cut.gguf"],
            "cut.gguf",
        ),
        (
            ["--out", tmp_path / "o", "--pairs", "model", "--text", tmp_path / "empty.txt"],
            "got an empty file",
        ),
        (["--out", tmp_path / "o", "--pairs", "model", "--text", tmp_path / "bytes.txt"], "UTF-8"),
    ):
        assert acceptance(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("gls-jax: error: ") and message in lines[-1]


def test_program_prints_no_traceback(tmp_path):
    """The installed command itself: exit code 2, one line on stderr, nothing on stdout."""
    command = [
        sys.executable,
        "-m",
        "gls_jax",
        "acceptance",
        "--schemes",
        "x",
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "o").exists()
