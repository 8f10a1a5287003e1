"""kill -9 in the middle of long work, then --resume: the same results, none lost and none twice.

A process runs the command and is killed at a file operation in its folder, or a moment after it. A
random generator with a fixed seed chooses the operation and the delay. Half of the processes die at
once, with files half written.
"""

import json
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from gls_jax import cli, models
from gls_jax.compression.images import datasets
from gls_jax.models import vae_checkpoints
from gls_jax.runs.jsonl_results import JsonlResults
from tests import compilation
from tests.cli.conftest import write
from tests.images import ramps

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROGRAM = """
import os, signal, sys, threading
folder, left, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod") and folder in str(arguments[0]):
        left -= 1
        if left == 0:
            threading.Timer(delay, die).start() if delay else die()

sys.addaudithook(watch)
from gls_jax import cli
sys.exit(cli.main(sys.argv[4:]))
"""


def killed(folder, rng, last, arguments, cache):
    """Kill a run at one of its first `last` file operations; return whether it died before its end."""
    delay = rng.choice([0, rng.uniform(0, 0.05)])
    where = [str(folder), str(rng.integers(1, last)), str(delay)]
    env = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    env = compilation.quick_environment() | env
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *where, *arguments], capture_output=True, text=True, env=env
    )
    assert done.returncode == -signal.SIGKILL or (delay and done.returncode == 0), done.stderr
    return done.returncode != 0


def test_acceptance_study(tmp_path):
    """30 blocks of three file operations each; every file that a kill leaves is whole."""
    arguments = [
        "acceptance",
        "--schemes",
        "naive",
        "--num-drafts",
        "1",
        "2",
        "--num-trials",
        "200",
    ]
    arguments += ["--num-pairs", "960", "--num-categories", "6"]
    assert cli.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    cut, rng, done = tmp_path / "cut", np.random.default_rng(1), [0]
    for _ in range(3):
        assert killed(cut, rng, 30, [*arguments, "--out", str(cut), "--resume"], tmp_path / "cache")
        assert not (cut / "acceptance.csv").exists()
        if (part := cut / "cells.partial.0.npz").exists():
            with np.load(part) as cells:
                done.append(int(cells["done"].sum()))
    assert sorted(done) == done and done[-1] > 0  # no block is lost
    assert cli.main([*arguments, "--out", str(cut), "--resume"]) == 0
    assert (cut / "acceptance.csv").read_bytes() == (
        tmp_path / "whole" / "acceptance.csv"
    ).read_bytes()
    with np.load(cut / "cells.npz") as found, np.load(tmp_path / "whole" / "cells.npz") as whole:
        assert sorted(found.files) == sorted(whole.files)
        for name in whole.files:
            np.testing.assert_array_equal(found[name], whole[name])
    assert not list(cut.glob("cells.partial.*"))


def test_training(tmp_path):
    """Six epochs, each a checkpoint of many files: a kill loses no earlier epoch."""
    images = ramps(300)
    np.save(tmp_path / "images.npy", images)
    sizes = {"crop": 3, "latent": 2, "channels": 8, "hidden": 16, "features": 8}
    arguments = ["train", "--images", str(tmp_path / "images.npy"), "--epochs", "6", "--resume"]
    arguments += [str(part) for name, size in sizes.items() for part in (f"--{name}", size)]
    cut, rng, epochs = tmp_path / "cut", np.random.default_rng(2), [0]
    # The number of operations before the first checkpoint depends on threads.
    while len(epochs) < 4 or not epochs[-1]:
        assert killed(cut, rng, 40, [*arguments, "--out", str(cut)], tmp_path / "cache")
        found = vae_checkpoints.find(cut)
        epochs.append(found.step if found else 0)
        assert len(epochs) < 20
    assert sorted(epochs) == epochs and 0 < epochs[-1] < 6
    images = datasets.load(str(tmp_path / "images.npy")).train
    train = partial(
        models.train_vae, images=images, config=models.VaeConfig.of_images(images, **sizes)
    )
    train = partial(train, beta=4.0, epochs=6, seed=0)
    whole, seen = train(tmp_path / "whole"), []
    resumed = train(cut, resume=True, progress=lambda done, total: seen.append(done))
    assert seen == list(range(epochs[-1] + 1, 7))
    assert resumed.losses == whole.losses and resumed.model.model_hash == whole.model.model_hash


