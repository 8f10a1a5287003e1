"""`gls-jax check`: exit codes, the table, JSON."""

import json

import pytest

from gls_jax import cli

pytestmark = pytest.mark.usefixtures("quick_compilation")

VERIFIERS = """
import jax, jax.numpy as jnp

def sound(key, drafts, draft_probs, target_probs):
    return jax.random.categorical(jax.random.fold_in(key, 9), jnp.log(target_probs))

def biased(key, drafts, draft_probs, target_probs):
    print("noise of the verifier")
    return drafts[0]

class Pair:
    def propose(self, key, log_p, num_drafts):
        return jax.random.categorical(key, log_p, shape=(num_drafts,))

    def verify(self, key, drafts, log_p, log_q):
        return jax.random.categorical(jax.random.fold_in(key, 9), log_q)
"""

SMALL = ["--num-trials", "2000", "--problems", "plain", "--max-drafts", "1"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(VERIFIERS)
    return path


def check(*arguments):
    return cli.main(["check", *map(str, arguments)])


def test_nothing_found(file, capsys):
    assert check(f"{file}:sound", "--kind", "token", *SMALL) == 0
    printed = capsys.readouterr().out
    assert "sound, kind token, seed 0: nothing found" in printed
    assert "emitted distribution" in printed and "probability at most 1e-06" in printed


def test_something_found(file, capsys):
    assert check(f"{file}:biased", "--kind", "token", *SMALL) == 1
    printed = capsys.readouterr().out
    assert "1. emitted distribution, problem 'plain'" in printed
    assert "every draft is accepted" in printed and "target_probs = [0.9, 0.1]" in printed


def test_json_is_the_only_output(file, capsys):
    assert check(f"{file}:biased", "--kind", "token", *SMALL, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["passed"] and answer["findings"][0]["example"]["N"] == 2
    assert {row["status"] for row in answer["checks"]} >= {"passed", "failed"}


def test_an_object(file):
    assert check(f"{file}:Pair()", "--kind", "shared", *SMALL) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["math", "--kind", "token"], "verifier: expected MODULE:FUNCTION"),
        (["no_such_module:f", "--kind", "token"], "raised ModuleNotFoundError"),
        (["math:sqrt", "--kind", "nix"], "kind: expected one of token, ragged, tree, shared"),
        (["math:pi", "--kind", "token"], "verifier: expected a function, got float"),
    ],
)
def test_bad_input(arguments, line, capsys):
    assert check(*arguments) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
