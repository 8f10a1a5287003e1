"""`gls-jax compress` and `decompress` with a trained model: whole images in files to bytes and back."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gls_jax import cli, compression, models
from gls_jax.compression.images import image_files
from tests.images import CONFIG, TRAINING, ramps

pytestmark = pytest.mark.usefixtures("quick_compilation")

CODE = ["--num-decoders", "2", "--num-bins", "8", "--num-candidates", "64"]


def run(*arguments):
    return cli.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    models.train_vae(folder, ramps(512), CONFIG, **TRAINING)
    return folder


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ramps(20, seed=4)
    np.save("images.npy", images)
    return images


def test_whole_images_and_crops(folder, images, capsys):
    assert (
        run("compress", "images.npy", "blob.gls", *CODE, "--model", folder, "--seed", 3, "--json")
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert (answer["count"], answer["payload_bits"]) == (20, 64)  # 60, in whole bytes
    codec = compression.ImageCodec(models.load_vae(folder), 2, 64, 8)
    left, right = compression.halves(images)
    blob = Path("blob.gls").read_bytes()
    assert blob == codec.encode(3, right)
    crops = np.asarray(compression.crops(jax.random.key(5), jax.numpy.asarray(left), 2, 3))[:, 1]
    expected = codec.decode(blob, crops, 1).estimate
    np.save("crops.npy", crops)
    np.save("right.npy", right)
    args = ["--decoder", 1, "--model", folder, "--json"]
    for side, source, more in (
        ("images.npy", "images.npy", ["--crop-seed", 5]),
        ("crops.npy", "right.npy", []),
    ):
        assert (
            run(
                "decompress",
                "blob.gls",
                side,
                "made/estimate.npy",
                "--source",
                source,
                *more,
                *args,
            )
            == 0
        )
        answer = json.loads(capsys.readouterr().out)
        assert (np.load("made/estimate.npy") == expected).all()
        assert answer["squared_error"] == pytest.approx(np.square(expected - right).mean())
        assert answer["psnr"] == pytest.approx(10 * np.log10(4 / answer["squared_error"]))
    assert run("compress", "right.npy", "again.gls", *CODE, "--model", folder, "--seed", 3) == 0
    assert Path("again.gls").read_bytes() == blob


def test_pictures(folder, images, capsys):
    image_files.write_images("pictures", images)
    args = ["--model", folder]
    assert run("compress", "pictures", "blob.gls", *CODE, *args) == 0
    assert "20" in capsys.readouterr().out
    assert (
        run(
            "decompress",
            "blob.gls",
            "pictures",
            "out",
            "--decoder",
            0,
            "--source",
            "pictures",
            *args,
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "out: 20 images of decoder 0" in printed and "PSNR" in printed
    estimate, source = image_files.read_images("out"), images[:, :, 4:]
    assert estimate.shape == (20, 8, 4, 1)
    assert np.square(estimate - source).mean() < np.square(source).mean() / 2
    assert run("compress", "pictures/00.png", "one.gls", *CODE, *args) == 0
    assert run("decompress", "one.gls", "pictures/00.png", "one.png", "--decoder", 0, *args) == 0
    assert image_files.read_images("one.png").shape == (1, 8, 4, 1)


def test_bad_input(folder, images, capsys):
    model = ["--model", folder]
    np.save("wide.npy", np.zeros((3, 8, 10), np.uint8))
    np.save("numbers.npy", np.zeros(5))
    assert run("compress", "images.npy", "blob.gls", *CODE, *model) == 0
    variances = ["--target-variance", 0.05, "--side-variance", 0.5]
    assert run("compress", "numbers.npy", "numbers.gls", *CODE, *variances) == 0
    capsys.readouterr()
    args, one = ["decompress", "blob.gls", "images.npy"], ["--decoder", 0, *model]
    for arguments, message in (
        (
            ["compress", "images.npy", "x", *CODE],
            "expected --target-variance and --side-variance for a signal, or --model",
        ),
        (
            ["compress", "images.npy", "x", *CODE, *model, *variances],
            "expected --model for images or variances for a signal",
        ),
        (
            ["compress", "wide.npy", "x", *CODE, *model],
            "wide.npy: expected images of 8 x 4 pixels, 1 channel, or with such a right half",
        ),
        (["compress", "none", "x", *CODE, *model], "none: no such file or folder"),
        (
            ["compress", "images.npy", "x", *CODE, "--model", "none"],
            "none: expected the folder of a trained image model",
        ),
        ([*args, "x.npy", "--decoder", 0], "blob.gls: holds images; expected --model"),
        ([*args, "x.npy", *model, "--decoder", 2], "decoder: expected one int within 0..1, got 2"),
        (
            [*args, "x.png", *one],
            "x.png: expected one image for a .png file, got 20; write to a folder",
        ),
        ([*args, "x.gif", *one], "x.gif: expected an .npy file, a .png file or a folder"),
        (
            [*args, "x.npy", *one, "--source", "wide.npy"],
            "wide.npy: expected images of 8 x 4 pixels, 1 channel",
        ),
        (
            ["decompress", "blob.gls", "wide.npy", "x.npy", *one],
            "wide.npy: expected crops of 3 x 3 pixels, 1 channel, or whole images",
        ),
        (
            ["decompress", "numbers.gls", "numbers.npy", "x.npy", *one],
            "numbers.gls: holds a signal, which needs no --model",
        ),
    ):
        assert run(*arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    assert not list(Path().glob("x*"))
