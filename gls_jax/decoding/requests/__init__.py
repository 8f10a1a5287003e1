"""Requests for texts, answered in batches by a target and its drafter.

:func:`answer` is the whole job: it reads the results of an earlier run, shares the rest out over
the processes, generates batch by batch, and keeps each result as soon as it is finished. The steps
are in the other modules: a request (`text_requests`), the reply that grows from it (`replies`), and
the loop over batches (`running_batches`).
"""

from gls_jax.decoding.requests.answering import Answers, answer
from gls_jax.decoding.requests.replies import Reply, StopConditions, stop_conditions
from gls_jax.decoding.requests.running_batches import Timer, check_options, run_batches
from gls_jax.decoding.requests.text_requests import (
    TextOptions,
    TextRequest,
    encode_prompt,
    read_requests,
    request_hash,
    requests_from_prompts,
)

__all__ = [
    "Answers",
    "Reply",
    "StopConditions",
    "TextOptions",
    "TextRequest",
    "Timer",
    "answer",
    "check_options",
    "encode_prompt",
    "read_requests",
    "request_hash",
    "requests_from_prompts",
    "run_batches",
    "stop_conditions",
]