RECORDS = [{"request": n, "text": "naïve 🙂 " * n, "tokens": list(range(n))} for n in range(5)]
HASHES = {n: f"options of {n}" for n in range(5)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Bytes of a file of results, line by line."""
    path = tmp_path_factory.mktemp("results") / "whole.jsonl"
    results = JsonlResults(path, False, HASHES)
    for record in RECORDS:
        results.append(record)
    return path.read_bytes()


def test_results_torn_at_any_byte(tmp_path, written):
    """A crash leaves a prefix of an appended file: resuming writes the rest, and no line twice."""
    path = tmp_path / "torn.jsonl"
    for size in range(len(written) + 1):
        path.write_bytes(written[:size])
        results = JsonlResults(path, True, HASHES)
        assert sorted(results.done) == list(range(written[:size].count(b"\n"))), size
        for record in RECORDS:
            if record["request"] not in results.done:
                results.append(record)
        assert path.read_bytes() == written, size


def test_results_take_only_their_own_files_and_lines(tmp_path):
    """Neither a copy in the same folder nor a result of a request without a number is taken."""
    path, copy = tmp_path / "results.jsonl", tmp_path / "results.jsonl.part0.bak"
    copy.write_text("mine")
    results = JsonlResults(path, False, HASHES, 0)
    results.append(RECORDS[1])
    results.merge()
    assert copy.read_text() == "mine" and JsonlResults(path, True, HASHES).done.keys() == {1}
    path.write_text('{"request": "x", "ask": "q"}\n')
    with pytest.raises(ValueError, match="line 1: expected a result, got something else"):
        JsonlResults(path, True, HASHES)


def test_results_of_a_killed_process(tmp_path):
    """Killed before, between and after the appends of 300 results."""
    program = PROGRAM.split("from gls_jax")[0] + (
        "import pathlib\nfrom gls_jax.runs.jsonl_results import JsonlResults\n"
        "hashes = {n: 'same' for n in range(300)}\n"
        "results = JsonlResults(pathlib.Path(sys.argv[1]), True, hashes)\n"
        "for n in range(300):\n"
        "    n in results.done or results.append({'request': n, 'text': 'x' * n})\n"
    )
    path, rng, before = tmp_path / "results.jsonl", np.random.default_rng(3), 0
    for _ in range(3):
        where = [str(path), str(rng.integers(1, 40)), str(rng.choice([0, rng.uniform(0, 0.01)]))]
        assert subprocess.run([sys.executable, "-c", program, *where]).returncode in (
            -signal.SIGKILL,
            0,
        )
        done = JsonlResults(path, True, {}).done if path.exists() else {}
        assert sorted(done) == list(range(len(done))) and len(done) >= before
        before = len(done)
    assert before > 0
    assert subprocess.run([sys.executable, "-c", program, str(path), "0", "0"]).returncode == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["request"], len(line["text"])) for line in lines] == [(n, n) for n in range(300)]


def test_training_of_a_drafter(tmp_path):
    """Killed while it writes texts, reads them and trains; the weights are those of a run in one piece."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Prompt {number}: {number * number}" for number in range(12)))
    checkpoint = write(tmp_path / "tiny", max_position_embeddings=128)
    arguments = ["train-drafter", "--target", str(checkpoint), "--prompts", str(prompts)]
    arguments += ["--texts", "12", "--max-new-tokens", "12", "--top-k", "8", "--batch", "2"]
    arguments += ["--epochs", "4", "--batch-tokens", "128", "--validation-steps", "4"]
    arguments += ["--head-tokens", "30", "--steps-ahead", "2", "--validation-share", "0.2"]
    assert cli.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    cut, rng, num_killed = tmp_path / "cut", np.random.default_rng(3), 0
    for last in (30, 60, 400, 400, 400):
        resumed = [*arguments, "--out", str(cut), "--resume"]
        num_killed += killed(cut, rng, last, resumed, tmp_path / "cache")
    assert num_killed >= 3
    assert cli.main([*arguments, "--out", str(cut), "--resume"]) == 0
    name = "drafter.safetensors"
    assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
