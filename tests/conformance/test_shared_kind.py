"""Every registered scheme passes as it proposes itself; the defects of tests/schemes are found."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import conformance, races, schemes
from gls_jax.schemes.function_types import TokenVerification
from tests.schemes import test_paths, test_planted_defects
from tests.schemes.scheme_trials import SCHEMES, WITHOUT_REPLACEMENT, name_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

INDEPENDENT = ("gls", "gls_strong", "poisson", "naive", "specinfer", "spectr")


def check(scheme, problems, num_trials=4_000, **options):
    return conformance.check(
        scheme, kind="shared", seed=1, problems=problems, num_trials=num_trials, **options
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_every_scheme_passes(scheme):
    drafts = "any"
    if scheme.name in WITHOUT_REPLACEMENT:
        drafts = "distinct"
    elif scheme.name in INDEPENDENT:
        drafts = "independent"
    problems = ("peaked", "zeros in the draft", "uniforms of 0")
    report = check(scheme, problems, drafts=drafts)
    assert report.passed, str(report)


def test_texts_of_several_rounds_pass():
    report = check(schemes.get("block"), ("similar rows",), num_trials=20_000)
    assert report.passed and len(report.checks) > 1, str(report)


@pytest.mark.parametrize(("name", "defect"), test_planted_defects.DEFECTS, ids=name_of)
def test_a_defect_in_verification_is_found(name, defect):
    sound = schemes.get(name)
    defective = dataclasses.replace(sound, verification=TokenVerification(defect))
    problem = "peaked" if name == "optimal" else "second test"
    report = check(defective, (problem,), num_trials=40_000)
    assert {f.check for f in report.findings} & {"emitted distribution", "acceptance as claimed"}


class OtherKeys(schemes.Scheme):
    """Noise of one round or branch comes back in another one."""

    wrong_key = None

    def draft_key(self, key, start, position, parent):
        return type(self).wrong_key(schemes.get(self.name), key, start, position, parent)


@pytest.mark.parametrize(
    ("name", "wrong_key", "max_drafts"),
    [
        ("block", test_paths.key_of_the_position, 1),
        ("traversal", test_paths.key_of_the_round, 3),
    ],
)
def test_a_wrong_draft_key_is_found(name, wrong_key, max_drafts):
    sound = schemes.get(name)
    fields = {field.name: getattr(sound, field.name) for field in dataclasses.fields(sound)}
    defective = type("Wrong", (OtherKeys,), {"wrong_key": staticmethod(wrong_key)})(**fields)
    report = check(defective, ("similar rows",), num_trials=60_000, max_drafts=max_drafts)
    assert [finding.check for finding in report.findings] == ["texts of several rounds"]


def test_false_claims_are_found():
    gls = schemes.get("gls")
    for options, expected in (
        ({"invariance": "strong"}, "strong invariance"),
        ({"drafts": "distinct"}, "drafts are distinct"),
        ({"acceptance": "naive"}, "acceptance as claimed"),
    ):
        report = check(gls, ("peaked",), **options)
        assert [finding.check for finding in report.findings] == [expected]


class OneStream:
    """Not of this library: a pair of functions on one race, whose drafts are all the same."""

    def propose(self, key, log_p, num_drafts):
        noise = races.exponentials(key, 1, log_p.shape[0])[0]
        return jnp.broadcast_to(races.winner(races.arrivals(noise, log_p)), num_drafts)

    def verify(self, key, drafts, log_p, log_q):
        noise = races.exponentials(key, 1, log_q.shape[0])[0]
        return races.winner(races.arrivals(noise, log_q))


def test_an_object_from_outside():
    report = check(OneStream(), ("peaked",), invariance="strong")
    assert report.passed, str(report)
    assert "strong invariance" in {result.check for result in report.checks}
    report = check(OneStream(), ("peaked",), drafts="independent")
    assert "drafts are independent" in [finding.check for finding in report.findings]


class OneUniform:
    """In NumPy: both sides invert the same uniform."""

    def propose(self, seed, log_p, num_drafts):
        uniform = np.random.default_rng(seed).random()
        index = np.searchsorted(np.cumsum(np.exp(log_p), dtype=float), uniform)
        return np.full(num_drafts, min(index, len(log_p) - 1))

    def verify(self, seed, drafts, log_p, log_q):
        return self.propose(seed, log_q, 1)[0]


def test_an_object_that_is_not_jax():
    report = check(OneUniform(), ("peaked",), noise="seed", num_trials=2_000)
    assert report.passed and "Python loop" in report.calls, str(report)
