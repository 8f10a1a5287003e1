"""`gls_jax.decoding.requests` as a library: results that the command line does not show."""

import jax
import pytest

from gls_jax import decoding
from gls_jax.decoding import requests
from gls_jax.models import model_pair
from gls_jax.runs import cluster
from tests.cli.conftest import write

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIONS = decoding.DecodeOptions(num_drafts=2, draft_length=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("requests") / "tiny", max_position_embeddings=128)
    return model_pair.load_pair(str(folder), drop_layers="1")


def new_requests(*prompts):
    return requests.requests_from_prompts(prompts, max_new_tokens=6, temperature=1.0)


def test_answers_are_those_of_generate(pair):
    reports, pieces = [], []
    answers = requests.answer(
        new_requests("Hello", "a b c"),
        lambda: pair,
        OPTIONS,
        requests.TextOptions(seed=7, chat=False),
        configuration={},
        on_text=pieces.append,
        progress=lambda *report: reports.append(report),
    )
    prompts = [pair.target.tokenizer.encode(text).ids for text in ("Hello", "a b c")]
    expected = decoding.generate(
        jax.random.key(7),
        pair.target,
        pair.drafter,
        prompts,
        num_drafts=2,
        draft_length=2,
        max_new_tokens=6,
        stop_tokens=pair.target.config.eos_token_ids,
    )
    for row, record in enumerate(answers.records):
        assert record["tokens"] == expected.tokens[row, : expected.lengths[row]].tolist()
    assert reports == [("requests", done, 2) for done in range(3)]
    texts = "".join(record["text"] for record in answers.records)
    assert sorted("".join(pieces)) == sorted(texts)
    assert (answers.share_size, answers.problem) == (2, None)
    assert answers.summary()["requests"] == 2


def test_models_are_loaded_only_for_requests_without_a_result(pair, tmp_path):
    def answer(*prompts, load_models, resume, option="a"):
        return requests.answer(
            new_requests(*prompts),
            load_models,
            OPTIONS,
            requests.TextOptions(),
            configuration={"option": option},
            path=tmp_path / "results.jsonl",
            resume=resume,
        )

    def refuse():
        raise AssertionError

    first = answer("a", "b", load_models=lambda: pair, resume=False)
    again = answer("a", "b", load_models=refuse, resume=True)
    assert again.records == first.records and again.share_size == 0
    more = answer("a", "b", "c", load_models=lambda: pair, resume=True)
    assert more.records[:2] == first.records and more.share_size == 1
    with pytest.raises(ValueError, match="line 1: expected a result of this request and these"):
        answer("a", "b", load_models=refuse, resume=True, option="b")


def test_several_processes_need_a_file(pair, monkeypatch):
    monkeypatch.setattr(cluster, "size", lambda: 2)
    with pytest.raises(ValueError, match="path: expected a file for the results of all processes"):
        requests.answer(
            new_requests("a"), lambda: pair, OPTIONS, requests.TextOptions(), configuration={}
        )


def test_options_are_checked_without_models():
    requests.check_options(decoding.DecodeOptions(temperature=0.0), has_drafter=False)
    with pytest.raises(ValueError, match="system: expected a chat"):
        requests.TextOptions(system="Be brief.", chat=False).check()
