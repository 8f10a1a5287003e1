import pytest

from tests.decoding import small


@pytest.fixture(scope="module")
def target():
    return small.table(0)


@pytest.fixture(scope="module")
def near(target):
    return small.noisy(target, 0.5)
