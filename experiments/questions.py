"""Fifty prompts written for this library: sums, reading, code, reasoning and talk."""

KINDS: dict[str, tuple[str, ...]] = {
    "sums": (
        "A shop sells pencils at 3 for 2 dollars. How much do 12 pencils cost?",
        "Anna reads 15 pages on weekdays and 30 on other days. How many pages a week is that?",
        "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
        "There are 28 children in a class. A quarter of them wear glasses. How many do not?",
        "A recipe for 4 people needs 300 grams of rice. How much rice is needed for 10 people?",
        "Tom saves 25 dollars a month. How many months does he need for a bicycle of 310 dollars?",
        "A garden is 12 metres long and 7 metres wide. How long is the fence around it?",
        "A tank holds 240 litres and loses 8 litres an hour. When is it half empty?",
        "Two numbers add up to 50 and differ by 8. What are they?",
        "A book of 40 dollars is sold at 15 per cent off. What does it cost now?",
    ),
    "reading": (
        "The bridge was built in 1891 and closed in 1974. How long was it used?",
        "Bees fly up to five kilometres from the hive, but most of their flowers are "
        "within one. Summarise this.",
        "The match ended 3 to 2, and it was 2 to 0 at half time. Who scored later?",
        "Copper was mined in the valley until the river flooded the shafts. Why did the "
        "mining stop?",
        "The museum opens at ten, except on Mondays, when it is closed. Can I visit on "
        "Monday at eleven?",
        "The expedition had food for forty days and came back after fifty-two. What does "
        "that tell you?",
        "Rice is grown in the south of the country, wheat in the north. What is grown in "
        "the north?",
        "Her first novel sold nine hundred copies, her second ninety thousand. Compare "
        "the two books.",
        "The lake freezes every winter, but in 2006 it did not. What was unusual?",
        "The letter left on the third of May and came on the nineteenth. How long did it take?",
    ),
    "code": (
        "Write a Python function that returns the largest even number in a list.",
        "Write a Python function that reverses the words of a sentence.",
        "Write a Python function that checks whether a string is a palindrome.",
        "Write a Python function that counts how often each letter occurs in a text.",
        "Write a Python function that merges two sorted lists.",
        "Write a Python function that gives the first n prime numbers.",
        "Write a Python class for a stack with push and pop.",
        "Write a Python function that removes duplicates from a list and keeps the order.",
        "Write a Python function that converts Celsius to Fahrenheit.",
        "Write a SQL query that lists the ten customers who spent most.",
    ),
    "reasoning": (
        "Why does ice float on water?",
        "Why is the sky dark at night although there are so many stars?",
        "Explain why a heavy and a light stone fall equally fast in a vacuum.",
        "Why do leaves turn red and yellow in autumn?",
        "What would happen if the Moon were twice as far away?",
        "Why does bread rise, and what happens when the oven is too cold?",
        "How can one tell from the rings of a tree how old it is?",
        "Why do we see lightning before we hear thunder?",
        "All cats in the house are grey. Mia is in the house and is not grey. Is Mia a cat?",
        "Why do ships made of steel not sink?",
    ),
    "talk": (
        "Tell me a short story about a clock that ran backwards.",
        "What should I pack for three days in the mountains?",
        "Write a friendly note to a neighbour whose dog barks at night.",
        "Suggest a simple dinner for six guests.",
        "Describe the sea to somebody who has never seen it.",
        "Give me three tips for speaking in front of many people.",
        "Write four lines of verse about the first snow.",
        "How do I thank a teacher at the end of the year?",
        "I cannot sleep. What can I try tonight?",
        "Invent a name for a small bakery and say why it fits.",
    ),
}
