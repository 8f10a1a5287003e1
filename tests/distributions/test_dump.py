"""A dump holds the models' laws, cut as it says; a killed one goes on; a broken one gives one clear line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, distributions, schemes, studies
from gls_jax.distributions import Sampling
from gls_jax.runs import files

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS, KEPT, POSITIONS = 12, 3, 50


def _read(params, tokens):
    return params[tokens]


def logits(seed):
    return np.random.default_rng(seed).normal(size=(TOKENS, TOKENS)).astype(np.float32) * 2


TARGET, DRAFTER = (
    decoding.from_function(_read, jnp.asarray(logits(seed)), TOKENS) for seed in (0, 1)
)
SAMPLING = Sampling(temperature=0.8, draft_temperature=1.3, top_k=9)


def documents(first):
    return distributions.own_texts(
        jax.random.key(3), TARGET, [[1], [2, 5]], SAMPLING, length=9, batch=2, first=first
    )


def write(folder, sampling=SAMPLING, positions=POSITIONS, **options):
    given = {
        "num_positions": positions,
        "context": 11,
        "num_kept": KEPT,
        "facts": {"own_text": True},
    }
    return distributions.write(folder, TARGET, DRAFTER, documents, sampling, **given | options)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"))


def test_laws_of_every_position(dump):
    chunks = documents(0)
    texts = [document for chunk in (next(chunks) for _ in range(3)) for document in chunk]
    places = [(text, at) for text in texts for at in range(text.start, len(text.tokens))][
        :POSITIONS
    ]
    assert len(dump) == POSITIONS and dump.facts["finished"]
    for row, (text, at) in enumerate(places):
        p, q = (
            np.exp(
                np.asarray(
                    decoding.log_probs(
                        logits(seed)[text.tokens[at - 1]], temperature=temperature, top_k=9
                    )
                )
            )
            for seed, temperature in ((1, 1.3), (0, 0.8))
        )
        ids = dump.rows.tokens[row]
        used = ids[ids >= 0]
        assert dump.rows.begins[row] == (at == text.start) and ids[0] == text.tokens[at]
        assert len(set(used)) == len(used)
        assert set(used) == {text.tokens[at], *np.argsort(-p)[:KEPT], *np.argsort(-q)[:KEPT]}
        for law, listed, tail in (
            (p, dump.rows.log_p, dump.rows.tail_p),
            (q, dump.rows.log_q, dump.rows.tail_q),
        ):
            np.testing.assert_allclose(np.exp(listed[row][ids >= 0]), law[used], atol=1e-6)
            assert tail[row] == pytest.approx(1 - law[used].sum(), abs=1e-6)


def test_tails_apart_and_shared(dump):
    rows, none = dump.rows, np.zeros(POSITIONS)
    assert (rows.tail_p > 0).mean() > 0.5 and (rows.tail_q > 0).mean() > 0.5
    p = np.column_stack([np.exp(rows.log_p), rows.tail_p, none])
    for tails, tail_q in (("apart", [none, rows.tail_q]), ("shared", [rows.tail_q, none])):
        q = np.column_stack([np.exp(rows.log_q), *tail_q])
        for law, expected in zip(dump.pairs(tails=tails), (p, q), strict=True):
            np.testing.assert_allclose(np.exp(law), expected, atol=1e-6)
            np.testing.assert_allclose(np.exp(law).sum(1), 1, atol=1e-6)


def test_the_text_is_sampled_at_the_targets_temperature():
    cold = Sampling(temperature=1e-3, draft_temperature=9)
    text, _ = next(
        distributions.own_texts(jax.random.key(3), TARGET, [[1], [2, 5]], cold, length=9, batch=2)
    )
    assert [logits(0)[token].argmax() for token in text.tokens[:-1]] == list(text.tokens[1:])


def test_a_killed_dump_goes_on(dump, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", progress=stop)
    part = distributions.open_dump(tmp_path / "d")
    assert 0 < len(part) < POSITIONS and not part.facts["finished"]
    np.lib.format.open_memmap(tmp_path / "d" / "log_p.npy", mode="r+")[len(part) :] = (
        7  # a chunk half written
    )
    with pytest.raises(ValueError, match="a dump is here; --resume goes on with it"):
        write(tmp_path / "d")
    with pytest.raises(ValueError, match="was asked something else"):
        write(tmp_path / "d", Sampling(), resume=True)
    seen = []
    whole = write(tmp_path / "d", resume=True, progress=lambda done, total: seen.append(done))
    assert seen[0] > len(part) and seen[-1] == POSITIONS
    for one, other in zip(whole.rows, dump.rows, strict=True):
        np.testing.assert_array_equal(one, other)
    write(tmp_path / "d", resume=True, progress=stop)  # nothing left to do


def test_half_precision_says_what_it_loses(dump, tmp_path):
    half = write(tmp_path, dtype="float16")
    seen = np.isfinite(dump.rows.log_q)
    worst = max(
        np.abs(one[seen].astype(np.float32) - other[seen]).max()
        for one, other in ((half.rows.log_p, dump.rows.log_p), (half.rows.log_q, dump.rows.log_q))
        if np.isfinite(other[seen]).all()
    )
    assert 0 < worst <= half.facts["log_prob_error"] < 0.01 and dump.facts["log_prob_error"] == 0


def test_a_users_text_in_pieces(tmp_path):
    text = [1, 4, 2, 2, 8, 3, 1]
    own = {"num_positions": 99, "context": 4, "num_kept": TOKENS, "facts": {}}
    dump = distributions.write(
        tmp_path,
        TARGET,
        DRAFTER,
        lambda first: distributions.pieces([text], 4, first),
        Sampling(),
        **own,
    )
    assert dump.rows.tokens[:, 0].tolist() == [4, 2, 2, 3, 1] and dump.rows.begins.tolist() == [
        1,
        0,
        0,
        1,
        0,
    ]
    assert not dump.rows.tail_p.any()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("dump.json", "{", "expected the facts of a dump, got a file that cannot be read"),
        ("dump.json", '{"format": 9}', "expected format 1, got 9"),
        (
            "dump.json",
            '{"format": 1}',
            r"dump\.json: expected the facts of a dump \(asked .*got other ones",
        ),
        ("dump.json", "[]", r"dump\.json: expected the facts of a dump \(asked .*got other ones"),
        ("log_q.npy", "", "the array log_q of a dump"),
    ],
)
def test_broken_files(tmp_path, name, content, line):
    write(tmp_path, positions=5)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=line):
        distributions.open_dump(tmp_path)


@pytest.mark.parametrize(
    "change", [{"done": 6}, {"done": -1}, {"done": 2.5}, {"finished": 1}, {"asked": {"width": 7}}]
)
def test_facts_that_were_never_written(tmp_path, change):
    facts = write(tmp_path, positions=5).facts
    (tmp_path / "dump.json").write_text(json.dumps(facts | change))
    with pytest.raises(ValueError, match=r"expected the facts of a dump .*got other ones"):
        distributions.open_dump(tmp_path)


def shorten(path):
    """Cut the file's last bytes off."""
    path.write_bytes(path.read_bytes()[:-8])


