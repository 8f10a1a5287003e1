"""What is no answer is a finding in one line, and a wrong call is a ValueError."""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import conformance, schemes
from gls_jax.conformance import verifier_location

pytestmark = pytest.mark.usefixtures("quick_compilation")


def check(verifier, **options):
    settings = {"kind": "token", "seed": 0, "num_trials": 200, "problems": ("plain",)}
    settings |= {"max_drafts": 1, "separate_keys": True}
    return conformance.check(verifier, **(settings | options))


def raises(key, drafts, p, q):
    raise RuntimeError("no such\ntoken")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


def unprintable(key, drafts, p, q):
    raise Unprintable


def counts_calls(seed, drafts, p, q):
    counts_calls.calls += 1
    return counts_calls.calls % len(q)


counts_calls.calls = 0


@pytest.mark.parametrize(
    ("verifier", "noise", "words"),
    [
        (raises, "key", "raised RuntimeError: no such token"),
        (lambda key, d, p, q: q, "key", "expected one token, an integer of shape [], got float32"),
        (lambda key, d, p, q: q[0], "key", "expected one token, an integer"),
        (lambda key, d, p, q: d, "key", "got int32 of shape [1]"),
        (lambda key, d, p, q: d[0] - 9, "key", "expected a token within 0..5, got -"),
        (lambda seed, d, p, q: len(q), "seed", "expected a token within 0..5, got 6"),
        (lambda seed, d, p, q: None, "seed", "expected an array or a number, got NoneType"),
        (lambda seed, d, p, q: sys.exit(0), "seed", "raised SystemExit: 0"),
        (lambda key, d, p, q: sys.exit(0), "key", "raised SystemExit: 0"),
        (lambda key, d, p, q: (d[0], d[0]), "key", "expected one array, got a tuple of 2"),
        (unprintable, "key", "raised Unprintable: without a message that can be printed"),
    ],
)
def test_no_usable_answer(verifier, noise, words):
    report = check(verifier, noise=noise)
    finding = report.findings[0]
    assert (finding.check, finding.problem) == ("usable answers", "plain")
    assert words in finding.message and "\n" not in finding.message
    assert len(finding.example["target_probs"]) == 6 and len(finding.example["drafts"]) == 1


def test_a_shape_that_changes():
    report = check(lambda seed, d, p, q: [0] * (seed % 3), noise="seed")
    assert "expected answers of one shape" in report.findings[0].message


def test_an_answer_that_the_key_does_not_determine():
    checks = [finding.check for finding in check(counts_calls, noise="seed").findings]
    assert "same key, same answer" in checks and "other calls do not matter" in checks


def test_an_answer_that_depends_on_the_calls_before():
    """A generator that is made once, from the first seed."""
    generators = {}

    def verify(seed, drafts, p, q):
        generator = generators.setdefault("mine", np.random.default_rng(seed))
        return generator.choice(len(q), p=q / q.sum(dtype=float))

    found = {finding.check: finding.message for finding in check(verify, noise="seed").findings}
    assert "the same arguments once more gave" in found["same key, same answer"]


def test_what_takes_minutes():
    def sleeps(seed, drafts, p, q):
        time.sleep(0.3)
        return 0

    report = check(sleeps, noise="seed", time_limit=2)
    assert "expected 200 answers within" in report.findings[0].message
    assert report.seconds < 10

    report = check(lambda *_: time.sleep(8), noise="seed", time_limit=0.5)
    assert "expected an answer within" in report.findings[0].message


def test_what_writes_into_its_arguments_harms_nobody():
    def verify(seed, drafts, p, q):
        rng = np.random.default_rng([seed, 3])
        token = rng.choice(len(q), p=q / q.sum(dtype=float))
        q[:] = p[:] = drafts[:] = 0
        return token

    assert check(verify, noise="seed").passed


