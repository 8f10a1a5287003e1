"""Types of the callbacks that long work calls to report its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "StageProgress"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

StageProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and of how much."""
