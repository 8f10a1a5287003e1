"""The runner of the kit on public samplers, without a network: on this library's own, and on one that is planted."""

import csv
import dataclasses
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import package_files, public_samplers, sampler_adapters
from experiments.sampler_adapters import SAMPLERS
from gls_jax.adapters import tpu_inference

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
SMALL = ["--num-trials", "400", "--seconds", "60"]


def run(folder, *options):
    assert entry.main(["public_samplers", "--out", str(folder), *SMALL, *options]) == 0
    with (folder / "public_samplers.csv").open() as file:
        rows = list(csv.DictReader(file))
    reports = json.loads((folder / "public_samplers.json").read_text())
    return rows, reports


@pytest.fixture
def fewer_problems(monkeypatch):
    """The smallest form: one problem of each sampler."""
    for name, sampler in SAMPLERS.items():
        options = {**sampler.options, "problems": ("plain",)}
        monkeypatch.setitem(SAMPLERS, name, dataclasses.replace(sampler, options=options))


def test_own_sampler_passes_and_a_planted_one_does_not(
    tmp_path, monkeypatch, capsys, fewer_problems
):
    def load(folder):
        def accept_everything(key, drafts, lengths, p, q, bonus):
            place = jnp.arange(4)
            rows = jnp.cumsum(lengths)[:, None] - lengths[:, None] + place
            own = drafts[jnp.minimum(rows, len(drafts) - 1)]
            answer = jnp.where(place < lengths[:, None], own, -1)
            return jnp.where(place == lengths[:, None], bonus[:, None], answer)

        return accept_everything

    planted = dataclasses.replace(SAMPLERS["gls_jax"], function="accept_everything", load=load)
    monkeypatch.setitem(SAMPLERS, "planted", planted)
    rows, reports = run(tmp_path, "--samplers", "gls_jax", "planted")
    assert tuple(rows[0]) == public_samplers.Row._fields
    results = {row["sampler"]: row["result"] for row in rows}
    assert results == {"gls_jax": "nothing found", "planted": "found"}
    assert rows[1]["check"] == "emitted distribution" and rows[1]["problem"] == "plain"
    assert reports["planted"]["findings"][0]["example"]["N"] > 1
    assert reports["gls_jax"]["passed"]
    assert (rows[0]["num_problems"], rows[0]["num_not_tried"]) == ("1", "0")
    printed = capsys.readouterr().out
    assert "planted" in printed and "public_samplers.csv" in printed


def test_what_cannot_be_had_is_not_tried(tmp_path, monkeypatch, fewer_problems):
    def no_wheel(*arguments):
        raise package_files.Unavailable("tpu-inference 0.32.0: no network")

    monkeypatch.setattr(package_files, "wheel", no_wheel)
    rows, reports = run(tmp_path, "--samplers", "tpu-inference")
    assert [(row["result"], row["message"]) for row in rows] == [
        ("not tried", "tpu-inference 0.32.0: no network")
    ]
    assert reports == {}


def test_a_file_is_loaded_without_what_it_imports(tmp_path):
    """From a wheel that lies there already; its own package and an absent one are replaced."""
    source = (
        "import absent.part as part\nfrom engine.base import Base\nfrom engine.odds import ODDS\n"
    )
    source += "class Sampler(Base): pass\ndef sample(x): return x * ODDS\nlog = part.logger('x').info('y')\n"
    with zipfile.ZipFile(tmp_path / "an_engine-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("engine/sampler.py", source)
    real = type("odds", (), {"ODDS": 3})
    module = package_files.module(
        "an-engine",
        "1.0",
        "engine/sampler.py",
        tmp_path,
        ("absent", "engine"),
        {"engine.odds": real},
    )
    assert module.sample(2) == 6
    with pytest.raises(ModuleNotFoundError):
        import absent  # noqa: F401


def test_answers_of_tpu_inference_as_a_table():
    sampler = tpu_inference.rejection_sampler("single", max_draft_tokens=3)
    lengths = np.array([3, 0, 1, 2], np.int32)
    q = np.full((6, 4), 0.25, np.float32)
    drafts, bonus = np.array([1, 2, 3, 0, 1, 2], np.int32), np.array([3, 2, 1, 0], np.int32)
    # The last request's second draft has probability 0.
    q[5] = [1, 0, 0, 0]
    answer = sampler(drafts, lengths, np.full((6, 4), 0.25, np.float32), q, bonus, True, KEY)
    table = np.asarray(sampler_adapters._unflattened(answer, lengths))
    assert table.tolist() == [[1, 2, 3, 3], [2, -1, -1, -1], [0, 1, -1, -1], [1, 0, -1, -1]]


def test_paths_are_depth_first():
    """Siblings in the order in which they were drawn, though the first one's leaves come later."""
    paths, earlier = sampler_adapters._paths_and_siblings(np.array([0, 1, 0, 2, 2]))
    assert paths == [[0, 1, 2, 4], [0, 1, 2, 5], [0, 3]]
    assert earlier == [[], [], [], [1], [], [4]]
