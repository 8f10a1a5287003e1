"""Texts whose continuation repeats them: a text twice and its first third, or a log.

Not questions: a model of the size of SmolLM2 does not copy a text because it is asked to.
"""

_RAIN = (
    "Rain begins as water vapour that rises with warm air. Higher up the air is colder, and the "
    "vapour becomes small drops around grains of dust. The drops collide, grow and fall when the "
    "rising air can no longer hold them."
)
_STACK = '''class Stack:
    """Last in, first out."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()
'''
_TABLE = """name, city, year
Anna Berg, Oslo, 1987
Luis Romero, Sevilla, 1991
Mei Tanaka, Kyoto, 1979
Omar Haddad, Tunis, 1983
Nadia Petrova, Sofia, 1995
"""
_LOG = "".join(
    f"2024-05-{day:02d} 08:00 backup of disk {day % 3} finished without errors\n"
    for day in range(1, 9)
)


def _twice_and_a_third(text: str) -> str:
    return f"{text}\n\n{text}\n\n{text[: len(text) // 3]}"


REPETITIVE = (*map(_twice_and_a_third, (_RAIN, _STACK, _TABLE)), _LOG)
