import pytest

from tests.decoding import tiny_models


@pytest.fixture(scope="module")
def target():
    return tiny_models.trigram_model(0)


@pytest.fixture(scope="module")
def near(target):
    """A drafter that resembles the target."""
    return tiny_models.noisy(target, 0.5)
