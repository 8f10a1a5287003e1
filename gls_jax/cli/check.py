"""`gls-jax check`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from typing import Annotated, ClassVar, Literal

import tyro

from gls_jax import conformance
from gls_jax.cli.console import print_json, progress
from gls_jax.conformance import calling, verifier_location

__all__ = ["Check"]


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether a verifier is lossless: token, batched rejection sampler, tree or shared noise.

    The signature of each kind: python -c "import gls_jax.conformance as c; help(c)". Exit code 0
    where nothing was found, 1 where something was, 2 for bad input.
    """

    verifier: Annotated[str, tyro.conf.Positional]
    """MODULE:FUNCTION or path/to/file.py:FUNCTION. The module is imported, which runs its code."""
    kind: str
    """Signature of the verifier: `token`, `ragged`, `tree` or `shared`."""
    seed: int = 0
    """Seed of all noise."""
    noise: Literal["key", "seed"] = "key"
    """What the verifier takes as its first argument: a JAX `key`, or an int `seed`."""
    num_trials: int = 100_000
    """Trials of each problem, at most."""
    problems: tuple[str, ...] | None = None
    """Names of the problems to try. Default: all of the kind."""
    max_drafts: int | None = None
    """Largest number of drafts that the verifier takes. Default: any."""
    max_vocabulary: int | None = None
    """Largest vocabulary that the verifier takes. Default: any."""
    acceptance: str | None = None
    """Name of the scheme whose exact acceptance the verifier claims. Default: none."""
    separate_keys: bool = False
    """The drafter never sees the verifier's key: do not try drafts made from the same key."""
    without_replacement: bool = False
    """Only with --kind tree: siblings are distinct."""
    time_limit: float = 120.0
    """Seconds; slow verifiers get fewer trials."""
    json: bool = False
    """Print one JSON object instead of a table."""
    resumable: ClassVar[bool] = False

    def run(self) -> int:
        """Check, print, and return the exit code."""
        options = dataclasses.asdict(self)
        as_json, location = options.pop("json"), options.pop("verifier")
        with contextlib.redirect_stdout(sys.stderr):
            verifier = verifier_location.load(location)
        # What the verifier prints goes to stderr, so that stdout is the report alone.
        with contextlib.redirect_stdout(sys.stderr), progress() as report:
            found = conformance.check(verifier, **options, progress=report)
        if as_json:
            print_json(found.as_json())
        else:
            print(found)
        exit_code = 0 if found.passed else 1
        if calling.is_left_running():
            # Ending it in the usual way would abort, with another exit code.
            sys.stdout.flush()
            os._exit(exit_code)
        return exit_code
