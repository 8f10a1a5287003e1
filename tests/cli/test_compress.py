"""`gls-jax compress` and `gls-jax decompress`: the library's results in files; bad input writes nothing."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from gls_jax import cli
from gls_jax.compression import GaussianCodec, payload
from gls_jax.runs import files

CODEC = GaussianCodec(2, 2**10, 8, target_variance=0.05, side_variance=0.5)
SIZES = ["--num-decoders", "2", "--num-candidates", "1024", "--num-bins", "8"]
CODE = [*SIZES, "--target-variance", "0.05", "--side-variance", "0.5"]
COUNT = 300
SEED = 7


def run(*arguments):
    return cli.main([*map(str, arguments)])


@pytest.fixture
def signals(tmp_path, monkeypatch):
    """`(source, side information)`, in files of these names in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    source = rng.normal(size=COUNT)
    side = source + rng.normal(size=COUNT) * 0.5**0.5
    np.save("source.npy", source)
    np.save("side.npy", side)
    return source, side


def test_files_hold_the_results_of_the_library(signals, tmp_path, capsys):
    """Bytes and estimates, sizes, and both distortions with those of the zero-rate estimate; one JSON object each."""
    source, side = signals
    assert run("compress", "source.npy", "made/here/blob.gls", *CODE, "--seed", SEED, "--json") == 0
    blob = (tmp_path / "made/here/blob.gls").read_bytes()
    assert blob == CODEC.encode(SEED, source)
    sizes = CODEC.sizes(blob)
    assert json.loads(capsys.readouterr().out) == {
        "blob": "made/here/blob.gls",
        "count": COUNT,
        "header_bits": sizes.header_bits,
        "payload_bits": 3 * COUNT + 4,  # whole bytes
        "rate": (3 * COUNT + 4) / COUNT,
        "bytes": len(blob),
    }
    args = ["decompress", "made/here/blob.gls", "side.npy", "made/there/estimate.npy", "--decoder"]
    assert run(*args, 1, "--source", "source.npy", "--json") == 0
    estimate = np.load("made/there/estimate.npy")
    assert estimate.dtype == np.float32
    np.testing.assert_array_equal(estimate, CODEC.decode(blob, side, 1).estimate)
    answer = json.loads(capsys.readouterr().out)
    for name, values in (("distortion", estimate), ("zero_rate", side / 1.5)):
        error = (values - source) ** 2
        expected = {
            "mean_of_db": np.mean(10 * np.log10(error)),
            "db_of_mean": 10 * np.log10(np.mean(error)),
        }
        assert answer.pop(name) == pytest.approx(expected)
    assert answer == {
        "estimate": "made/there/estimate.npy",
        "count": COUNT,
        "decoder": 1,
        "estimator": "plug_in",
    }
    assert run(*args, 0, "--json") == 0
    # Another stream gives another estimate, and the file is replaced.
    assert (np.load("made/there/estimate.npy") != estimate).any()
    assert "distortion" not in json.loads(capsys.readouterr().out)


def test_printed_tables(signals, capsys):
    assert (
        run(
            "compress", "source.npy", "blob.gls", *CODE, "--scheme", "baseline", "--search", "dense"
        )
        == 0
    )
    printed = capsys.readouterr().out
    for figure in ("300", "904 bits", "3.0133 bits per symbol", "bytes"):
        assert figure in printed
    args = [
        "decompress",
        "blob.gls",
        "side.npy",
        "estimate.npy",
        "--decoder",
        "1",
        "--estimator",
        "posterior_mean",
    ]
    assert run(*args, "--source", "source.npy") == 0
    printed = capsys.readouterr().out
    assert "estimate.npy: 300 symbols of decoder 1, posterior_mean estimate" in printed
    for name in ("side information alone", "mean of 10 log10 error", "10 log10 of mean error"):
        assert name in printed


def test_a_blob_is_unpacked_once(signals, tmp_path, monkeypatch):
    (tmp_path / "blob.gls").write_bytes(CODEC.encode(SEED, signals[0]))
    decode, calls = payload.decode, []

    def counted(*arguments):
        calls.append(arguments)
        return decode(*arguments)

    monkeypatch.setattr(payload, "decode", counted)
    assert run("decompress", "blob.gls", "side.npy", "estimate.npy", "--decoder", 0) == 0
    assert len(calls) == 1