def test_a_shortened_file_is_not_filled_up(dump, tmp_path):
    write(tmp_path / "dump", positions=5)
    studies.position_acceptance(dump, tmp_path / "sweep", names=["gls"], num_drafts=[1])
    for path, again, line in (
        (
            tmp_path / "dump" / "tail_q.npy",
            lambda: write(tmp_path / "dump", positions=5, resume=True),
            "array tail_q",
        ),
        (
            tmp_path / "sweep" / "acceptance.npy",
            lambda: studies.position_acceptance(
                dump, tmp_path / "sweep", names=["gls"], num_drafts=[1], resume=True
            ),
            "values of a sweep, float32",
        ),
    ):
        shorten(path)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=f"{path.name}: expected the {line}.*cannot be read"):
            again()
        assert path.read_bytes() == before
        np.save(path, np.zeros(3, np.float32))
        with pytest.raises(ValueError, match=r"got float32 of shape \[3\]"):
            again()


def test_a_text_without_a_position_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="context: expected at least 2 tokens, got 1"):
        write(tmp_path / "d", context=1)
    own = {"num_positions": 9, "context": 4, "facts": {}}
    with pytest.raises(ValueError, match="expected a position in the first chunk, got none"):
        distributions.write(
            tmp_path,
            TARGET,
            DRAFTER,
            lambda first: distributions.pieces([[3]], 4, first),
            Sampling(),
            **own,
        )
    assert not list(tmp_path.iterdir())


def test_one_run_a_folder(dump, tmp_path):
    with files.alone(tmp_path):
        with pytest.raises(BlockingIOError, match="another run is at work"):
            write(tmp_path)
        with pytest.raises(BlockingIOError, match="another run is at work"):
            studies.position_acceptance(dump, tmp_path, names=["gls"], num_drafts=[1])
    assert not list(tmp_path.iterdir())


