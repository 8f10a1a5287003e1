"""Two processes on loopback do what one does; a process that dies costs its unfinished shard."""

import json
import re
import socket
import subprocess
import sys

import jax
import pytest

from gls_jax import cli, trials
from gls_jax.distributions import pairs
from gls_jax.runs import cluster, files
from gls_jax.studies import acceptance_study
from tests import compilation
from tests.cli.conftest import write

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The command, which kills itself while it computes its DIES-th block: there is one sweep a block.
PROGRAM = """
import os, signal, sys
from gls_jax import cli, trials
from gls_jax.runs import cluster

cluster._HEARTBEAT_TIMEOUT = 3
dies, sweep = int(sys.argv.pop(1)), trials.sweep

def counted(*arguments, **options):
    global dies
    dies -= 1
    if dies == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep(*arguments, **options)

trials.sweep = counted
sys.exit(cli.main(sys.argv[1:]))
"""
STUDY = [
    "--num-pairs",
    150,
    "--num-categories",
    4,
    "--num-trials",
    50,
    "--num-drafts",
    1,
    "--schemes",
    "naive",
]


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """The processes of this file compile the same programs: once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def run_two(*arguments, dies=(0, 0), extra=((), ())):
    """Exit codes, stdout and stderr of two processes with one coordinator.

    `dies` and `extra` are of each process: the block that it dies at, and more arguments.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster_of_two = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    env = compilation.quick_environment()
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                str(dies[i]),
                *map(str, arguments),
                *cluster_of_two,
                str(i),
                *extra[i],
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(2)
    ]
    ended = [(process, process.communicate(timeout=300)) for process in started]
    return [(process.returncode, out, err) for process, (out, err) in ended]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(["acceptance", "--out", str(folder), *map(str, STUDY)]) == 0
    return folder


def test_two_processes_write_the_files_of_one(whole, tmp_path):
    first, second = run_two("acceptance", "--out", tmp_path, *STUDY, "--json")
    assert first[0] == second[0] == 0, (first, second)
    assert len(json.loads(first[1])["rows"]) == 1 and second[1] == ""
    assert names(tmp_path) == ["acceptance.csv", "acceptance.png", "cells.npz"]
    for name in names(tmp_path):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_killed_process_loses_only_its_unfinished_blocks(whole, tmp_path, monkeypatch):
    """Five blocks; the second process is killed at its second, the first one finishes its own three and says so."""
    first, second = run_two("acceptance", "--out", tmp_path, *STUDY, dies=(0, 2))
    assert second[0] == -9 and first[0] == 2, (first, second)
    assert first[2].endswith(
        "error: expected 2 processes at this barrier, but lost process 1; "
        "completed work is saved, and resume=True or --resume continues it\n"
    )
    assert names(tmp_path) == ["cells.partial.0.npz", "cells.partial.1.npz"]
    sweep, swept = trials.sweep, []

    def count(*arguments, **options):
        swept.append(options["scheme"].name)
        return sweep(*arguments, **options)

    monkeypatch.setattr(trials, "sweep", count)
    assert cli.main(["acceptance", "--out", str(tmp_path), *map(str, STUDY), "--resume"]) == 0
    assert swept == ["naive"]
    assert names(tmp_path) == ["acceptance.csv", "acceptance.png", "cells.npz"]
    for name in names(tmp_path):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_processes_of_different_configurations_are_refused(tmp_path):
    first, second = run_two(
        "acceptance", "--out", tmp_path, *STUDY, extra=(("--seed", "1"), ("--seed", "2"))
    )
    for code, _, stderr in (first, second):
        assert code == 2
        assert stderr.endswith(
            "error: expected all processes to have the same configuration and to see the same files, "
            "got differences from process 0 on process 1\n"
        )
    assert not list(tmp_path.iterdir())


def test_other_processes_learn_that_the_first_one_failed(tmp_path, monkeypatch):
    """It does not come to the barrier, though it waits for the end of the others."""

    def interrupt(*_, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trials, "sweep", interrupt)
        assert cli.main(["acceptance", "--out", str(tmp_path), *map(str, STUDY)]) == 130
    first, second = run_two("acceptance", "--out", tmp_path, *STUDY, extra=((), ("--resume",)))
    assert (first[0], second[0]) == (2, 2), (first, second)
    assert (
        "an unfinished run is here; resume=True or --resume continues it, else give another path; "
        "waiting until" in first[2]
    )
    assert second[2].endswith(
        "but lost process 0; completed work is saved, and resume=True or --resume continues it\n"
    )
    assert names(tmp_path) == ["cells.partial.0.npz"]