def test_another_process_decodes_the_same(signals, tmp_path):
    """The program itself, with nothing but the bytes of the blob."""
    source, side = signals
    (tmp_path / "blob.gls").write_bytes(blob := CODEC.encode(SEED, source))
    command = [
        sys.executable,
        "-m",
        "gls_jax",
        "decompress",
        "blob.gls",
        "side.npy",
        "estimate.npy",
    ]
    done = subprocess.run([*command, "--decoder", "0"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.load("estimate.npy"), CODEC.decode(blob, side, 0).estimate)


def test_empty_signal(signals, capsys):
    np.save("none.npy", np.zeros(0, np.float32))
    assert run("compress", "none.npy", "blob.gls", *CODE, "--json") == 0
    assert json.loads(capsys.readouterr().out)["payload_bits"] == 0
    assert run("decompress", "blob.gls", "none.npy", "estimate.npy", "--decoder", 0) == 0
    assert np.load("estimate.npy").shape == (0,)


class Trap:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.fixture
def odd_files(signals, tmp_path):
    """The signals, a blob, and files that are neither."""
    source, side = signals
    blob = CODEC.encode(SEED, source)
    (tmp_path / "blob.gls").write_bytes(blob)
    (tmp_path / "cut.gls").write_bytes(blob[:-1])
    (tmp_path / "changed.gls").write_bytes(blob[:-20] + bytes([blob[-20] ^ 1]) + blob[-19:])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.npy").write_text("0.1\n0.2\n")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "source.npy").read_bytes()[:-8])
    (tmp_path / "folder").mkdir()
    np.savez("both.npz", source=source)
    np.save("matrix.npy", np.zeros((2, 3)))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("complex.npy", np.zeros(3, complex))
    np.save("trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.save("nan.npy", np.array([0.0, np.nan]))
    np.save("huge.npy", np.array([0.0, 1e300]))
    np.save("large.npy", np.array([0.0, 2000.0]))
    np.save("short.npy", side[:-1])
    np.save("nan_side.npy", np.where(np.arange(COUNT) == 3, np.inf, side))
    return tmp_path


SHAPE = r"expected an \.npy file of floats of shape \[n\], got "
COMPRESS = [
    (["missing.npy", "out", *CODE], "missing.npy: no such file; expected an .npy file of floats"),
    (["folder", "out", *CODE], "folder: no such file"),
    (["text.npy", "out", *CODE], "text.npy: " + SHAPE + "a file that cannot be read"),
    (["empty", "out", *CODE], "empty: " + SHAPE + "a file that cannot be read"),
    (["cut.npy", "out", *CODE], "cut.npy: " + SHAPE + "a file that cannot be read"),
    (["both.npz", "out", *CODE], "both.npz: " + SHAPE + "a file that cannot be read"),
    (["trap.npy", "out", *CODE], "trap.npy: " + SHAPE + "a file that cannot be read"),
    (["matrix.npy", "out", *CODE], "matrix.npy: " + SHAPE + r"float64 of shape \[2, 3\]"),
    (["words.npy", "out", *CODE], "words.npy: " + SHAPE + r"<U1 of shape \[2\]"),
    (["complex.npy", "out", *CODE], "complex.npy: " + SHAPE + "complex128"),
    (["nan.npy", "out", *CODE], "nan.npy: expected finite float32 numbers, got nan at 1"),
    (["huge.npy", "out", *CODE], r"huge.npy: expected finite float32 numbers, got 1e\+300 at 1"),
    (
        ["large.npy", "out", *CODE],
        "source: expected values of standard deviation 1, got 2e.03; scale them",
    ),
    (["source.npy", "folder", *CODE], "folder: expected a file that can be written, got a folder"),
    (["source.npy", "empty/out", *CODE], "empty is not a folder"),
    (["source.npy", "/proc/1/out", *CODE], "/proc/1"),
    (
        ["source.npy", "out", *CODE, "--num-decoders", "0"],
        "num_decoders: expected an int of at least 1, got 0",
    ),
    (
        ["source.npy", "out", *CODE, "--num-candidates", "4"],
        r"num_bins: expected at most num_candidates \(4\), got 8",
    ),
    (
        ["source.npy", "out", *CODE, "--target-variance", "0"],
        "target_variance: expected a number within",
    ),
    (
        ["source.npy", "out", *CODE, "--side-variance", "nan"],
        "side_variance: expected a number within",
    ),
    (
        ["source.npy", "out", *CODE, "--scheme", "best"],
        "scheme: expected one of gls, baseline, got 'best'",
    ),
    (
        ["source.npy", "out", *CODE, "--search", "fast"],
        "search: expected one of ordered, dense, got 'fast'",
    ),
    (
        ["source.npy", "out", *CODE, "--seed", "-1"],
        "seed: expected one int within 0..4294967295, got -1",
    ),
]
DECOMPRESS = [
    (["missing.gls", "side.npy", "out"], "missing.gls"),
    (["folder", "side.npy", "out"], "folder"),
    (["empty", "side.npy", "out"], "empty: not a gls_jax blob"),
    (
        ["side.npy", "side.npy", "out"],
        "side.npy: not a gls_jax blob: expected b'GLSC' at its start",
    ),
    (["cut.gls", "side.npy", "out"], "cut.gls: truncated: expected"),
    (["changed.gls", "side.npy", "out"], "changed.gls: checksum does not match"),
    (["blob.gls", "missing.npy", "out"], "missing.npy: no such file"),
    (["blob.gls", "trap.npy", "out"], "trap.npy: " + SHAPE + "a file that cannot be read"),
    (["blob.gls", "matrix.npy", "out"], "matrix.npy: " + SHAPE + r"float64 of shape \[2, 3\]"),
    (
        ["blob.gls", "short.npy", "out"],
        r"side_information: expected one value per symbol \(300\), got 299",
    ),
    (
        ["blob.gls", "nan_side.npy", "out"],
        "nan_side.npy: expected finite float32 numbers, got inf at 3",
    ),
    (
        ["blob.gls", "side.npy", "folder"],
        "folder: expected a file that can be written, got a folder",
    ),
    (["blob.gls", "side.npy", "/proc/1/out"], "/proc/1"),
    (
        ["blob.gls", "side.npy", "out", "--decoder", "2"],
        "decoder: expected one int within 0..1, got 2",
    ),
    (
        ["blob.gls", "side.npy", "out", "--decoder", "-1"],
        "decoder: expected one int within 0..1, got -1",
    ),
    (
        ["blob.gls", "side.npy", "out", "--estimator", "oracle"],
        "estimator: expected one of plug_in, posterior_mean",
    ),
    (["blob.gls", "side.npy", "out", "--source", "missing.npy"], "missing.npy: no such file"),
    (
        ["blob.gls", "side.npy", "out", "--source", "short.npy"],
        r"short.npy: expected one value per symbol \(300\)",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *((["compress", *arguments], message) for arguments, message in COMPRESS),
        *(
            (["decompress", "--decoder", "0", *arguments], message)
            for arguments, message in DECOMPRESS
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(odd_files, capsys, arguments, message):
    before = sorted(odd_files.rglob("*"))
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("gls-jax: error: ") and re.search(message, line) and printed.out == ""
    assert sorted(odd_files.rglob("*")) == before  # nor was the trap sprung


def test_a_failed_write_leaves_nothing(odd_files, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    before = sorted(odd_files.rglob("*"))
    assert run("compress", "source.npy", "out", *CODE) == 2
    assert run("decompress", "blob.gls", "side.npy", "out", "--decoder", "0") == 2
    assert (
        len(capsys.readouterr().err.strip().splitlines()) == 2
        and sorted(odd_files.rglob("*")) == before
    )


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # headers of Python 2
def test_broken_arrays_are_refused_by_one_line(signals, tmp_path):
    """Two thousand headers with characters changed, cut or added: an array, or ValueError of one line."""
    rng, whole, path = (
        np.random.default_rng(1),
        bytearray((tmp_path / "source.npy").read_bytes()),
        tmp_path / "x.npy",
    )
    refused = 0
    for _ in range(2000):
        broken = bytearray(whole)
        for at in rng.integers(0, 80, rng.integers(1, 4)):
            old, new = ((1, 1), (1, 0), (0, 1))[rng.integers(3)]
            broken[at : at + old] = rng.integers(32, 127, new, dtype=np.uint8).tobytes()
        path.write_bytes(broken)
        try:
            assert isinstance(files.read_array(path, "an array"), np.ndarray)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: expected an array, got") and "\n" not in str(
                error
            )
    assert refused > 1000
