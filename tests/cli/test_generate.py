"""`gls-jax generate`: the results of the library, in the order of the requests, each once."""

import json
import re

import jax
import pytest

from gls_jax import cli, decoding, models
from gls_jax.cli import generate as command
from gls_jax.runs import files
from gls_jax.runs.jsonl_results import JsonlResults
from tests.cli.conftest import WORDS, write

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = ["--drafts", "2", "--length", "2", "--drop-layers", "1"]
PROMPTS = [
    {"prompt": "naïve café"},
    {"prompt": "Hello", "max_new_tokens": 5},
    {"messages": [{"role": "user", "content": "你好"}], "seed": 3},
    {"prompt": "Hello", "temperature": 0.5},
    {"prompt": "Hello"},
]


def generate(*arguments):
    return cli.main(["generate", *map(str, arguments)])


@pytest.fixture
def args(checkpoint, tmp_path):
    """Options of a run over the five prompts of a file."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, PROMPTS)) + "\n")
    return ["--target", checkpoint, *SHAPE, "--prompts", file, "--max-new-tokens", "12"]


def records(capsys):
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    return lines, last["summary"]


def test_json_has_the_results_of_the_library(checkpoint, capsys):
    prompts = ["Hello", "naïve 🙂", "a longer one: 你好"]
    options = ["--no-chat", "--max-new-tokens", "12", "--seed", "7", "--json"]
    prompt_options = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert generate("--target", checkpoint, *SHAPE, *prompt_options, *options) == 0
    lines, summary = records(capsys)
    target = models.load(checkpoint)
    drafter = models.load(checkpoint, layers=[0])
    tokens = [target.tokenizer.encode(prompt).ids for prompt in prompts]
    args = {"num_drafts": 2, "draft_length": 2, "max_new_tokens": 12, "stop_tokens": [256]}
    expected = decoding.generate(jax.random.key(7), target, drafter, tokens, **args)
    for row, line in enumerate(lines):
        length = int(expected.lengths[row])
        assert line["request"] == row and line["tokens"] == expected.tokens[row, :length].tolist()
        assert line["text"] == target.tokenizer.decode(line["tokens"])
        assert line["finish_reason"] == ("stop" if line["tokens"][-1] == 256 else "length")
        assert line["accepted"] == expected.metrics.histogram[row].tolist()
    assert summary["block_efficiency"] == pytest.approx(expected.metrics.block_efficiency)
    assert summary["draft_calls"] == expected.metrics.draft_calls.sum()
    assert summary["acceptance_histogram"] == expected.metrics.acceptance_histogram.tolist()


def test_results_do_not_depend_on_the_batch(args, capsys):
    """Three a batch: the second is filled up."""
    results = []
    for batch in (1, 3):
        assert generate(*args, "--batch", batch, "--stop", "e", "--json") == 0
        results.append(records(capsys)[0])
    assert results[0] == results[1]
    assert [line["request"] for line in results[0]] == list(range(5)) and len(
        results[0][1]["tokens"]
    ) <= 5
    assert results[0][1]["tokens"] != results[0][4]["tokens"][:5]  # different keys


def test_one_request_streams_its_text(checkpoint, capsys, monkeypatch):
    """Pieces joined are the text, and bytes that are no character come out as what decoding makes of them."""
    pieces, write_piece = [], command._write
    monkeypatch.setattr(command, "_write", lambda piece: (pieces.append(piece), write_piece(piece)))
    args = [
        "--target",
        checkpoint,
        *SHAPE,
        "--prompt",
        "你好",
        "--max-new-tokens",
        "12",
        "--stop",
        "<|turn|>",
    ]
    assert generate(*args, "--timed") == 0
    printed = capsys.readouterr()
    assert generate(*args, "--json") == 0
    (line,), summary = records(capsys)
    assert printed.out == line["text"] + "\n" == "".join(pieces) + "\n" and len(pieces) > 1
    assert line["text"] == models.load(checkpoint).tokenizer.decode(line["tokens"])
    assert "\N{REPLACEMENT CHARACTER}" in line["text"]  # the random model does write such
    for figure in (
        "block efficiency",
        "acceptance histogram",
        "acceptance by position",
        "tokens per second",
        "verify",
    ):
        assert figure in printed.err
    assert (
        summary["tokens"] == len(line["tokens"])
        and summary["tokens_per_second"] > 0
        and "parts" not in summary
    )


def test_broken_logits_fail_only_their_request(tmp_path, capsys):
    broken = write(tmp_path / "broken", broken="Z", max_position_embeddings=128)
    args = [
        "--target",
        broken,
        *SHAPE,
        "--prompt",
        "Hello",
        "--prompt",
        "Z",
        "--max-new-tokens",
        "12",
        "--json",
    ]
    assert generate(*args, "--no-chat") == 2
    printed = capsys.readouterr()
    assert printed.err.strip().endswith(
        "prompt 2: expected logits with a largest one, got NaN or infinite ones"
    )
    assert [json.loads(line).get("request") for line in printed.out.splitlines()] == [0, None]


def test_several_texts_are_printed_at_the_end(args, capsys):
    assert generate(*args, "--batch", "3") == 0
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if line.startswith("--- ")] == [
        f"--- {i}" for i in range(5)
    ]
    assert "requests, ended by a stop" in printed.err


def test_resume_after_an_interrupt(args, tmp_path, capsys, monkeypatch):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert generate(*args, "--out", whole, "--batch", "3") == 0
    append, calls = JsonlResults.append, []

    def interrupted(results, record):
        calls.append(record)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(results, record)

    with monkeypatch.context() as patch:
        patch.setattr(JsonlResults, "append", interrupted)
        assert generate(*args, "--out", cut, "--batch", "3") == 130
    assert capsys.readouterr().err.endswith("interrupted; --resume continues from here\n")
    assert cut.read_text().count("\n") == 2
    assert generate(*args, "--out", cut) == 2  # never written over
    assert (
        "a file of results is here; resume=True or --resume continues it" in capsys.readouterr().err
    )
    assert generate(*args, "--out", cut, "--resume", "--top-k", "5") == 2
    assert "expected a result of this request and these options" in capsys.readouterr().err
    with cut.open("a") as file:
        file.write('{"request": 4, "te')  # an interrupted write
    assert generate(*args, "--out", cut, "--resume", "--batch", "3", "--json") == 0
    lines, summary = records(capsys)
    assert sorted(cut.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert lines == sorted(
        map(json.loads, whole.read_text().splitlines()), key=lambda line: line["request"]
    )
    assert summary["requests"] == 5
    with files.alone(cut):
        assert generate(*args, "--out", cut, "--resume") == 2
    assert (
        "cut.jsonl: expected a file to itself, but another run is using it"
        in capsys.readouterr().err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.jsonl",
        "prompts.jsonl",
        "whole.jsonl",
    ]
    assert generate(*args, "--out", cut, "--resume", "--json") == 0  # nothing left to do
    assert records(capsys)[0] == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "specdec"], "scheme: expected one of gls, .*, got 'specdec'"),
        (["--drafts", "0"], "num_drafts: expected an int of at least 1, got 0"),
        (["--scheme", "single", "--drafts", "2"], "scheme 'single' takes at most 1, got 2"),
        (["--length", "0"], "draft_length: expected an int of at least 1, got 0"),
        (
            ["--drafts", "4", "--draft-temperature", "1", "2", "3"],
            "draft_temperatures: expected one, or one for each",
        ),
        (
            ["--scheme", "specinfer", "--draft-temperature", "1", "nan"],
            "draft_temperature: expected",
        ),
        (
            ["--scheme", "poisson", "--draft-temperature", "1", "2"],
            "expected one distribution for all drafts of scheme",
        ),
        (
            ["--scheme", "gls", "--tree", "margin"],
            "expected scheme 'gumbel_topk' for a margin tree, got 'gls'",
        ),
        (["--scheme", "minhash", "--tree", "4,2"], "scheme 'minhash' takes at most 1, got 4"),
        (["--tree", "4,x"], "tree: expected numbers such as 4,2,1"),
        (["--tree", "margin:32"], "tree: expected numbers such as 4,2,1"),
        (["--tree", "first:32,4"], "tree: expected numbers such as 4,2,1, or margin or best-first"),
        (
            ["--tree", "margin:1000000000,1000000000"],
            "MarginTree.budget: expected at most 8192, got 1000000000",
        ),
        (["--tree", "margin:32,65"], "MarginTree.depth: expected at most 64, got 65"),
        (
            ["--tree", "best-first"],
            "expected scheme 'topk' for a best-first tree, got 'gumbel_topk'",
        ),
        (
            ["--tree", "4,2", "--drafts", "2"],
            "expected --tree, or --drafts and --length, got --tree combined with --drafts",
        ),
        (
            ["--temperature", "-1"],
            "temperature: expected 0 or a finite number of at least 1e-6, got -1",
        ),
        (["--top-p", "2"], r"top_p: expected a number within \(0, 1\]"),
        (["--top-k", "-1"], "top_k: expected 0"),
        (["--batch", "0"], "batch: expected an int of at least 1, got 0"),
        (["--seed", "-1"], "seed: expected one int within"),
        (
            ["--max-new-tokens", "0"],
            "prompt 1: max_new_tokens: expected an int of at least 1, got 0",
        ),
        (["--prompt", ""], "prompt 2: expected a prompt, got an empty one"),
        (["--prompts", "x"], "expected --prompt or --prompts, got both"),
        (
            ["--draft", "none", "--drop-layers", "1"],
            "drop_layers: expected a drafter that is a model",
        ),
        (["--drop-layers", "7-3"], "drop_layers: expected layers such as"),
        (["--draft", "missing"], "missing: no such file or folder"),
        (["--draft", "auto:missing"], "missing: no such file or folder"),
        (["--draft", "auto", "--length", "3"], "length: expected none with --draft auto"),
        (["--draft", "auto", "--timed"], "timed: expected no --timed with --draft auto"),
        (["--draft", "auto", "--tree", "4,2"], "tree: expected None with automatic drafting"),
        (["--draft", "auto", "--drop-layers", "1"], "drop_layers: expected a drafter that is"),
        (["--target", "missing"], "missing: no such file or folder"),
        (["--resume"], "resume: expected --out"),
        (["--no-chat", "--system", "Be brief."], "system: expected a chat"),
        (["--stop", ""], "stop: expected texts or token ids, got an empty text"),
        (["--out", "/proc/1/x.jsonl"], "/proc/1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    """Before models are loaded: there is none."""
    monkeypatch.chdir(tmp_path)
    assert generate("--target", "not loaded", "--prompt", "Hello", *arguments) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("gls-jax: error: ") and re.search(message, error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected a JSON object, got something else"),
        ("[1]", "with either prompt or messages"),
        ("{}", "with either prompt or messages"),
        ('{"prompt": "a", "messages": []}', "with either prompt or messages"),
        ('{"prompt": 3}', "prompt: expected text, got int"),
        ('{"prompt": ""}', "expected a prompt, got an empty one"),
        ('{"messages": []}', "expected a prompt, got an empty one"),
        ('{"turns": []}', "turns: expected a list of texts"),
        ('{"turns": "Hello"}', "turns: expected a list of texts"),
        ('{"turns": [3]}', "turns: expected a list of texts"),
        ('{"messages": ["a"]}', "messages: expected a list of objects with role and content"),
        ('{"prompt": "a", "max_new_tokens": 0}', "max_new_tokens: expected an int of at least 1"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature: expected 0 or a finite number"),
        ('{"prompt": "a", "seed": 1.5}', "seed: expected one int within"),
        ('{"prompt": "\\ud83d"}', "expected text, got half a character"),
    ],
)
def test_a_broken_line_is_named(tmp_path, capsys, line, message):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n\n' + line)
    assert generate("--target", "not loaded", "--prompts", tmp_path / "prompts.jsonl") == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"prompts.jsonl, line 3: .*{message}", error)


def test_errors_found_after_loading_the_models(checkpoint, tmp_path, capsys):
    silent = write(tmp_path / "silent", words=())
    foreign = write(tmp_path / "foreign", words=WORDS[::-1], template=None)
    (tmp_path / "results").write_text("notes of mine")
    messages = tmp_path / "messages.jsonl"
    messages.write_text('{"messages": [{"role": "user", "content": "Hello"}]}')
    hello = ["--prompt", "Hello"]
    for arguments, message in (
        (["--target", silent, *hello], "expected a tokenizer with the weights, found none"),
        (
            ["--target", checkpoint, "--draft", foreign, *hello],
            "expected the tokenizer of the target, got another one",
        ),
        (
            ["--target", checkpoint, "--prompt", "a" * 128],
            "expected fewer tokens than the model's context of 128",
        ),
        (
            ["--target", checkpoint, "--drop-layers", "2", *hello],
            "drop_layers: expected layers within 0-1, got 2",
        ),
        (
            ["--target", foreign, "--prompts", messages],
            "line 1: expected a prompt for a model without a chat template",
        ),
        (
            ["--target", foreign, "--system", "Be brief.", *hello],
            "expected a chat template for a system message",
        ),
        (
            ["--target", checkpoint, "--stop", "9999", *hello],
            "stop_tokens: expected tokens within 0..259, got 9999",
        ),
        (
            ["--target", checkpoint, "--out", tmp_path / "results", "--resume", *hello],
            "expected results, got something",
        ),
    ):
        assert generate(*arguments) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert error.startswith("gls-jax: error: ") and message in error
    assert (tmp_path / "results").read_text() == "notes of mine"


def test_automatic_drafting_gives_the_text_without(checkpoint, capsys):
    """By look-up, with costs that are measured; its figures have the names that vLLM reports."""
    common = [
        "--target",
        checkpoint,
        "--prompt",
        "abcabcabcabc",
        "--max-new-tokens",
        "40",
        "--json",
    ]
    common += ["--temperature", "0"]
    outputs = []
    for draft in ("none", "auto"):
        assert generate(*common, "--draft", draft) == 0
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    (plain, _), (fast, _) = outputs
    assert fast["tokens"] == plain["tokens"]
    assert plain["metrics"]["speculative_decoding"] is None
    figures = fast["metrics"]["speculative_decoding"]
    assert figures["num_spec_steps"] == sum(figures["acceptance_histogram"]) < 100
    assert figures["num_accepted_draft_tokens"] <= figures["num_draft_tokens"]


def test_first_turn_is_answered(checkpoint, tmp_path, capsys):
    path = tmp_path / "bench.jsonl"
    path.write_text('{"question_id": 1, "turns": ["Hello", "And then?"]}\n{"prompt": "Hello"}\n')
    assert (
        generate(
            "--target",
            checkpoint,
            "--prompts",
            path,
            "--draft",
            "none",
            "--json",
            "--temperature",
            "0",
        )
        == 0
    )
    first, second, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["tokens"] == second["tokens"]
