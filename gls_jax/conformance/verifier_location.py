"""A verifier named by its place: ``package.module:function`` or ``path/to/file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["load"]


def load(location: str) -> Any:
    """The function, or the object, at a place. Its module is imported, which runs its code.

    Args:
        location: ``package.module:function``, looked for in the working directory too, or
            ``path/to/file.py:function``. A function may be an attribute, ``file.py:Class.method``,
            or end in ``()``: then it is called without arguments, and its result is taken.

    Raises:
        ValueError: no such place, or a module that cannot be imported; one line that names it.

    >>> from gls_jax.conformance import verifier_location
    >>> verifier_location.load("math:sqrt")(4)
    2.0
    """
    module_name, separator, attributes = location.rpartition(":")
    if not separator or not module_name or not attributes:
        raise ValueError(
            f"verifier: expected MODULE:FUNCTION or FILE.py:FUNCTION, got {location!r}"
        )
    found: Any = _module(module_name)
    try:
        for name in attributes.removesuffix("()").split("."):
            if not hasattr(found, name):
                raise _Missing(f"no such name as {name!r}")
            found = getattr(found, name)
        return found() if attributes.endswith("()") else found
    # A property or a call may raise anything, also what would end the process, with an exit code
    # that says something else.
    except (Exception, SystemExit) as error:
        got = f"{type(error).__name__}: " if not isinstance(error, _Missing) else ""
        raise ValueError(
            f"verifier: expected {attributes!r} in {module_name} to give a verifier, "
            f"got {got}{' '.join(str(error).split())}"
        ) from error


class _Missing(Exception):
    """A module or an object has no such attribute."""


def _module(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _module_of_file(Path(name))
        # As `python -m` does; an installed command does not look there.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"verifier: expected a module that can be imported, got {name}, "
            f"which raised {type(error).__name__}: {message}"
        ) from error


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"_verifier_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as an import would, so that its dataclasses find their module.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
