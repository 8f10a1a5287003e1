"""A tiny checkpoint and the real model, each loaded once."""

import pytest

from gls_jax import models
from tests.models import tiny_checkpoint


@pytest.fixture(scope="session")
def tiny():
    """Fields, tensors and helpers of the tiny checkpoint."""

    class Tiny:
        fields = tiny_checkpoint.FIELDS
        tensors = tiny_checkpoint.random_tensors(fields)
        model = tiny_checkpoint.build(tensors, fields)
        random_tensors = staticmethod(tiny_checkpoint.random_tensors)
        slow_logits = staticmethod(tiny_checkpoint.slow_logits)
        build = staticmethod(tiny_checkpoint.build)
        run = staticmethod(tiny_checkpoint.run)
        write_folder = staticmethod(tiny_checkpoint.write_folder)

    return Tiny


@pytest.fixture(scope="session")
def smollm2():
    return models.load("smollm2")
