"""`gls-jax dump` and the sweep of a dump: what only the files and the models can tell."""

import pytest

from gls_jax import cli
from tests.cli.conftest import WORDS, write


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("a", [], "text.txt: expected a text of at least 2 tokens, got 1"),
        ("abc", ["--context", "1"], "context_length: expected at least 2 tokens, got 1"),
        (
            "abc",
            ["--draft", "foreign"],
            "foreign: expected the tokenizer of the target, got another one",
        ),
    ],
)
def test_bad_input_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys, text, options, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text)
    write(tmp_path / "foreign", words=WORDS[::-1], template=None)
    assert (
        cli.main(
            ["dump", "--target", str(checkpoint), "--out", "out", "--text", "text.txt", *options]
        )
        == 2
    )
    assert line in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_several_processes_are_refused_for_a_dump(tmp_path, capsys):
    arguments = ["--pairs", str(tmp_path), "--out", str(tmp_path / "out"), "--num-processes", "2"]
    assert cli.main(["acceptance", *arguments]) == 2
    assert "distributed: expected one process for a dump" in capsys.readouterr().err
