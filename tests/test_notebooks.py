"""The notebooks: small in git, the same on Colab and here, and what they claim holds when they run."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


class ThisPython(KernelSpecManager):
    """Knows one kernel, the Python that runs the tests, whatever is installed in this machine's home."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(argv=make_ipkernel_cmd(), display_name=kernel_name, language="python")


def code(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@every
def test_stored_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < 20_000
    assert (book.nbformat, book.nbformat_minor) == (4, 5)  # from 4.5 on cells have ids
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(not cell.metadata for cell in book.cells)
    for cell in code(path):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
        assert len(cell.source.splitlines()) <= 25, f"{cell.id}: something is missing in the library"


@every
def test_starts_with_badge_and_installation(path):
    first, second, *_ = nbformat.read(path, as_version=4).cells
    assert first.cell_type == "markdown" and first.source.startswith("# ") and BADGE in first.source
    assert second.id == "install"
    common = code(Path(NOTEBOOKS[-1]))[0].source
    assert second.source.startswith(common), "where the library comes from is said in the same words everywhere"


@every
def test_uses_public_names(path):
    """`from gls_jax.room import name` where the room lists the name; attributes of rooms alike."""
    rooms = {}
    for cell in code(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gls_jax":
                room = importlib.import_module(node.module)
                for alias in node.names:
                    assert alias.name in room.__all__ or hasattr(room, "__path__"), f"{node.module}.{alias.name}"
                    rooms[alias.asname or alias.name] = getattr(room, alias.name, None)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
                room = rooms[node.value.id]
                assert node.attr in getattr(room, "__all__", dir(room)), f"{node.value.id}.{node.attr}"


@every
def test_runs(path, tmp_path, monkeypatch):
    """Every cell, without an error or a warning, in under three minutes."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    book = nbformat.read(path, as_version=4)
    kernels = AsyncKernelManager(kernel_spec_manager=ThisPython())
    work = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, km=kernels, timeout=180, resources=work).execute()
    for cell in book.cells:
        for output in cell.get("outputs", []):
            assert (output.output_type, output.get("name")) != ("stream", "stderr"), f"{cell.id}: {output.text}"
