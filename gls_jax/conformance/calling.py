"""How a verifier is called: lifted by `vmap` and compiled, or in a Python loop, within a time.

Calls are made in a thread, so that one that never returns can be given up. JAX's context managers
belong to a thread: a verifier sees the settings of the process, and not a context around `check`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Key

__all__ = ["Caller", "Noise", "VerifierError", "is_left_running", "limited", "seeds_of"]

Noise = Literal["key", "seed"]

# Numbers of one argument in one compiled call, so that temporary arrays stay small.
_NUMBERS_PER_CALL = 2**22
_THREAD = "call of a verifier"
_PATIENCE = 5  # seconds for a call to end after Ctrl-C
_TRIALS_PER_CALL = 2**12
# Fewer answers than this say nothing about a distribution.
_FEWEST_CALLS = 200


class VerifierError(Exception):
    """The verifier gave no usable answer; the message is one line, `trial` the first such trial."""

    def __init__(self, message: str, trial: int = 0):
        super().__init__(" ".join(message.split()))
        self.trial = trial


def limited(function: Callable[[], Any], seconds: float) -> Any:
    """``function()``, or :class:`VerifierError` if it has not returned after some seconds.

    Its thread is left behind then: nothing can stop a call inside of somebody else's function.
    """
    result: list[Any] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as raised:
            error.append(raised)

    thread = threading.Thread(target=run, daemon=True, name=_THREAD)
    thread.start()
    try:
        thread.join(seconds)
    except KeyboardInterrupt:
        # Most calls end soon. To leave one running could abort the process at its end.
        thread.join(_PATIENCE)
        raise
    if thread.is_alive():
        raise VerifierError(f"expected an answer within {seconds:.0f} s, got none")
    if error:
        raise error[0]
    return result[0]


def is_left_running() -> bool:
    """Whether a call that took too long goes on, which can end the process with an error."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def seeds_of(keys: Key[Array, " T"]) -> list[int]:
    """An int below 2^31 for each key, for verifiers that take seeds."""
    return (np.asarray(jax.random.key_data(keys))[:, -1] >> 1).tolist()


