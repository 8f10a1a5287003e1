"""The drafter that comes with SmolLM2: its file, and what it brings."""

from pathlib import Path

import numpy as np
import pytest

from gls_jax import decoding, models, races
from gls_jax.models import drafter, model_pair


@pytest.fixture(scope="module")
def pair():
    return model_pair.load_pair("smollm2", "trained")


def test_file_and_its_papers():
    path = drafter.shipped_drafter("smollm2")
    assert path.stat().st_size <= 12e6
    about = " ".join(Path(path).with_name("SHIPPED.md").read_text().split())
    assert "Apache" in about and "train-drafter" in about
    report = drafter.read_drafter(path).report
    assert report["tokens"] >= 1_000_000 and report["validations"]
    assert f"{report['tokens']:,} tokens" in about
    # The acceptance that the text states is that of the file.
    best = max(report["validations"], key=lambda row: row["length"])
    stated = ", ".join(f"{value:.3f}" for value in best["acceptance"])
    assert stated in about
    assert drafter.shipped_drafter("another model") is None


def test_greedy_text_is_that_without_and_takes_fewer_calls(pair):
    template = models.chat_template("smollm2")
    chat = template.render([{"role": "user", "content": "Give me three tips for a job interview."}])
    prompt = pair.tokenizer.encode(chat, add_special_tokens=False).ids
    options = dict(max_new_tokens=40, temperature=0.0)
    key, target = races.new_key(0), pair.target.language_model
    plain = decoding.generate(key, target, None, [prompt], **options)
    fast = decoding.generate(key, target, pair.drafter, [prompt], draft_length=3, **options)
    assert np.asarray(plain.tokens).tolist() == np.asarray(fast.tokens).tolist()
    assert fast.metrics.block_efficiency > 1.2


def test_names_of_the_drafter():
    # Before the target is loaded: there is none of this name.
    with pytest.raises(ValueError, match="draft: expected target smollm2 for the trained drafter"):
        model_pair.load_pair("some/folder", "trained")
    by_layers = model_pair.load_pair("smollm2", "auto:smollm2", "1-28")
    assert by_layers.draft_name == "auto:smollm2 without layers 1-28"
    assert model_pair.is_trained_drafter("trained") and model_pair.is_automatic("auto:trained")
