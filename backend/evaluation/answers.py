"""Generated answers that end by themselves: right or wrong, and how long they get under each policy."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from leankv.backend.evaluation.chat import asked, frame, ids
from leankv.backend.evaluation.generated import CITIES, Question, arithmetic, record
from leankv.backend.evaluation.items import Item, Outcome
from leankv.backend.texts import Text, digest_of, file_digest
from leankv.serving.errors import InputError

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
SUMMARY = "\n\nSummarize this text in a few sentences."
MATH = "{}\n\nSolve this step by step and end with: The answer is N."


@dataclass(frozen=True)
class Answers:
    """`each` questions of a kind: sums in words, records, and summaries of `passage` tokens, whose length alone counts.

    gsm8k: a file of its problems (JSON lines, maybe .gz), asked instead. cap: tokens after which an answer is cut off.
    """

    texts: Sequence[Text]
    each: int
    cap: int
    examples: int = 6
    people: int = 24
    passage: int = 384
    gsm8k: Path | None = None
    seed: int = 0
    name: str = "answers"

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        common = {"each": self.each, "cap_tokens": self.cap, "seed": self.seed}
        if self.gsm8k is not None:
            return {**common, "gsm8k": self.gsm8k.name, "gsm8k_sha256": file_digest(self.gsm8k)}
        made = {"examples": self.examples, "people": self.people, "passage_tokens": self.passage}
        texts = {"texts": [text.name for text in self.texts], "texts_sha256": digest_of(self.texts)}
        return {**common, **made, **texts}

    def items(self, tokenizer: Any) -> list[Item]:
        """See `Task`."""
        random = Random(self.seed)
        if self.gsm8k is not None:
            problems = _gsm8k(self.gsm8k)
            chosen = random.sample(problems, min(self.each, len(problems)))
            return [self._item(tokenizer, "gsm8k", place, question) for place, question in enumerate(chosen)]
        sums = [arithmetic(random, self.examples) for _ in range(self.each)]
        records = [record(random, self.people) for _ in range(self.each)]
        found = [self._item(tokenizer, "arithmetic", place, question) for place, question in enumerate(sums)]
        found += [self._item(tokenizer, "records", place, question) for place, question in enumerate(records)]
        return found + self._summaries(tokenizer, random)

    def graded(self, item: Item, outcome: Outcome, baseline: Outcome, tokenizer: Any) -> dict[str, Any]:
        """See `Task`. output_tokens counts the token that ended the text."""
        text = tokenizer.decode(outcome.output, skip_special_tokens=True).strip()
        row = {"answer": text, "stopped": outcome.stopped, "output_tokens": len(outcome.output)}
        subject, reference = item.about["subject"], item.about.get("reference")
        if reference is None:
            return row
        return {**row, "score": float(_right(subject, text, reference))}

    def _item(self, tokenizer: Any, kind: str, place: int, question: Question) -> Item:
        about = {"subject": kind, "question": question.question, "reference": question.answer}
        return Item(f"{kind}-{place:04}", asked(tokenizer, question.message), generated=self.cap, about=about)

    def _summaries(self, tokenizer: Any, random: Random) -> list[Item]:
        hay = ids(tokenizer, "\n\n".join(text.content for text in self.texts))
        before, after = frame(tokenizer)
        head, tail = ids(tokenizer, before), ids(tokenizer, SUMMARY + after)
        found = []
        for place in range(self.each):
            first = random.randrange(max(1, len(hay) - self.passage))
            prompt = [*head, *hay[first : first + self.passage], *tail]
            about = {"subject": "summary", "question": SUMMARY.strip()}
            found.append(Item(f"summary-{place:04}", prompt, generated=self.cap, about=about))
        return found


def _right(subject: str, answer: str, reference: str) -> bool:
    """A number is the last one said; a record's city is said, and no other one."""
    if subject == "records":
        return [city for city in CITIES if _says(answer, city)] == [reference]
    numbers = NUMBER.findall(answer)
    return bool(numbers) and _number(numbers[-1]) == _number(reference)


def _says(answer: str, city: str) -> bool:
    """As a word of its own; New York is another city than York."""
    return re.search(rf"(?<!\bnew )\b{city}\b", answer, re.IGNORECASE) is not None


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _gsm8k(path: Path) -> list[Question]:
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give GSM8K's problems as JSON lines") from error
    problems = [_problem(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not problems:
        raise InputError(f"{path} holds no problem; give GSM8K's problems as JSON lines")
    return problems


def _problem(path: Path, number: int, line: str) -> Question:
    try:
        row = json.loads(line)
        question, answer = row["question"], row["answer"].rpartition("####")[2].strip().replace(",", "")
        _number(answer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} line {number} is no GSM8K problem: give question and answer in JSON") from error
    return Question(MATH.format(question), question, "", answer)
