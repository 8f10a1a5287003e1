"""Prompts whose answers repeat the prompt: texts to copy, to correct and to extend."""

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
_LETTER = (
    "Dear Mr Keller, thank you for your letter of the third of May. We have looked at the machine "
    "and found that the belt is worn. We will replace it next week, and it will cost you nothing. "
    "We are sorry for the trouble."
)

REPETITIVE = (
    f"Repeat this text word for word, and nothing else:\n\n{_RAIN}",
    f"Copy this code exactly as it is:\n\n{_STACK}",
    f"Write this table once more, with the same lines:\n\n{_TABLE}",
    f"Copy this letter without any change:\n\n{_LETTER}",
)
