"""The decoding experiments through their entry point, tiny, with a random model as SmolLM2."""

import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import __main__ as entry
from experiments import (
    block_efficiency,
    budget_shapes,
    decoding_runs,
    outside_model,
    same_seed,
    text_rounds,
    tree_budget,
)
from gls_jax import decoding, models

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Words:
    """A tokenizer of letters."""

    def encode(self, text):
        return SimpleNamespace(ids=[1 + ord(letter) % 30 for letter in text[10:16]])

    def decode(self, ids):
        return " ".join(map(str, ids))

    def get_vocab(self, with_added_tokens=True):
        return {str(i): i for i in range(31)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    config = models.Config(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_layers=24,
        num_heads=2,
        num_kv_heads=1,
    )
    model = models.Transformer(config, rngs=nnx.Rngs(0))
    monkeypatch.setattr(models, "load", lambda name: models.Checkpoint(model, Words(), config))
    monkeypatch.setattr(decoding_runs, "TOP_K", 10)


def run(name, folder, *options):
    assert entry.main([name, "--out", str(folder), *map(str, options)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.csv", f"{name}.png"]
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_block_efficiency(tmp_path, monkeypatch, capsys):
    settings = [decoding_runs.Setting("chains", "gls", num_drafts=2, length=2)]
    monkeypatch.setattr(block_efficiency, "chains", lambda: settings)
    sizes = ["--num-prompts", 6, "--rounds", 3, "--seeds", 2]
    rows = run("block_efficiency", tmp_path, "--parts", "chains", *sizes)
    assert [row["scheme"] for row in rows] == ["gls"]
    for row in rows:
        assert int(row["rounds"]) == 6 * 3 * 2
        assert 1 < float(row["block_efficiency"]) <= 3
    assert "tokens per call" in capsys.readouterr().out


def test_per_token(tmp_path):
    (row,) = run("per_token", tmp_path, "--num-prompts", 10, "--rounds", 20, "--num-drafts", 2)
    exact, measured, error = (float(row[name]) for name in ("exact", "measured", "standard_error"))
    assert int(row["num_positions"]) == 200
    assert abs(measured - exact) < 5 * error  # fails by chance once in 10^6
    assert float(row["bound"]) <= exact + 1e-6


def test_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(same_seed, "SCHEMES", ("gumbel_topk",))
    rows = run("same_seed", tmp_path, "--num-prompts", 4, "--new-tokens", 6)
    assert [row["against"] for row in rows] == ["T = 0.5", "fewer layers", "none"]
    assert all(int(row["exact"]) == 4 and float(row["rouge_l"]) == 1 for row in rows)


def test_tree_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tree_budget, "MANY_DRAFTS", ("topk", "gumbel_topk"))
    monkeypatch.setattr(tree_budget, "ONE_DRAFT", ("topk", "block"))
    monkeypatch.setattr(tree_budget, "ESTIMATED", ("specinfer_wor",))
    # Short lists, which compile faster.
    monkeypatch.setattr(budget_shapes, "WIDEST", 2)
    monkeypatch.setattr(text_rounds, "MOST_DRAFTS", 2)
    monkeypatch.setattr(text_rounds, "_LONGEST_LIST", 2)
    monkeypatch.setattr(tree_budget, "CHILDREN", 2)
    sizes = ["--num-prompts", 4, "--new-tokens", 18, "--rounds", 2, "--batch", 2]
    options = ["--nodes", 8, "--decoded-nodes", 8, "--temperatures", 0, 1]
    rows = run("tree_budget", tmp_path, *sizes, *options)
    kinds = {(row["temperature"], row["scheme"], row["tree"], row["how"]) for row in rows}
    greedy_trees = ["one chain", "chains", "static", "ceiling", "best-first"]
    assert len(kinds) == len(rows)
    assert [row["tree"] for row in rows if row["temperature"] == "0.0"] == greedy_trees
    assert ("1.0", "gumbel_topk", "margin", "decoded") in kinds
    assert ("0.0", "topk", "best-first", "replayed") in kinds
    assert ("1.0", "specinfer_wor", "static", "estimated") in kinds
    assert ("1.0", "traversal", "static", "decoded") in kinds
    for row in rows:
        assert int(row["rounds"]) == 4 * 2
        assert 1 <= float(row["tokens_per_call"]) <= 9
        # No shape of the same candidates has more tokens, along the same texts.
        if row["tree"] == "ceiling" and row["scheme"] == "topk":
            assert float(row["gain_over_best_first"]) >= 0
    assert "specinfer_wor" in capsys.readouterr().out


def test_rouge():
    words = ["the", "cat", "sat", "on", "the", "mat"]
    other_words = ["the", "cat", "lay", "on", "the", "red", "mat"]
    assert same_seed.rouge(words, words) == (1, 1, 1)
    assert same_seed.rouge(words, ["dog"]) == (0, 0, 0)
    scores = same_seed.rouge(words, other_words)
    np.testing.assert_allclose(scores, (2 * 5 / 13, 2 * 2 / 11, 2 * 5 / 13))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["block_efficiency", "--parts", "lists"],
            "parts: expected some of chains, diverse, shapes, got 'lists'",
        ),
        (["block_efficiency", "--num-prompts", "51"], "num_prompts: expected at most 50, got 51"),
        (["tree_budget", "--nodes", "7"], "nodes: expected some of 8, 16, 32, 64, got 7"),
        (["tree_budget", "--num-prompts", "1"], "num_prompts: expected at least 2, got 1"),
        (["per_token", "--num-drafts", "0"], "num_drafts: expected an int of at least 1, got 0"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    assert entry.main([*options, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err


def test_outside_module_with_its_cache(capsys):
    """Its text is that of evaluating all anew, and chains in its cache (`main`) do not change it."""
    vocab, width = 12, 8
    model = outside_model.Outside(vocab, width, nnx.Rngs(0))
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda x: 3 * x, params)
    target = outside_model.bring(nnx.merge(graph, params), vocab, width)

    def anew(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        cache = target.init_cache(*tokens.shape)
        return target.apply(params, tokens, positions, None, cache)[0]

    whole = decoding.from_function(anew, params, vocab)
    prompts = [[1, 2, 3], [4], [5, 6]]
    cached, uncached = [
        decoding.generate(jax.random.key(1), model, None, prompts, max_new_tokens=12)
        for model in (target, whole)
    ]
    assert (cached.tokens == uncached.tokens).all()
    outside_model.main()
    assert "the same text: True" in capsys.readouterr().out
