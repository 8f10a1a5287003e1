"""A dump holds the models' distributions, cut as it says; a killed one is resumed; a broken one gives one clear line."""

import json

import jax
import numpy as np
import pytest

from gls_jax import decoding, distributions
from gls_jax.distributions import Sampling
from gls_jax.runs import files
from tests.distributions.small_dump import (
    DRAFTER,
    NUM_KEPT,
    NUM_POSITIONS,
    NUM_TOKENS,
    TARGET,
    documents,
    logits,
    write,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"))


def expected_probabilities(seed, token, temperature):
    """What the model of a seed predicts after a token."""
    log_probs = decoding.log_probs(logits(seed)[token], temperature=temperature, top_k=9)
    return np.exp(np.asarray(log_probs))


def test_rows_are_the_models_distributions_at_every_position(dump):
    chunks = documents(0)
    texts = [document for chunk in (next(chunks) for _ in range(3)) for document in chunk]
    places = [(text, at) for text in texts for at in range(text.start, len(text.tokens))]
    assert len(dump) == NUM_POSITIONS and dump.finished
    for row, (text, at) in enumerate(places[:NUM_POSITIONS]):
        p = expected_probabilities(1, text.tokens[at - 1], 1.3)
        q = expected_probabilities(0, text.tokens[at - 1], 0.8)
        tokens = dump.rows.tokens[row]
        used = tokens[tokens >= 0]
        assert dump.rows.begins[row] == (at == text.start) and tokens[0] == text.tokens[at]
        assert len(set(used)) == len(used)
        assert set(used) == {
            text.tokens[at],
            *np.argsort(-p)[:NUM_KEPT],
            *np.argsort(-q)[:NUM_KEPT],
        }
        for probabilities, log_probs, tails in (
            (p, dump.rows.log_p, dump.rows.tail_p),
            (q, dump.rows.log_q, dump.rows.tail_q),
        ):
            kept = np.exp(log_probs[row][tokens >= 0])
            np.testing.assert_allclose(kept, probabilities[used], atol=1e-6)
            assert tails[row] == pytest.approx(1 - probabilities[used].sum(), abs=1e-6)


def test_disjoint_and_merged_tails(dump):
    rows, no_mass = dump.rows, np.zeros(NUM_POSITIONS)
    assert (rows.tail_p > 0).mean() > 0.5 and (rows.tail_q > 0).mean() > 0.5
    p = np.column_stack([np.exp(rows.log_p), rows.tail_p, no_mass])
    for tails, tail_q in (
        ("disjoint", [no_mass, rows.tail_q]),
        ("merged", [rows.tail_q, no_mass]),
    ):
        q = np.column_stack([np.exp(rows.log_q), *tail_q])
        for log_probs, expected in zip(dump.pairs(tails=tails), (p, q), strict=True):
            np.testing.assert_allclose(np.exp(log_probs), expected, atol=1e-6)
            np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="tails: expected one of disjoint, merged, got 'other'"):
        dump.pairs(tails="other")


def test_text_is_sampled_at_the_targets_temperature():
    cold = Sampling(temperature=1e-3, draft_temperature=9)
    chunks = distributions.sampled_texts(
        jax.random.key(3), TARGET, [[1], [2, 5]], cold, length=9, batch=2
    )
    text, _ = next(chunks)
    assert [logits(0)[token].argmax() for token in text.tokens[:-1]] == list(text.tokens[1:])


