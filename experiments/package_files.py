"""Single files out of the wheels of public packages, loaded without what they depend on.

A wheel is downloaded as pip takes it. What its file imports from packages that are not there is
replaced by empty classes, which take every call: for files of which only functions are used that do
not need them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["EmptyModule", "Unavailable", "module", "wheel"]


class Unavailable(Exception):
    """A package is not installed and cannot be downloaded."""


class _Empty:
    """What a sampler's file imports and does not use: a class that takes everything."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *arguments: Any, **__: Any) -> Any:
        return arguments[0] if arguments else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class EmptyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Empty,), {})


class _EmptyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every name below some packages."""

    def __init__(self, packages: tuple[str, ...]):
        self._packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return EmptyModule(spec.name)

    def exec_module(self, module):
        pass


@contextmanager
def _replaced(packages: tuple[str, ...], real: Mapping[str, Any]) -> Iterator[None]:
    """Imports below `packages` find empty modules, but for those of `real`."""
    finder = _EmptyFinder(packages)
    before = dict(sys.modules)
    sys.meta_path.insert(0, finder)
    sys.modules.update(real)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in packages:
                del sys.modules[name]


def wheel(package: str, version: str, folder: Path) -> zipfile.ZipFile:
    """The wheel of a package, downloaded once; :class:`Unavailable` if that fails."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        done = subprocess.run(
            [*pip, *options, f"{package}=={version}"], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise Unavailable(f"{package} {version}: {last}")
    return zipfile.ZipFile(next(folder.glob(pattern)))


def module(
    package: str,
    version: str,
    file: str,
    folder: Path,
    replaced: tuple[str, ...],
    real: Mapping[str, Any] | None = None,
) -> Any:
    """One file of a wheel as a module.

    Args:
        package: name on PyPI.
        version: of it.
        file: path in the wheel.
        folder: for what is downloaded.
        replaced: packages whose modules are empty for this file.
        real: modules of those packages that are not.

    Raises:
        Unavailable: the wheel cannot be downloaded.
    """
    with wheel(package, version, folder) as archive:
        path = Path(archive.extract(file, folder / f"{package}-{version}"))
    name = f"samplers_{path.stem}_{package.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with _replaced(replaced, real or {}):
        sys.modules[name] = loaded
        spec.loader.exec_module(loaded)
    return loaded