def emits_the_target(key, drafts, draft_probs, target_probs):
    return jax.random.categorical(key, jnp.log(target_probs))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "tokens"}, "kind: expected one of token, ragged, tree, shared, got 'tokens'"),
        ({"problems": ("nix",)}, "problems: expected one of plain, "),
        ({"num_trials": 0}, "num_trials: expected an int of at least 1"),
        ({"max_drafts": 0}, "max_drafts: expected an int of at least 1"),
        ({"noise": "dice"}, "noise: expected one of key, seed"),
        ({"seed": -1}, "seed: expected one int"),
        ({"time_limit": 0}, "time_limit: expected a number of seconds"),
        ({"acceptance": "nix"}, "scheme: expected one of"),
        ({"acceptance": 3}, "acceptance: expected a scheme or a function"),
        ({"acceptance": "block"}, "acceptance: scheme 'block' has no exact one"),
        (
            {"acceptance": "single", "max_drafts": 2},
            "expected max_drafts=1 (--max-drafts 1), got 2",
        ),
        ({"problems": ()}, "problems: expected some of plain, "),
        ({"num_trials": 10**12}, "num_trials: expected at most 10,000,000, got 1,000,000,000,000"),
        ({"time_limit": float("inf")}, "time_limit: expected a number of seconds, at most"),
        ({"max_vocabulary": 2}, "max_vocabulary: expected at least 6"),
        ({"without_replacement": True}, "without_replacement: expected kind 'tree'"),
        ({"kind": "shared"}, "verifier: expected an object with a method propose"),
    ],
)
def test_a_wrong_call_is_refused(options, line):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        check(emits_the_target, **options)
    assert line in str(error.value)


def test_a_verifier_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="verifier: expected a function, got int"):
        check(3)


@dataclasses.dataclass
class Shared:
    """A sound object of kind `shared`, with attributes that may be wrong."""

    acceptance: object
    max_drafts: object = None
    invariance: str = "conditional"

    def propose(self, *arguments):
        return schemes.get("gls").propose(*arguments)

    def verify(self, *arguments):
        return schemes.get("gls").verify(*arguments)


@pytest.mark.parametrize(
    ("attribute", "line"),
    [
        ({"max_drafts": "x"}, "verifier.max_drafts: expected an int of at least 1"),
        ({"invariance": "foo"}, "verifier.invariance: expected one of none, conditional, strong"),
    ],
)
def test_wrong_attributes_are_refused(attribute, line):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        check(Shared(schemes.get("gls").acceptance, **attribute), kind="shared")
    assert line in str(error.value)
    with pytest.raises(ValueError, match="expected an object, got the class Shared"):
        check(Shared, kind="shared")


@pytest.mark.parametrize(
    ("acceptance", "words"),
    [
        (lambda *_: 1 / 0, "its acceptance raised ZeroDivisionError"),
        (lambda *_: float("nan"), "expected an acceptance within 0..1, got nan"),
        (schemes.get("gls").acceptance, None),
    ],
)
def test_a_claim_that_is_no_number_is_a_finding(acceptance, words):
    report = check(Shared(acceptance), kind="shared")
    assert report.passed if words is None else words in report.findings[0].message, str(report)


def test_problems_beyond_its_vocabulary_are_skipped_and_said_so():
    report = check(emits_the_target, problems=("plain", "flat tail"), max_vocabulary=1000)
    assert report.passed and "1 problems not tried" in str(report)


def test_the_same_seed_gives_the_same_report():
    first, second = (check(emits_the_target, seed=5) for _ in range(2))
    assert first.checks == second.checks and first.checks != check(emits_the_target, seed=6).checks


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ("math", "expected MODULE:FUNCTION"),
        ("no_such_module:verify", "raised ModuleNotFoundError"),
        ("math:no_such", "expected 'no_such' in math to give a verifier, got no such name as"),
        ("nowhere.py:verify", "no file nowhere.py"),
    ],
)
def test_a_place_that_does_not_exist(location, line):
    with pytest.raises(ValueError, match="verifier: ") as error:
        verifier_location.load(location)
    assert line in str(error.value)


def test_a_file_and_a_function_that_makes_the_verifier(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class A:\n    verify = staticmethod(len)\n\ndef make():\n    return max\n")
    assert verifier_location.load(f"{file}:A.verify") is len
    assert verifier_location.load(f"{file}:make()") is max
    file.write_text("number = 5\n\ndef make(x): pass\n\ndef ends():\n    raise SystemExit(0)\n")
    for name in ("number", "make", "ends"):
        with pytest.raises(ValueError, match=f"{name}...? in .* to give a verifier, got"):
            verifier_location.load(f"{file}:{name}()")
    file.write_text("raise SystemExit(0)\n")
    with pytest.raises(ValueError, match="raised SystemExit"):
        verifier_location.load(f"{file}:verify")
    file.write_text("def broken(:\n")
    with pytest.raises(ValueError, match="SyntaxError"):
        verifier_location.load(f"{file}:broken")