def test_killed_dump_is_resumed(dump, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    folder = tmp_path / "d"
    with pytest.raises(KeyboardInterrupt):
        write(folder, progress=stop)
    part = distributions.open_dump(folder)
    assert 0 < len(part) < NUM_POSITIONS and not part.finished
    # A chunk that was half written.
    np.lib.format.open_memmap(folder / "log_p.npy", mode="r+")[len(part) :] = 7
    with pytest.raises(ValueError, match="a dump is here; resume=True or --resume continues it"):
        write(folder)
    with pytest.raises(ValueError, match=r"got a dump of another one \(sampling\)"):
        write(folder, Sampling(), resume=True)
    seen = []
    whole = write(folder, resume=True, progress=lambda done, total: seen.append(done))
    assert seen[0] > len(part) and seen[-1] == NUM_POSITIONS
    for resumed, uninterrupted in zip(whole.rows, dump.rows, strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)
    write(folder, resume=True, progress=stop)  # nothing left to do


def test_half_precision_reports_its_error(dump, tmp_path):
    half = write(tmp_path, dtype="float16")
    errors = []
    for rounded, exact in (
        (half.rows.log_p, dump.rows.log_p),
        (half.rows.log_q, dump.rows.log_q),
    ):
        # Impossible tokens are stored as -inf in both.
        is_finite = np.isfinite(exact)
        np.testing.assert_array_equal(rounded[~is_finite], exact[~is_finite])
        errors.append(np.abs(rounded[is_finite].astype(np.float32) - exact[is_finite]).max())
    assert min(errors) > 0 and half.log_prob_error == pytest.approx(max(errors), rel=1e-6)
    assert half.log_prob_error < 0.01 and dump.log_prob_error == 0


def write_text(folder, text, **options):
    """A dump of a user's text in pieces of four tokens."""
    return distributions.write(
        folder,
        TARGET,
        DRAFTER,
        lambda first: distributions.text_pieces([text], 4, first),
        Sampling(),
        context_length=4,
        metadata={},
        **options,
    )


def test_users_text_is_read_in_pieces(tmp_path):
    dump = write_text(tmp_path, [1, 4, 2, 2, 8, 3, 1], num_positions=99, num_kept=NUM_TOKENS)
    assert dump.rows.tokens[:, 0].tolist() == [4, 2, 2, 3, 1]
    assert dump.rows.begins.tolist() == [1, 0, 0, 1, 0]
    assert not dump.rows.tail_p.any()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("dump.json", "{", "expected the manifest of a dump, got a file that cannot be read"),
        ("dump.json", '{"format": 9}', "expected format 1, got 9"),
        (
            "dump.json",
            '{"format": 1}',
            r"dump\.json: expected the manifest of a dump \(format 1, .*got another one",
        ),
        (
            "dump.json",
            "[]",
            r"dump\.json: expected the manifest of a dump \(format 1, .*got another one",
        ),
        ("log_q.npy", "", "the array log_q of a dump"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, line):
    write(tmp_path, num_positions=5)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=line):
        distributions.open_dump(tmp_path)


@pytest.mark.parametrize(
    "change", [{"done": 6}, {"done": -1}, {"done": 2.5}, {"finished": 1}, {"asked": {"width": 7}}]
)
def test_invalid_manifest_is_refused(tmp_path, change):
    write(tmp_path, num_positions=5)
    content = json.loads((tmp_path / "dump.json").read_text())
    (tmp_path / "dump.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"expected the manifest of a dump .*got another one"):
        distributions.open_dump(tmp_path)


def test_shortened_array_is_not_filled_up(tmp_path):
    write(tmp_path, num_positions=5)
    path = tmp_path / "tail_q.npy"
    path.write_bytes(path.read_bytes()[:-8])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"tail_q\.npy: expected the array tail_q.*cannot be read"):
        write(tmp_path, num_positions=5, resume=True)
    assert path.read_bytes() == before
    np.save(path, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"got float32 of shape \[3\]"):
        write(tmp_path, num_positions=5, resume=True)


def test_text_without_a_position_leaves_no_files(tmp_path):
    with pytest.raises(ValueError, match="context_length: expected at least 2 tokens, got 1"):
        write(tmp_path / "d", context_length=1)
    with pytest.raises(ValueError, match="expected a position in the first chunk, got none"):
        write_text(tmp_path, [3], num_positions=9)
    assert not list(tmp_path.iterdir())


def test_second_run_in_a_folder_is_refused(tmp_path):
    with (
        files.alone(tmp_path),
        pytest.raises(BlockingIOError, match="another run is using it"),
    ):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_without_a_dump(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a dump"):
        distributions.open_dump(tmp_path)
