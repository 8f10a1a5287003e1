"""Acceptance by position is the exact one, is bracketed where it says so, and is resumed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes, studies
from gls_jax.runs import files
from tests.distributions.small_dump import write

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"))


def stop(name, done, total):
    """A progress callback that interrupts the run."""
    raise KeyboardInterrupt


def test_values_are_the_exact_acceptance(dump, tmp_path):
    means = studies.position_acceptance(dump, tmp_path, names=["gls", "single"], num_drafts=[1, 3])
    values = np.load(tmp_path / "acceptance.npy")
    for reading, tails in enumerate(("disjoint", "merged")):
        exact = jax.vmap(lambda p, q: schemes.get("gls").acceptance_curve(p, q, (1, 3)))(
            *dump.pairs(tails=tails)
        )
        np.testing.assert_allclose(values[0, :, :, reading], exact, atol=1e-6)
    disjoint, merged = values[0, :, :, 0], values[0, :, :, 1]
    assert (disjoint <= merged + 1e-6).all()
    assert (merged - disjoint).mean() > 0.01  # a draft in a merged tail may match
    assert means[0].disjoint == pytest.approx(values[0, :, 0, 0].mean())
    assert means[3].merged is None  # `single` takes one draft, not three


def test_interrupted_sweep_is_resumed(dump, tmp_path):
    options = {"names": ["gls", "single"], "num_drafts": [1, 3]}
    means = studies.position_acceptance(dump, tmp_path / "whole", **options)
    folder = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        studies.position_acceptance(dump, folder, **options, progress=stop)
    assert json.loads((folder / "acceptance.json").read_text())["done"] == 1
    with pytest.raises(
        ValueError, match="an unfinished run is here; resume=True or --resume continues it"
    ):
        studies.position_acceptance(dump, folder, **options)
    assert studies.position_acceptance(dump, folder, **options, resume=True) == means
    other = {"names": ["gls"], "num_drafts": [1]}
    with pytest.raises(ValueError, match="expected a run of the same configuration to resume"):
        studies.position_acceptance(dump, folder, **other, resume=True)
    # A finished sweep is replaced.
    assert len(studies.position_acceptance(dump, folder, **other)) == 1


@pytest.mark.parametrize("resume", [True, False])
def test_broken_sweep_is_named(dump, tmp_path, resume):
    options = {"names": ["single"], "num_drafts": [1]}
    studies.position_acceptance(dump, tmp_path, **options)
    manifest = json.loads((tmp_path / "acceptance.json").read_text())
    for content, line in (
        ("{", "expected the manifest of a sweep, got a file that cannot be read"),
        ("{}", r"expected the manifest of a sweep \(format 2, .*got another one"),
        (
            json.dumps(manifest | {"done": 2}),
            r"expected the manifest of a sweep \(format 2, .*got another one",
        ),
        (json.dumps(manifest | {"format": 1}), "expected format 2, got 1"),
    ):
        (tmp_path / "acceptance.json").write_text(content)
        with pytest.raises(ValueError, match=r"acceptance\.json: " + line):
            studies.position_acceptance(dump, tmp_path, **options, resume=resume)
    (tmp_path / "acceptance.json").write_text(json.dumps(manifest))
    (tmp_path / "acceptance.npy").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"acceptance\.npy: no such file; expected the values of a sweep"
    ):
        studies.position_acceptance(dump, tmp_path, **options, resume=True)
    with pytest.raises(ValueError, match=r"schemes: expected at least one of .*got none"):
        studies.position_acceptance(dump, tmp_path, names=[], num_drafts=[1])


def test_shortened_array_is_not_filled_up(dump, tmp_path):
    options = {"names": ["gls"], "num_drafts": [1]}
    studies.position_acceptance(dump, tmp_path, **options)
    path = tmp_path / "acceptance.npy"
    path.write_bytes(path.read_bytes()[:-8])
    before = path.read_bytes()
    with pytest.raises(
        ValueError,
        match=r"acceptance\.npy: expected the values of a sweep, float32.*cannot be read",
    ):
        studies.position_acceptance(dump, tmp_path, **options, resume=True)
    assert path.read_bytes() == before
    np.save(path, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"got float32 of shape \[3\]"):
        studies.position_acceptance(dump, tmp_path, **options, resume=True)


def test_second_run_in_a_folder_is_refused(dump, tmp_path):
    with (
        files.alone(tmp_path),
        pytest.raises(BlockingIOError, match="another run is using it"),
    ):
        studies.position_acceptance(dump, tmp_path, names=["gls"], num_drafts=[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", studies.BRACKETED)
def test_truth_lies_between_disjoint_and_merged_tails(name):
    """Whole vocabularies of 60 against their likeliest 6, with heavy tails."""
    rng, num_tokens, num_kept, num_pairs = np.random.default_rng(0), 60, 6, 30
    logits = rng.normal(size=(2, num_pairs, num_tokens))
    logits = logits * rng.choice([1.0, 2.0, 3.0], (num_pairs, 1))
    p, q = np.exp(np.stack([logits[0], 0.6 * logits[0] + 0.4 * logits[1]]))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    is_kept = (np.argsort(np.argsort(-p)) < num_kept) | (np.argsort(np.argsort(-q)) < num_kept)
    none = np.zeros((num_pairs, 1))
    tail_p = np.where(is_kept, 0, p).sum(1, keepdims=True)
    tail_q = np.where(is_kept, 0, q).sum(1, keepdims=True)
    kept_p, kept_q = np.where(is_kept, p, 0), np.where(is_kept, q, 0)
    scheme = schemes.get(name)
    counts = tuple(k for k in (1, 2, 5) if k <= (scheme.max_drafts or k))
    exact = jax.jit(jax.vmap(lambda p, q: scheme.acceptance_curve(p, q, counts)))

    def acceptance(*pair):
        with np.errstate(divide="ignore"):
            log_probs = [jnp.asarray(np.log(columns), jnp.float32) for columns in pair]
        return np.asarray(exact(*log_probs))

    disjoint = acceptance(np.hstack([kept_p, tail_p, none]), np.hstack([kept_q, none, tail_q]))
    merged = acceptance(np.hstack([kept_p, tail_p, none]), np.hstack([kept_q, tail_q, none]))
    truth = acceptance(np.hstack([p, none, none]), np.hstack([q, none, none]))
    assert (disjoint <= truth + 1e-5).all()
    assert (truth <= merged + 1e-5).all()
    assert (merged - disjoint).mean() > 0.01