class Caller:
    """Calls a verifier on many trials that share some arguments.

    Attributes:
        verifier: the function, or the object whose functions others call.
        calls: how it is called, in words for the report; None before the first call.
    """

    def __init__(self, verifier: Callable[..., Any], *, noise: Noise, seconds: float):
        self.verifier = verifier
        self._noise = noise
        self._seconds = seconds
        self._compiled: Callable[..., Any] | None = None
        self.calls: str | None = None
        # A Python loop is what is left for a verifier that takes seeds.
        if noise == "seed":
            self.calls = "called in a Python loop with seeds"

    @property
    def is_compiled(self) -> bool:
        """Whether many trials are one call; False before the first call."""
        return self._compiled is not None

    def answers(
        self,
        keys: Key[Array, " T"],
        varying: Sequence[np.ndarray],
        fixed: Sequence[np.ndarray],
        *,
        seconds: float,
    ) -> np.ndarray:
        """Answers of trials, as many as fit into some seconds, in order.

        Args:
            keys: one for each trial.
            varying: arguments after the key that each trial has its own row of, `[T, ...]`.
            fixed: arguments after those, the same for all trials.
            seconds: after which no further call is made, once there are a few answers.

        Raises:
            VerifierError: it raises, answers with different shapes, or takes too long.
        """
        if self.calls is None:
            axes = [0] * (1 + len(varying)) + [None] * len(fixed)
            lifted = jax.vmap(self.verifier, in_axes=axes)
            self._choose(lifted, (keys, *varying, *fixed), "called as jit(vmap(verifier))")
        if self._compiled is not None:
            return self._compiled_answers(keys, varying, fixed, seconds)
        return limited(lambda: self._loop(keys, varying, fixed, seconds), self._seconds)

    def batches(
        self,
        keys: Key[Array, " C"],
        arguments: Callable[[int], tuple[np.ndarray, ...]],
        *,
        seconds: float,
    ) -> np.ndarray:
        """Answers of calls that are batches already, as many as fit into some seconds, in order.

        Args:
            keys: one for each call.
            arguments: those of a call after the key; all calls have the same shapes.
            seconds: after which no further call is made.

        Raises:
            VerifierError: it raises, answers with different shapes, or takes too long.
        """
        if self.calls is None:
            calls = "called as jit(verifier), many requests a call"
            self._choose(self.verifier, (keys[0], *arguments(0)), calls)
        function = self._compiled or self.verifier
        noise = seeds_of(keys) if self._noise == "seed" else keys
        answers: list[np.ndarray] = []
        deadline = None
        for call in range(len(keys)):
            given = arguments(call)
            answer = limited(
                partial(self._call, function, (noise[call], *given), call), self._seconds
            )
            if answers and answer.shape != answers[0].shape:
                shapes = f"{list(answers[0].shape)} and {list(answer.shape)}"
                raise VerifierError(f"expected answers of one shape, got {shapes}", call)
            answers.append(answer)
            # The first call may also compile, and does not count.
            deadline = deadline or time.monotonic() + seconds
            if time.monotonic() > deadline:
                break
        return np.stack(answers)

    def _choose(self, function: Callable[..., Any], arguments: Sequence[Any], calls: str) -> None:
        """Whether a function can be traced, and is compiled then; nothing is computed yet."""
        try:
            limited(lambda: jax.eval_shape(function, *arguments), self._seconds)
        except VerifierError:
            raise
        except (Exception, SystemExit):
            # What is wrong with it, if anything, a plain call says more clearly.
            self.calls = "no JAX function that can be traced: called in a Python loop"
            return
        self._compiled = jax.jit(function)
        self.calls = calls

    def _compiled_answers(self, keys, varying, fixed, seconds: float) -> np.ndarray:
        compiled, num_trials = self._compiled, len(keys)
        sizes = [np.size(array) // num_trials for array in varying]
        largest = max(1, *sizes, *(np.size(array) for array in fixed))
        # All calls have one size, so that a shape is compiled once however many trials there are.
        chunk = min(_TRIALS_PER_CALL, max(1, _NUMBERS_PER_CALL // largest))
        answers: list[np.ndarray] = []
        deadline = None
        for start in range(0, num_trials, chunk):
            # The last call is filled up with its last trial.
            rows = np.minimum(np.arange(start, start + chunk), num_trials - 1)
            arguments = (keys[rows], *(array[rows] for array in varying), *fixed)
            found = limited(partial(self._call, compiled, arguments, start), self._seconds)
            answers.append(found[: num_trials - start])
            # The first call also compiles, and does not count.
            deadline = deadline or time.monotonic() + seconds
            if time.monotonic() > deadline:
                break
        return np.concatenate(answers)

    def _call(self, function, arguments, trial: int = 0) -> np.ndarray:
        try:
            result = function(*arguments)
            if isinstance(result, tuple):
                raise VerifierError(f"expected one array, got a tuple of {len(result)}", trial)
            answer = np.asarray(result)
        except VerifierError:
            raise
        # A verifier that ends the process would end the report with it.
        except (Exception, SystemExit) as error:
            raise VerifierError(f"raised {_named(error)}", trial) from error
        if answer.dtype == object:
            got = type(result).__name__
            raise VerifierError(f"expected an array or a number, got {got}", trial)
        return answer

    def _loop(self, keys, varying, fixed, seconds: float) -> np.ndarray:
        noise = seeds_of(keys) if self._noise == "seed" else keys
        answers: list[np.ndarray] = []
        start = time.monotonic()
        for trial in range(len(keys)):
            # Copies, in case that the verifier writes into its arguments.
            rows = [np.array(array[trial]) for array in varying]
            shared = [np.array(array) for array in fixed]
            answer = self._call(self.verifier, (noise[trial], *rows, *shared), trial)
            if answers and answer.shape != answers[0].shape:
                shapes = f"{list(answers[0].shape)} and {list(answer.shape)}"
                raise VerifierError(f"expected answers of one shape, got {shapes}", trial)
            answers.append(answer)
            elapsed = time.monotonic() - start
            if elapsed > seconds and len(answers) >= _FEWEST_CALLS:
                break
            # Before `limited` gives up, so that this message is the one that is seen.
            if elapsed > self._seconds / 2:
                raise VerifierError(
                    f"expected {_FEWEST_CALLS} answers within {elapsed:.0f} s, got {len(answers)}"
                )
        return np.stack(answers)


def _named(error: BaseException) -> str:
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "without a message that can be printed"
    return f"{type(error).__name__}: {message[:300]}"
