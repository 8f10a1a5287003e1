"""Public samplers under the signatures of the conformance kit, a few lines each.

Nothing of theirs is stored here: :mod:`experiments.package_files` loads them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import random
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import package_files
from gls_jax.adapters import tpu_inference
from gls_jax.conformance.languages import LONGEST_CHAIN

__all__ = ["SAMPLERS", "Sampler"]

_SEEDS_PER_CALL = 1_000_003  # a prime above the requests of a call
_KIT_WIDTH = LONGEST_CHAIN + 1  # tokens of an answer


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A public sampler.

    Attributes:
        function: its name in its package.
        package: on PyPI, or one of this repository.
        version: that is downloaded; None takes the installed one.
        load: ``folder -> verifier`` of the kit; the folder keeps what is downloaded.
        options: of `gls_jax.conformance.check`.
    """

    function: str
    package: str
    version: str | None
    load: Callable[[Path], Any]
    options: Mapping[str, Any]

    @property
    def loaded_version(self) -> str:
        return self.version or importlib.metadata.version(self.package)


def _with_bonus_row(q: np.ndarray, bonus: int) -> np.ndarray:
    """The target's rows, and one behind them in which the bonus token is certain."""
    row = np.zeros((1, q.shape[1]), np.float32)
    row[0, bonus] = 1
    return np.concatenate([q, row])


