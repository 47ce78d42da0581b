"""What users ask: beginnings that the target completes, and word problems made from templates.

Every name, number and sentence is drawn at random, and no public data set is used. Knows text.
Knows nothing of tokens or models.
"""

from __future__ import annotations

import random
from collections.abc import Callable


def _listed(text: str) -> list[str]:
    return text.split("|")


NAMES = _listed(
    "Ada|Alan|Amir|Anna|Ben|Bianca|Carlos|Chloe|Clara|Daniel|David|Diego|Elena|Emily|Emma|"
    "Eric|Fatima|Felix|Finn|Grace|Hannah|Henry|Ines|Isaac|Ivan|Jack|James|Jasmine|John|Julia|"
    "Karen|Kevin|Kim|Laura|Leo|Liam|Lily|Lucas|Maria|Mark|Mary|Max|Maya|Mia|Michael|Mohamed|"
    "Nadia|Natalie|Nina|Noah|Nora|Olivia|Omar|Oscar|Paul|Peter|Priya|Rachel|Raj|Rosa|Ruth|"
    "Sam|Sara|Sofia|Steve|Susan|Tina|Tom|Tony|Uma|Victor|Wendy|Wei|Yara|Zoe"
)
THINGS = _listed(
    "apples|oranges|eggs|cookies|marbles|stickers|books|pencils|toys|balloons|cards|cupcakes|"
    "flowers|candles|shirts|bottles|boxes|tickets|coins|stamps|shells|beads|bananas|pizzas|"
    "sandwiches|muffins|notebooks|chairs|plants|pies|bracelets|paintings|lemons|potatoes|"
    "cakes|bagels|donuts"
)
JOBS = _listed(
    "baker|farmer|teacher|painter|carpenter|driver|gardener|nurse|tailor|waiter|plumber|"
    "writer|mechanic|cyclist|runner|fisherman|student|shopkeeper|coach|chef"
)
DAYS = _listed("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
UNITS = _listed(
    "miles|kilometers|pounds|ounces|gallons|liters|meters|feet|inches|cups|hours|minutes"
)
PLACES = _listed(
    "school|the market|the store|a bakery|a farm|the library|the zoo|a restaurant|the beach|"
    "her office|the park|a concert|the factory|a toy shop|the museum|the gym"
)
PARTS = _listed(
    "half|twice|a third of|a quarter of|three times|double|two times|four times|10% of|20% of"
)
TOPICS = _listed(
    "photosynthesis|gravity|the water cycle|the French Revolution|how vaccines work|"
    "inflation|healthy breakfast ideas|learning to play the guitar|a trip to Japan|"
    "time management|climate change|the stock market|recycling|yoga|public speaking|"
    "black holes|electric cars|the history of coffee|machine learning|good sleep|friendship|"
    "gardening|the Roman Empire|a job interview|dogs|the ocean|renewable energy|"
    "writing a novel|running a marathon|the internet|chess|dinosaurs|volcanoes|budgets|"
    "meditation|the human heart|earthquakes|poetry|cooking pasta|remote work"
)
TASKS = _listed(
    "reverses a string|computes the factorial of a number|checks whether a number is prime|"
    "sorts a list|counts the words in a text|finds the largest element of a list|"
    "merges two lists|removes duplicates from a list|computes the Fibonacci numbers|"
    "checks for a palindrome|reads a CSV file|computes the average of a list|"
    "finds the common elements of two lists|converts Celsius to Fahrenheit|"
    "flattens a nested list|counts vowels|sums the digits of a number|"
    "validates an email address|generates a random password|searches a sorted list|"
    "computes the greatest common divisor|groups words by their first letter|"
    "transposes a matrix|finds the longest word in a sentence|parses a date|"
    "downloads a web page"
)
STARTS = _listed(
    "What is|What are|How do I|How can I|How does|Why do|Why is|Can you|Could you explain|"
    "Write a|Write a short story about|Write an email|Explain|Describe|Give me|List|Tell me|"
    "Summarize|I am|I have|I need|I want to|Create a|Compare|Who was|When did|Where is|"
    "Translate|Help me|Suggest|Please"
)
PERCENTAGES = (5, 10, 15, 20, 25)
WORDS = _listed("two|three|four|five|six|seven|eight|nine|ten|twelve")


def opening(choice: random.Random) -> tuple[str, bool]:
    """How a user's message begins.

    Returns:
        The text, and whether it is the whole message; else the target writes the rest.
    """
    kinds: list[tuple[float, Callable[[random.Random], tuple[str, bool]]]] = [
        (0.46, _problem_opening),
        (0.24, _whole_problem),
        (0.07, _code),
        (0.13, _general),
        (0.10, lambda _: ("", False)),
    ]
    weights, makers = zip(*kinds, strict=True)
    return choice.choices(makers, weights)[0](choice)


def _problem_opening(choice: random.Random) -> tuple[str, bool]:
    """The first words of a word problem, or its first sentence."""
    if choice.random() < 0.35:
        return _sentence(choice) + choice.choice(["", " If", " She", " He", " How", " Each"]), False
    name, thing, number = choice.choice(NAMES), choice.choice(THINGS), _number(choice)
    forms = [
        f"{name}", f"{name} has", f"{name} has {number}", f"{name} bought", f"{name} is", "If a",
        f"{name} and {choice.choice(NAMES)}", f"A {choice.choice(JOBS)}", f"There are {number}",
        f"{name} works", f"{name} wants to", f"{name} makes", f"At {choice.choice(PLACES)},",
        f"{name} sells {thing}", f"On {choice.choice(DAYS)},", f"{name}'s", f"Every day, {name}",
        f"In a {choice.choice(['class', 'town', 'garden', 'box', 'race', 'school'])}", "The",
        f"{number} {thing}", f"{name} earns ${number}", f"A {thing[:-1]} costs ${number}", "If",
        f"{name} needs", f"{name} spends", f"{name} runs {number} {choice.choice(UNITS)}",
        f"{name} can", f"{name} collected", "Half of", f"{name} drives", f"{name} reads",
    ]  # fmt: skip
    return choice.choice(forms), False


def _whole_problem(choice: random.Random) -> tuple[str, bool]:
    """A word problem of two to four sentences and a question."""
    name, thing = choice.choice(NAMES), choice.choice(THINGS)
    sentences = [_sentence(choice, name, thing) for _ in range(choice.randint(1, 3))]
    return " ".join([*sentences, _question(choice, name, thing)]), True


def _sentence(choice: random.Random, name: str = "", thing: str = "") -> str:
    """A fact with numbers about somebody's things."""
    name, thing = name or choice.choice(NAMES), thing or choice.choice(THINGS)
    other, second = choice.choice(NAMES), choice.choice(THINGS)
    a, b, c = (_number(choice) for _ in range(3))
    part, unit, day = choice.choice(PARTS), choice.choice(UNITS), choice.choice(DAYS)
    forms = [
        f"{name} has {a} {thing} and {b} {second}.",
        f"{name} bought {a} {thing} for ${b} each.",
        f"{name} buys {a} {thing} at ${b}.{c.zfill(2)[-2:]} each and {c} {second} for ${a}.",
        f"{name} gives {a} {thing} to {other}.",
        f"{other} has {part} as many {thing} as {name}.".replace("of as", "as"),
        f"{name} sells {a} {thing} every day for {b} days.",
        f"{name} makes ${a} per hour and works {b} hours a week.",
        f"On {day}, {name} sold {a} {thing}, and on {choice.choice(DAYS)} {b} more.",
        f"It takes {name} {a} minutes to make {b} {thing}.",
        f"{name} drives {a} {unit} to {choice.choice(PLACES)} and {b} {unit} back.",
        f"There are {a} boxes with {b} {thing} in each.",
        f"{name} is {a} years old, and {other} is {b} years older than {name}.",
        f"{name} eats {a} {thing} for breakfast and {part} that for dinner.",
        f"A {choice.choice(JOBS)} needs {a} {unit} for {b} {thing}.",
        f"The price of {thing} is ${a}, with a discount of {choice.choice(PERCENTAGES)}%.",
        f"{name} wants to share {a} {thing} equally among {b} friends.",
        f"{name} saved ${a} in {b} weeks and spent ${c} on {second}.",
        f"{name} walks {a} {unit} each day from {day} to {choice.choice(DAYS)}.",
        f"{part.capitalize()} the {thing} are red and the rest are blue.",
        f"A class has {a} students, and each needs {b} {thing}.",
    ]  # fmt: skip
    return choice.choice(forms)


def _question(choice: random.Random, name: str, thing: str) -> str:
    """What a word problem asks."""
    number = _number(choice)
    forms = [
        f"How many {thing} does {name} have now?",
        f"How many {thing} are there in total?",
        f"How much money does {name} have left?",
        f"How much does {name} earn in {number} weeks?",
        f"How many {thing} are left?",
        f"What is the total cost of the {thing}?",
        f"How long does it take {name} in total?",
        f"How many {thing} will {name} have after {number} days?",
        f"How much profit does {name} make?",
        f"If {name} pays with ${number}, how much change does {name} get?",
        f"How many more {thing} does {name} need to have {number}?",
        f"How old will {name} be in {number} years?",
        f"How many hours does {name} work in a month?",
        f"What is the average number of {thing} per day?",
        f"What percentage of the {thing} are left?",
        f"How many {thing} does each person get?",
    ]
    return choice.choice(forms)


def _code(choice: random.Random) -> tuple[str, bool]:
    """A request for a program."""
    language = choice.choices(["Python", "JavaScript", "Java", "C++", "SQL"], [6, 2, 1, 1, 0.5])[0]
    task = choice.choice(TASKS)
    if language == "SQL":
        return "Write a SQL query that", False
    noun = choice.choice(["function", "program", "script", "class"])
    verb = choice.choice(["Write a", "Create a", "Can you write a", "I need a", "Implement a"])
    end = "?" if verb.startswith("Can") else "."
    if choice.random() < 0.6:
        return f"{verb} {language} {noun} that {task}{end}", True
    return f"{verb} {language} {noun} that", False


def _general(choice: random.Random) -> tuple[str, bool]:
    """A question of any kind, often only its first words."""
    if choice.random() < 0.75:
        return choice.choice(STARTS), False
    topic = choice.choice(TOPICS)
    forms = [
        f"Explain {topic} in simple terms.", f"Write a short paragraph about {topic}.",
        f"What should I know about {topic}?", f"Give me five facts about {topic}.",
        f"Write a poem about {topic}.", f"Summarize the main ideas behind {topic}.",
    ]  # fmt: skip
    return choice.choice(forms), True


def _number(choice: random.Random) -> str:
    """A number as word problems have them: mostly small, often round, sometimes a word."""
    kind = choice.random()
    if kind < 0.1:
        return choice.choice(WORDS)
    if kind < 0.6:
        return str(choice.randint(2, 20))
    if kind < 0.8:
        return str(choice.randint(2, 20) * 5)
    if kind < 0.95:
        return str(choice.randint(20, 150))
    return f"{choice.randint(1, 40) * 100:,}"
