"""Questions made from a seed: records to look up in a list, sums in words. No data is needed, and none can be learnt.

A list is longer than any policy's recent window, so the answer must be read from the part of the cache that is
compressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

NAMES = (
    "Alice", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "Jacob", "Karen", "Louis", "Maria",
    "Nolan", "Olivia", "Peter", "Queenie", "Robert", "Sofia", "Thomas", "Ursula", "Victor", "Wendy", "Xavier",
    "Yvonne", "Zachary",
)  # fmt: skip
CITIES = (
    "Athens", "Berlin", "Cairo", "Dublin", "Essen", "Florence", "Geneva", "Havana", "Istanbul", "Jakarta", "Kyoto",
    "Lisbon", "Madrid", "Naples", "Oslo", "Paris", "Quebec", "Rome", "Seattle", "Tokyo", "Utrecht", "Vienna", "Warsaw",
    "York", "Zurich",
)  # fmt: skip
PETS = ("a cat", "a dog", "a parrot", "a horse", "a rabbit", "two goats", "some bees", "an old tortoise")
THINGS = ("apples", "books", "coins", "stamps", "marbles", "pencils", "tickets", "shells")


@dataclass(frozen=True)
class Question:
    """message: all that the user says. lead: how an answer begins. options: answers that compete, it included."""

    message: str
    question: str
    lead: str
    answer: str
    options: tuple[str, ...] = ()


def record(random: Random, people: int) -> Question:
    """Where one person out of a list lives, four cities to choose from, each of another person on the list."""
    names = random.sample(NAMES, min(people, len(NAMES)))
    homes = random.sample(CITIES, min(len(names), len(CITIES)))
    told = [
        f"{name} is {random.randrange(18, 80)} years old, lives in {home} and keeps {random.choice(PETS)}."
        for name, home in zip(names, homes, strict=False)
    ]
    place = random.randrange(len(told))
    others = random.sample([home for home in homes if home != homes[place]], min(3, len(homes) - 1))
    question = f"In which city does {names[place]} live?"
    message = "Here is a list of people.\n\n" + "\n".join(told) + f"\n\n{question} Answer in one sentence."
    options = random.sample([homes[place], *others], len(others) + 1)
    return Question(message, question, f"{names[place]} lives in", homes[place], tuple(options))


def arithmetic(random: Random, examples: int) -> Question:
    """A sum in words after worked examples."""
    worked = "\n\n".join("Question: {}\nAnswer: {}".format(*_sum(random)[:2]) for _ in range(examples))
    question, _, answer = _sum(random)
    message = f"Answer the last question as in the examples.\n\n{worked}\n\nQuestion: {question}"
    return Question(message, question, "", answer)


def _sum(random: Random) -> tuple[str, str, str]:
    """A question, its worked answer, and the number alone."""
    name, thing = random.choice(NAMES), random.choice(THINGS)
    first, second = random.randrange(3, 30), random.randrange(2, 20)
    lost = random.randrange(1, first + second)
    total = first + second
    question = f"{name} has {first} {thing}, finds {second} more and gives {lost} away. How many {thing} are left?"
    worked = (
        f"{name} has {first} + {second} = {total} {thing} and gives {lost} away, so {total} - {lost} = {total - lost}. "
        f"The answer is {total - lost}."
    )
    return question, worked, str(total - lost)