def test_no_dump(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a dump"):
        distributions.open_dump(tmp_path)


def test_sweep_is_the_exact_acceptance_and_resumes(dump, tmp_path):
    ask = {"names": ["gls", "single"], "num_drafts": [1, 3]}
    means = studies.position_acceptance(dump, tmp_path / "whole", **ask)
    values = np.load(tmp_path / "whole" / "acceptance.npy")
    for reading, tails in enumerate(("apart", "shared")):
        exact = jax.vmap(lambda p, q: schemes.get("gls").acceptance_curve(p, q, (1, 3)))(
            *dump.pairs(tails=tails)
        )
        np.testing.assert_allclose(values[0, :, :, reading], exact, atol=1e-6)
    apart, shared = values[0, :, :, 0], values[0, :, :, 1]
    assert (apart <= shared + 1e-6).all() and (
        shared - apart
    ).mean() > 0.01  # a draft in a shared tail may match
    assert means[0].apart == pytest.approx(values[0, :, 0, 0].mean()) and means[3].shared is None

    def stop(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.position_acceptance(dump, tmp_path / "part", **ask, progress=stop)
    assert json.loads((tmp_path / "part" / "acceptance.json").read_text())["done"] == 1
    with pytest.raises(ValueError, match="an unfinished run is here; --resume goes on with it"):
        studies.position_acceptance(dump, tmp_path / "part", **ask)
    assert studies.position_acceptance(dump, tmp_path / "part", **ask, resume=True) == means
    with pytest.raises(ValueError, match="was asked something else"):
        studies.position_acceptance(
            dump, tmp_path / "part", names=["gls"], num_drafts=[1], resume=True
        )
    assert (
        len(studies.position_acceptance(dump, tmp_path / "part", names=["gls"], num_drafts=[1]))
        == 1
    )  # in a finished one's place


@pytest.mark.parametrize("resume", [True, False])
def test_a_broken_sweep_is_named(dump, tmp_path, resume):
    ask = {"names": ["single"], "num_drafts": [1]}
    studies.position_acceptance(dump, tmp_path, **ask)
    facts = json.loads((tmp_path / "acceptance.json").read_text())
    for content, line in (
        ("{", "expected the facts of a sweep, got a file that cannot be read"),
        ("{}", r"expected the facts of a sweep \(.*got other ones"),
        (json.dumps(facts | {"done": 2}), r"expected the facts of a sweep \(.*got other ones"),
    ):
        (tmp_path / "acceptance.json").write_text(content)
        with pytest.raises(ValueError, match=r"acceptance\.json: " + line):
            studies.position_acceptance(dump, tmp_path, **ask, resume=resume)
    (tmp_path / "acceptance.json").write_text(json.dumps(facts))
    (tmp_path / "acceptance.npy").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"acceptance\.npy: no such file; expected the values of a sweep"
    ):
        studies.position_acceptance(dump, tmp_path, **ask, resume=True)
    with pytest.raises(ValueError, match=r"schemes: expected at least one of .*got none"):
        studies.position_acceptance(dump, tmp_path, names=[], num_drafts=[1])


@pytest.mark.parametrize("name", studies.BRACKETED)
def test_truth_lies_between_the_readings(name):
    """Whole vocabularies of 60 against their likeliest 6, with heavy tails."""
    rng, items, kept, count = np.random.default_rng(0), 60, 6, 30
    z = rng.normal(size=(2, count, items)) * rng.choice([1.0, 2.0, 3.0], (count, 1))
    p, q = np.exp(np.stack([z[0], 0.6 * z[0] + 0.4 * z[1]]))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    listed = (np.argsort(np.argsort(-p)) < kept) | (np.argsort(np.argsort(-q)) < kept)
    none = np.zeros((count, 1))
    tails = [np.where(listed, 0, law).sum(1, keepdims=True) for law in (p, q)]
    readings = ((tails[0], none, none, tails[1]), (tails[0], none, tails[1], none), None)
    scheme, found = schemes.get(name), []
    counts = tuple(k for k in (1, 2, 5) if k <= (scheme.max_drafts or k))
    exact = jax.jit(jax.vmap(lambda p, q: scheme.acceptance_curve(p, q, counts)))
    for reading in readings:
        if reading is None:
            cut = [np.concatenate([law, none, none], axis=1) for law in (p, q)]
        else:
            cut = [
                np.concatenate([np.where(listed, law, 0), *reading[2 * at : 2 * at + 2]], axis=1)
                for at, law in enumerate((p, q))
            ]
        with np.errstate(divide="ignore"):
            found.append(np.asarray(exact(*(jnp.asarray(np.log(law), jnp.float32) for law in cut))))
    lower, upper, truth = found
    assert (
        (lower <= truth + 1e-5).all()
        and (truth <= upper + 1e-5).all()
        and (upper - lower).mean() > 0.01
    )
