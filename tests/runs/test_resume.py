"""A manifest comes back as it was written, and says in one line why a run does not go on."""

import numpy as np
import pytest

from gls_jax.runs.resume import (
    Manifest,
    check_resumable,
    configuration_hash,
    differing_entries,
)

MANIFEST = Manifest(3, {"seed": 0, "num_drafts": [1, 2]}, {"done": 4})


def is_valid(manifest):
    return manifest.progress["done"] in range(5)


def read(path):
    return Manifest.read(path, run="a sweep", format=3, is_valid=is_valid)


def test_manifest_comes_back(tmp_path):
    path = tmp_path / "run.json"
    MANIFEST.write(path)
    assert read(path) == MANIFEST and read(path).hash == MANIFEST.hash
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("manifest", "line"),
    [
        (Manifest(2, {}, {"done": 0}), "expected format 3, got 2"),
        (Manifest(3, {}, {"done": 9}), "expected the manifest of a sweep .*, got another one"),
        (Manifest(3, {}, {}), "expected the manifest of a sweep .*, got another one"),
    ],
)
def test_other_manifests_are_refused(tmp_path, manifest, line):
    path = tmp_path / "run.json"
    manifest.write(path)
    with pytest.raises(ValueError, match=f"run.json: {line}"):
        read(path)


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "{}"])
def test_other_json_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected the manifest of a sweep .*, got another one"):
        read(path)


def test_changed_configuration_does_not_fit_its_hash(tmp_path):
    path = tmp_path / "run.json"
    MANIFEST.write(path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="a configuration with its hash"):
        read(path)


def test_earlier_run_needs_resume_and_the_same_configuration(tmp_path):
    check_resumable(tmp_path, "a run", resume=True, differences=[])
    for differences in ([], ["seed"]):
        with pytest.raises(ValueError, match="a run is here; resume=True or --resume"):
            check_resumable(tmp_path, "a run", resume=False, differences=differences)
    with pytest.raises(ValueError, match=r"got a run of another one \(seed, scheme\)"):
        check_resumable(tmp_path, "a run", resume=True, differences=["seed", "scheme"])


def test_differing_entries_are_named():
    earlier = {"seed": 0, "tree": [2, 1], "top_k": None}
    assert differing_entries(earlier, {"seed": 0, "tree": (2, 1)}) == []
    assert differing_entries(earlier, {"seed": 1, "tree": (2, 1), "length": 4}) == [
        "length",
        "seed",
    ]


def test_hash_tells_configurations_and_arrays_apart():
    arrays = [np.zeros((2, 3)), np.zeros((3, 2)), np.ones((2, 3))]
    hashes = {configuration_hash({"seed": seed}, array) for seed in (0, 1) for array in arrays}
    assert len(hashes) == 6
    assert configuration_hash({"a": 1, "b": (2, 3)}) == configuration_hash({"b": [2, 3], "a": 1})