def test_hosts_without_a_shared_folder_get_an_error(whole, tmp_path):
    """Their parts, brought into one folder, are a run to resume."""
    here, there = tmp_path / "here", tmp_path / "there"
    first, second = run_two(
        "acceptance", *STUDY, extra=(("--out", str(here)), ("--out", str(there)))
    )
    assert (first[0], second[0]) == (2, 0)
    assert re.search(
        r"error: .*here: expected the results of 2 processes, but 2 of 5 blocks are missing; if",
        first[2],
    )
    (there / "cells.partial.1.npz").rename(here / "cells.partial.1.npz")
    assert cli.main(["acceptance", "--out", str(here), *map(str, STUDY), "--resume"]) == 0
    assert (here / "acceptance.csv").read_bytes() == (whole / "acceptance.csv").read_bytes()


def test_generate_on_two_processes(tmp_path, capsys):
    checkpoint = write(tmp_path / "tiny", max_position_embeddings=64, num_hidden_layers=1)
    prompts, alone, shared = (
        tmp_path / "prompts.jsonl",
        tmp_path / "alone.jsonl",
        tmp_path / "shared.jsonl",
    )
    prompts.write_text(
        "\n".join(json.dumps({"prompt": text}) for text in ("Hello", "你好", "a b", "c", "naïve"))
    )
    ask = [
        "generate",
        "--target",
        checkpoint,
        "--draft",
        "none",
        "--prompts",
        prompts,
        "--max-new-tokens",
        6,
    ]
    ask += ["--no-chat", "--json"]
    assert cli.main([*map(str, ask), "--out", str(alone), "--batch", "2"]) == 0
    expected = capsys.readouterr().out.splitlines()[:5]
    lines = alone.read_text().splitlines()
    # One result is here, another in the part of a process that died in the middle of its second.
    shared.write_text(lines[1] + "\n")
    (tmp_path / "shared.jsonl.part7").write_text(lines[3] + "\n" + lines[4][:30])
    first, second = run_two(*ask, "--out", shared, "--batch", 2, "--resume")
    assert first[0] == second[0] == 0, (first, second)
    assert first[1].splitlines()[:5] == expected and second[1] == ""
    assert shared.read_text().splitlines() == lines
    assert names(tmp_path) == ["alone.jsonl", "prompts.jsonl", "shared.jsonl", "tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distributed"], r"distributed: expected a cluster that JAX knows \(SLURM, .* got none"),
        (["--num-processes", "2"], "coordinator, process_id: expected with the other two"),
        (
            ["--coordinator", "host", "--num-processes", "2", "--process-id", "0"],
            "expected HOST:PORT of process 0",
        ),
        (["--coordinator", "host:1", "--num-processes", "2", "--process-id", "2"], "got 2 of 2"),
        (
            ["--coordinator", "127.0.0.1:1", "--num-processes", "2", "--process-id", "1"],
            "process 0 at 127.0.0.1:1, got",
        ),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(cluster, "_JOIN_TIMEOUT", 0)
    monkeypatch.setattr(
        jax._src.xla_bridge, "backends_are_initialized", lambda: False
    )  # as in a new process
    assert (
        cli.main(["acceptance", "--out", str(tmp_path / "made"), *map(str, STUDY), *arguments]) == 2
    )
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("gls-jax: error: ") and re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_generate_needs_a_file_for_several_processes(capsys):
    assert cli.main(["generate", "--prompt", "Hello", "--distributed"]) == 2
    assert (
        "out: expected a file for the results of all processes, got none" in capsys.readouterr().err
    )


def test_second_run_in_a_folder_is_refused(tmp_path):
    study = acceptance_study.Study(("naive",), (1,), 10, seed=0)
    random_pairs = pairs.random(jax.random.key(0), 3, 4)
    with (
        files.alone(tmp_path),
        pytest.raises(
            BlockingIOError, match="expected a folder to itself, but another run is using it"
        ),
    ):
        acceptance_study.run(study, random_pairs, tmp_path)
    with files.alone(tmp_path):  # free again
        pass
