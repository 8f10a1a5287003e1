"""`gls-jax train-drafter`: texts, features, training, and a drafter that `generate` takes."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gls_jax import cli, models
from gls_jax.models import drafter

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROMPTS = [
    f"Prompt {number}, and some words that differ: {number * number}" for number in range(24)
]
SMALL = ["--texts", "24", "--max-new-tokens", "24", "--top-k", "8", "--batch", "8", "--epochs", "6"]
SMALL += ["--batch-tokens", "256", "--validation-steps", "10", "--head-tokens", "40"]
SMALL += ["--steps-ahead", "2", "--validation-share", "0.2", "--learning-rate", "0.003"]


@pytest.fixture(scope="module")
def arguments(checkpoint, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return ["train-drafter", "--target", str(checkpoint), "--prompts", str(prompts), *SMALL]


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "drafter"
    assert cli.main([*arguments, "--out", str(folder), "--json"]) == 0
    return folder


def test_acceptance_after_training_is_above_that_before(trained):
    report = json.loads((trained / "report.json").read_text())
    first, *_, last = report["validations"]
    assert last["length"] > 1.2 * first["length"]
    assert report["texts"] == 24 and 0 < report["head_coverage"] <= 1
    assert (trained / "report.png").stat().st_size > 5000


@pytest.mark.parametrize("shape", [["--drafts", "2", "--length", "3"], ["--tree", "margin:6,3"]])
def test_generate_drafts_with_it_and_the_text_is_that_without(checkpoint, trained, shape, capsys):
    common = ["generate", "--target", str(checkpoint), "--prompt", PROMPTS[3], "--json"]
    common += ["--max-new-tokens", "30", "--top-k", "8"]
    records = []
    for draft in (str(trained), str(trained / drafter.FILE_NAME), "none"):
        own_shape = shape if draft != "none" else []
        assert cli.main([*common, "--draft", draft, *own_shape]) == 0
        records.append(json.loads(capsys.readouterr().out.splitlines()[0]))
    assert records[0]["text"] == records[1]["text"] == records[2]["text"]
    assert sum(records[0]["accepted"]) < sum(records[2]["accepted"])  # fewer rounds


def test_target_that_writes_its_own_prompts(checkpoint, tmp_path, capsys):
    """Two replies to each prompt; the same texts when fewer prompts are asked for at a time."""
    texts = []
    for batch in ("4", "8"):
        folder = tmp_path / batch
        arguments = ["train-drafter", "--target", str(checkpoint), "--out", str(folder), *SMALL]
        arguments += ["--texts", "6", "--batch", batch, "--epochs", "1", "--json"]
        assert cli.main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["texts"] == 6
        records = map(json.loads, (folder / "replies.jsonl").read_text().splitlines())
        # Lines are in the order in which replies ended.
        texts.append({record["request"]: record["tokens"] for record in records})
    assert texts[0] == texts[1]


def test_finished_run_is_continued_without_work(arguments, trained, capsys):
    before = (trained / drafter.FILE_NAME).read_bytes()
    assert cli.main([*arguments, "--out", str(trained), "--json", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 24
    assert (trained / drafter.FILE_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--loss", "mse"], "loss: expected one of kl, tv, lk, or list:SCHEME:K"),
        (["--loss", "list:block:4"], "verifies whole paths"),
        (["--layers", "9"], "layers, steps_ahead: expected at most 4 and 8, got 9"),
        (["--observed-layers", "0"], "observed_layers: expected increasing indices that end with"),
        (["--epochs", "0"], "epochs: expected"),
        (["--prompts", "no-such-file"], "no-such-file: no such file"),
        (["--temperatures", "-1"], "temperature: expected"),
    ],
)
def test_bad_options_get_one_line(arguments, change, message, tmp_path, capsys):
    assert cli.main([*arguments, "--out", str(tmp_path / "out"), *change]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "out" / drafter.FILE_NAME).exists()


def test_another_run_is_not_continued(arguments, trained, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    assert cli.main([*arguments, "--out", str(folder)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--out", str(folder), "--resume", "--seed", "5"]) == 2
    assert "another" in capsys.readouterr().err
    assert cli.main([*arguments, "--out", str(folder), "--resume", "--epochs", "7"]) == 2
    assert "epochs" in capsys.readouterr().err


def broken_files(folder, trained):
    """Files that are no drafter of this target."""
    path = trained / drafter.FILE_NAME
    tensors, content = load_file(path), path.read_bytes()
    not_finite = dict(tensors)
    not_finite["join.weight"] = np.full_like(tensors["join.weight"], np.nan)
    (folder / "short.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "text.safetensors").write_text("no tensors at all, only words")
    (folder / "large.safetensors").write_bytes((2**62).to_bytes(8, "little") + content[8:])
    save_file(tensors, folder / "plain.safetensors")
    import safetensors

    with safetensors.safe_open(path, framework="np") as opened:
        metadata = opened.metadata()
    save_file(not_finite, folder / "nan.safetensors", metadata)
    fewer = {name: tensor for name, tensor in tensors.items() if name != "fuse.weight"}
    save_file(fewer, folder / "fewer.safetensors", metadata)
    about = json.loads(metadata["gls_jax"])
    about["config"]["layers"]["num_layers"] = 2**31
    save_file(tensors, folder / "huge.safetensors", {"gls_jax": json.dumps(about)})
    return sorted(folder.glob("*.safetensors"))


def test_broken_files_are_refused(checkpoint, trained, tmp_path):
    target = models.load(checkpoint)
    for path in broken_files(tmp_path, trained):
        with pytest.raises(ValueError, match=path.name) as error:
            drafter.load_drafter(path, target)
        assert "\n" not in str(error.value)


def test_drafter_of_another_target_is_refused(trained):
    from tests.decoding import tiny_models

    model = models.Transformer(tiny_models.CONFIG, rngs=tiny_models.nnx.Rngs(0))
    other = models.Checkpoint(model, None, tiny_models.CONFIG)
    with pytest.raises(ValueError, match="expected a drafter of this target"):
        drafter.load_drafter(trained, other)