def _by_request(sample: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A ragged verifier of ``sample(drafts, p, q) -> tokens``, called for each request alone.

    `q` has a row more than there are drafts. Each call has a seed of its own.
    """
    torch = _torch()

    def verify(seed, drafts, lengths, p, q, bonus):
        answer = np.full((len(lengths), _KIT_WIDTH), -1, np.int32)
        for request, (length, end) in enumerate(zip(lengths, np.cumsum(lengths), strict=True)):
            rows = slice(end - length, end)
            torch.manual_seed(seed * _SEEDS_PER_CALL + request)
            tokens = [bonus[request]]
            if length:
                target = _with_bonus_row(q[rows], bonus[request])
                arrays = (torch.from_numpy(np.array(a)) for a in (drafts[rows], p[rows], target))
                tokens = sample(*arrays)
            answer[request, : len(tokens)] = tokens
        return answer

    return verify


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise package_files.Unavailable(
            "torch is not installed; make samplers installs it"
        ) from None
    torch.set_num_threads(1)  # more of them cost more than such small arrays
    return torch


def _transformers(folder: Path) -> Callable[..., np.ndarray]:
    _torch()
    utils = importlib.import_module("transformers.generation.utils")

    def sample(drafts, p, q):
        tokens, _ = utils._speculative_sampling(
            drafts.long()[None], p.log()[None], len(drafts), q.log()[None]
        )
        return tokens[0].numpy()

    return _by_request(sample)


def _tpu_inference(folder: Path, *, has_draft_probs: bool) -> Callable[..., Any]:
    module = package_files.module(
        "tpu-inference",
        "0.32.0",
        "tpu_inference/layers/jax/sample/rejection_sampler.py",
        folder,
        ("tpu_inference",),
    )

    def verify(key, drafts, lengths, p, q, bonus):
        p = p if has_draft_probs else None
        return _unflattened(
            module.rejection_sample(drafts, lengths, p, q, bonus, True, key), lengths
        )

    return verify


def _unflattened(answer: Any, lengths: Any) -> Any:
    """tpu-inference's `[T + B]` as `[B, 4]`."""
    num_drafts = answer.shape[0] - lengths.shape[0]
    place = jnp.arange(_KIT_WIDTH)
    rows = jnp.cumsum(lengths)[:, None] - lengths[:, None] + place
    main = jnp.where(place < lengths[:, None], answer[jnp.minimum(rows, num_drafts - 1)], -1)
    count = jnp.sum(main >= 0, axis=1, keepdims=True)
    return jnp.where(place == count, answer[num_drafts:, None], main)


def _litgpt(folder: Path) -> Callable[..., np.ndarray]:
    torch = _torch()
    version, stubs = "0.5.13", ("litgpt", "lightning")
    base = package_files.module("litgpt", version, "litgpt/generate/base.py", folder, stubs)
    module = package_files.module(
        "litgpt",
        version,
        "litgpt/generate/speculative_decoding.py",
        folder,
        stubs,
        {"litgpt.generate.base": base},
    )

    def sample(drafts, p, q):
        # It drafts by itself: its first samples are replaced by the kit's drafts.
        scripted = [draft[None].long() for draft in drafts]

        def draw(probs):
            return scripted.pop(0) if scripted else base.multinomial_num_samples_1(probs)

        module.multinomial_num_samples_1 = draw
        # The last row is for its cache only.
        rows = iter([*p.log(), p[-1].log()])
        return module.speculative_decoding(
            draft_model=lambda **_: next(rows)[None, None],
            target_model=lambda **_: q.log()[None],
            token=torch.tensor([0]),
            input_pos=torch.tensor([0]),
            input_pos_maxp1=1,
            speculative_k=len(drafts),
        ).numpy()

    return _by_request(sample)


def _flashspec(folder: Path) -> Callable[..., np.ndarray]:
    torch = _torch()
    file = "flashspec/sampling/rejection.py"
    module = package_files.module("flashspec", "0.3.1", file, folder, ("flashspec",))

    def sample(drafts, p, q):
        count, token = module.rejection_step(
            drafts.long()[None], p.log()[None], q.log()[None], generator=torch.default_generator
        )[0].tolist()
        return [*drafts[:count].tolist(), token]

    return _by_request(sample)


def _rotalabs(folder: Path) -> Callable[..., int]:
    torch = _torch()
    file = "rotalabs_accel/speculative/sampling.py"
    module = package_files.module("rotalabs-accel", "1.1.1", file, folder, ("rotalabs_accel",))

    def verify(seed, drafts, draft_probs, target_probs):
        torch.manual_seed(seed)
        draft, q = torch.tensor(int(drafts[0])), torch.from_numpy(target_probs)
        draft_prob = torch.tensor(float(draft_probs[0, draft]))
        _, token = module.rejection_sample(q[draft], draft_prob, draft, q.log())
        return int(token)

    return verify


_VLLM = ("vllm-tpu", "0.21.0", "vllm/v1/sample/rejection_sampler.py")


def _vllm(folder: Path) -> Callable[..., np.ndarray]:
    """vLLM's Triton kernels in Triton's own interpreter for CPUs."""
    _torch()
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is None:
        target = folder / "triton"
        if not target.exists():
            with package_files.wheel("triton", "3.9.0", folder) as wheel:
                wheel.extractall(target)
        sys.path.append(str(target))
    triton = importlib.import_module("triton")
    utils = types.SimpleNamespace(triton=triton, tl=importlib.import_module("triton.language"))
    module = package_files.module(*_VLLM, folder, ("vllm",), {"vllm.triton_utils": utils})
    # It takes logits; the kit has probabilities.
    return _vllm_batches(
        lambda *arrays: module.rejection_sample(*arrays[:5], arrays[5].log(), *arrays[6:])
    )


def _vllm_rbln(folder: Path) -> Callable[..., np.ndarray]:
    _torch()
    # It imports only the function of vLLM that draws uniforms.
    triton = types.SimpleNamespace(jit=lambda function=None, **_: function or (lambda f: f))
    utils = types.SimpleNamespace(triton=triton, tl=package_files.EmptyModule("triton.language"))
    upstream = package_files.module(*_VLLM, folder, ("vllm",), {"vllm.triton_utils": utils})
    version, stubs = "0.12.0", ("vllm", "vllm_rbln", "rebel")
    samples, constants_module = "vllm_rbln/v1/sample/", "vllm_rbln.v1.sample.ops.top_k_top_p"
    real = {
        "vllm.v1.sample.rejection_sampler": upstream,
        constants_module: package_files.module(
            "vllm-rbln", version, f"{samples}ops/top_k_top_p.py", folder, stubs
        ),
    }
    file = f"{samples}rbln_rejection_sampler.py"
    module = package_files.module("vllm-rbln", version, file, folder, stubs, real)
    return _vllm_batches(module.torch_rejection_sample)


def _vllm_batches(rejection_sample: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """vLLM's signature: all requests of a call, of which each has a generator of its own."""
    torch = _torch()

    def verify(seed, drafts, lengths, p, q, bonus):
        num_requests = len(lengths)
        seeds = seed * _SEEDS_PER_CALL + np.arange(num_requests)
        generators = {b: torch.Generator().manual_seed(int(s)) for b, s in enumerate(seeds)}
        metadata = types.SimpleNamespace(
            all_greedy=False,
            all_random=True,
            generators=generators,
            temperature=torch.ones(num_requests),
        )
        drafts, ends, p, q, bonus = (
            torch.from_numpy(np.array(array, order="C"))
            for array in (drafts, np.cumsum(lengths), p, q, bonus)
        )
        last = (bonus[:, None], metadata)
        counts, width = lengths.tolist(), _KIT_WIDTH - 1
        return rejection_sample(drafts, counts, width, ends, p, q, *last).numpy()

    return verify


def _eagle(folder: Path) -> Callable[..., np.ndarray]:
    """EAGLE's verification of a tree, whose siblings are drawn without replacement."""
    torch = _torch()
    module = package_files.module("eagle-llm", "1.2.1", "eagle/model/utils.py", folder, ())

    def verify(seed, tokens, parents, draft_probs, target_probs):
        random.seed(seed)
        torch.manual_seed(seed)
        paths, earlier = _paths_and_siblings(parents)
        num_paths, width = len(paths), max(map(len, paths))
        shape = (num_paths, width)
        # Row 0 is the root, row i + 1 node i. Paths begin with the root and are filled up with -1.
        candidates, chances = np.full(shape, -1), np.zeros(shape, np.float32)
        rows = np.zeros(shape, int)
        before: list[list[list[int]]] = [[[] for _ in range(width)] for _ in paths]
        for number, path in enumerate(paths):
            candidates[number, 0] = 0
            for place, row in enumerate(path[1:], 1):
                rows[number, place] = row
                candidates[number, place] = tokens[row - 1]
                before[number][place] = earlier[row]
                p = draft_probs[row - 1]
                # EAGLE divides by the mass that earlier siblings left.
                left = 1 - p[tokens[np.array(earlier[row], int) - 1]].sum()
                # As its drafter has it: 0 for a draft that fills up a list.
                chance = p[tokens[row - 1]] / left if left > 0 else 0
                chances[number, place] = np.clip(chance, 0, 1)
        best, count, probs = module.evaluate_posterior(
            torch.from_numpy(target_probs[rows]).log(),
            torch.from_numpy(candidates),
            lambda _, logits: logits,
            torch.from_numpy(chances),
            [torch.from_numpy(draft_probs)] * width,
            rows - 1,
            torch.from_numpy(np.append(0, tokens))[None],
            before,
        )
        answer = np.full(width, -1)
        answer[: int(count)] = candidates[int(best), 1 : int(count) + 1]
        answer[int(count)] = torch.multinomial(probs, 1)
        return answer

    return verify


def _paths_and_siblings(parents: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    """Rows from the root to each leaf, and of every row its siblings that were drafted before."""
    paths: list[list[int]] = [[0]]
    for parent in parents.tolist():
        paths.append([*paths[parent], len(paths)])
    has_children = set(parents.tolist())
    leaves = [path for path in paths if path[-1] not in has_children]
    earlier: list[list[int]] = [[]]
    for row, parent in enumerate(parents.tolist(), 1):
        earlier.append([other + 1 for other in range(row - 1) if parents[other] == parent])
    # Depth first, so that siblings are tried in the order in which they were drawn.
    return sorted(leaves), earlier


def _own(folder: Path) -> Callable[..., Any]:
    sampler = tpu_inference.rejection_sampler("block", max_draft_tokens=_KIT_WIDTH - 1)

    def verify(key, drafts, lengths, p, q, bonus):
        return _unflattened(sampler(drafts, lengths, p, q, bonus, True, key), lengths)

    return verify


def _ragged(**options: Any) -> dict[str, Any]:
    return {"kind": "ragged", **options}


def _tpu(has_draft_probs: bool) -> Callable[[Path], Any]:
    return partial(_tpu_inference, has_draft_probs=has_draft_probs)


_SEEDED = _ragged(noise="seed")
SAMPLERS: dict[str, Sampler] = {
    "gls_jax": Sampler("adapters, scheme block", "gls_jax", None, _own, _ragged()),
    "transformers": Sampler("_speculative_sampling", "transformers", None, _transformers, _SEEDED),
    "tpu-inference": Sampler("rejection_sample", "tpu-inference", "0.32.0", _tpu(True), _ragged()),
    "tpu-inference, no draft_probs": Sampler(
        "rejection_sample", "tpu-inference", "0.32.0", _tpu(False), _ragged()
    ),
    "vllm": Sampler("rejection_sample", "vllm-tpu", "0.21.0", _vllm, _SEEDED),
    "vllm-rbln": Sampler("torch_rejection_sample", "vllm-rbln", "0.12.0", _vllm_rbln, _SEEDED),
    "litgpt": Sampler("speculative_decoding", "litgpt", "0.5.13", _litgpt, _SEEDED),
    "flashspec": Sampler("rejection_step", "flashspec", "0.3.1", _flashspec, _SEEDED),
    "eagle-llm": Sampler(
        "evaluate_posterior",
        "eagle-llm",
        "1.2.1",
        _eagle,
        {"kind": "tree", "noise": "seed", "without_replacement": True},
    ),
    "rotalabs-accel": Sampler(
        "rejection_sample",
        "rotalabs-accel",
        "1.1.1",
        _rotalabs,
        {"kind": "token", "noise": "seed", "max_drafts": 1},
    ),
}
