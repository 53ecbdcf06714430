"""Multiple choice, scored by the options' log-probabilities as the answer goes on: MMLU from a file, else generated."""

from __future__ import annotations

import csv
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from random import Random
from typing import Any

from leankv.backend.evaluation.chat import asked, common_prefix, ids
from leankv.backend.evaluation.generated import Question, record
from leankv.backend.evaluation.items import Item, Outcome
from leankv.backend.texts import file_digest
from leankv.serving.errors import InputError

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Choice:
    """`questions` questions: where a person on a list of `people` lives, or out of `mmlu`, an archive of CSV files."""

    questions: int
    people: int = 24
    mmlu: Path | None = None
    seed: int = 0
    name: str = "choice"

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        common = {"questions": self.questions, "seed": self.seed}
        if self.mmlu is None:
            return {**common, "people": self.people}
        return {**common, "mmlu": self.mmlu.name, "mmlu_sha256": file_digest(self.mmlu)}

    def items(self, tokenizer: Any) -> list[Item]:
        """See `Task`."""
        random = Random(self.seed)
        if self.mmlu is None:
            found = [("records", record(random, self.people)) for _ in range(self.questions)]
        else:
            everything = list(_mmlu(self.mmlu))
            if not everything:
                raise InputError(f"{self.mmlu} holds no question: its *_test.csv have no row; give MMLU's archive")
            found = random.sample(everything, min(self.questions, len(everything)))
        return [_item(tokenizer, place, *each) for place, each in enumerate(found)]

    def graded(self, item: Item, outcome: Outcome, baseline: Outcome, tokenizer: Any) -> dict[str, Any]:
        """See `Task`. The log-probability is that of the right option among the options alone."""
        right, best = list(item.options).index(item.forced[-1]), _best(outcome)
        total = sum(exp(each - max(outcome.options)) for each in outcome.options)
        return {
            "score": float(best == right),
            "log_probability_nats": outcome.options[right] - max(outcome.options) - log(total),
            "scored_tokens": 1,
            "agreement": float(best == _best(baseline)),
            "answer": tokenizer.decode([item.options[best]]).strip(),
        }


def _best(outcome: Outcome) -> int:
    return outcome.options.index(max(outcome.options))


def _item(tokenizer: Any, place: int, subject: str, question: Question) -> Item:
    """The options' first tokens that differ compete; what they begin with alike is given."""
    answers = [ids(tokenizer, f"{question.lead} {option}") for option in question.options]
    shared = common_prefix(answers)
    options = [answer[shared] for answer in answers if len(answer) > shared]
    if len(set(options)) < len(question.options):
        raise InputError(f"options {', '.join(question.options)} begin alike for this tokenizer; choose others")
    right = answers[question.options.index(question.answer)]
    about = {"subject": subject, "question": question.question, "reference": question.answer}
    prompt = asked(tokenizer, question.message)
    return Item(f"choice-{place:04}", prompt, right[: shared + 1], shared, options=options, about=about)


def _mmlu(path: Path) -> Iterator[tuple[str, Question]]:
    """Every test question of the archive, by subject in order of its name."""
    try:
        with tarfile.open(path) as archive:
            names = sorted(name for name in archive.getnames() if name.endswith("_test.csv"))
            tables = {name: archive.extractfile(name).read().decode("utf-8") for name in names}  # type: ignore[union-attr]
    except (OSError, EOFError, AttributeError, zlib.error, tarfile.TarError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give an archive with MMLU's *_test.csv files") from error
    if not tables:
        raise InputError(f"{path} holds no *_test.csv; give an archive with MMLU's CSV files")
    for name, table in tables.items():
        subject = Path(name).stem.removesuffix("_test")
        for number, row in enumerate(csv.DictReader(io.StringIO(table)), start=2):
            try:
                yield subject, _of_row(row)
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise InputError(f"{path}: {name} line {number} is no MMLU question ({error})") from error


def _of_row(row: dict[str, str]) -> Question:
    choices = [row[f"choice{place}"] for place in range(4)]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True))
    message = f"{row['question']}\n\n{listed}\n\nAnswer with the letter of the right choice."
    return Question(message, row["question"], "The right choice is", LETTERS[int(row["answer"])], LETTERS)
