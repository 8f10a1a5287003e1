"""Files are written whole or not at all."""

import json

import pytest

from gls_jax.runs import files


def test_failed_write_leaves_nothing_behind(tmp_path):
    def fail(file):
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write_whole(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_json_comes_back(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": [1, 2.5, None]})
    assert files.read_json(path, "a file") == json.loads(path.read_text()) == {"a": [1, 2.5, None]}
