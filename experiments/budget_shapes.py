"""Chains and static trees of about one number of nodes, as settings of the planner."""

from __future__ import annotations

from experiments import text_rounds
from gls_jax import planner

# Longest lists, paths and chains that are tried.
WIDEST = 8
DEEPEST = 8
LONGEST = 32
# The least share of the budget that a static tree has.
LEAST_USED = 7 / 8


def one_chain(scheme: str, nodes: int) -> list[planner.Setting]:
    """A chain of that many nodes, or of the longest length."""
    return [planner.Setting(scheme, 1, min(nodes, LONGEST))]


def chains(scheme: str, nodes: int) -> list[planner.Setting]:
    """K chains of one length, for K = 1, 2, 4, ..."""
    # Chains of a single draft are a static tree.
    counts = [2**i for i in range(text_rounds.MOST_DRAFTS.bit_length()) if 2**i < nodes]
    return [planner.Setting(scheme, k, min(nodes // k, LONGEST)) for k in counts]


def static_trees(scheme: str, nodes: int) -> list[planner.Setting]:
    """Trees of about that many nodes whose widths do not grow with depth."""
    trees: list[tuple[int, ...]] = []

    def grow(widths: tuple[int, ...], level_size: int, num_left: int) -> None:
        largest = widths[-1] if widths else WIDEST
        fitting = [width for width in range(1, largest + 1) if level_size * width <= num_left]
        if len(widths) < DEEPEST and fitting:
            for width in fitting:
                grow((*widths, width), level_size * width, num_left - level_size * width)
        # What cannot grow within the budget.
        elif nodes - num_left >= LEAST_USED * nodes:
            trees.append(widths)

    grow((), 1, nodes)
    return [planner.Setting(scheme, max(widths), len(widths), widths) for widths in trees]


def shape_text(setting: planner.Setting) -> str:
    """The drafts in words."""
    if setting.tree is None:
        return f"{setting.num_drafts} x {setting.draft_length}"
    return "-".join(map(str, setting.tree))
