"""English texts of several kinds, written for this library: the default prompts."""

__all__ = ["PROMPTS"]

PROMPTS: tuple[str, ...] = (
    "The lighthouse keeper climbed the stairs every evening at six. He lit the lamp, wiped the "
    "glass, and wrote the weather into a thick green book. One night in November the wind blew "
    "so hard that the door would not open, and he heard someone knocking from the other side.",
    "Question: A baker sells 24 loaves in the morning and half as many in the afternoon. Each "
    "loaf costs 3 dollars. How much money does she make in one day? Answer: In the afternoon she "
    "sells 24 / 2 = 12 loaves. In total she sells 24 + 12 = 36 loaves, so she makes 36 * 3 = 108 "
    "dollars.",
    "def fibonacci(n):\n"
    '    """Return the n-th Fibonacci number."""\n'
    "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n\n"
    "def is_prime(n):\n    if n < 2:\n        return False\n"
    "    for i in range(2, int(n ** 0.5) + 1):\n"
    "        if n % i == 0:\n            return False\n    return True\n",
    "Photosynthesis is the process by which plants, algae and some bacteria turn sunlight into "
    "chemical energy. Water is taken up by the roots, carbon dioxide enters through small "
    "openings in the leaves, and oxygen is released into the air. The sugar that is made feeds "
    "the plant and, in the end, almost every animal on Earth.",
    "Dear Maria, thank you for your letter. I am glad that you arrived safely and that the new "
    "flat is bright. The garden here is full of apples this year, far more than we can eat, so I "
    "am sending you a box of them by train. Please tell me when it has come.",
    "User: What is the best way to learn a new language?\nAssistant: There is no single best "
    "way, but a few habits help almost everyone. Listen to the language every day, even for ten "
    "minutes. Speak early and do not be afraid of mistakes. Read simple books, and write down "
    "the words you want to keep.",
    "The city council voted on Tuesday to close the old bridge to cars. From next spring, only "
    "buses, bicycles and pedestrians will be allowed to cross the river there. Shop owners "
    "nearby fear that they will lose customers, while residents hope for quieter nights and "
    "cleaner air.",
    "To make a simple vegetable soup, chop two onions, three carrots and a stick of celery. Heat "
    "a little oil in a large pot and cook the vegetables until they are soft. Add a litre of "
    "water, a pinch of salt and a bay leaf, and let the soup simmer for half an hour.",
)
