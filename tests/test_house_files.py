"""Errors that suggest, and files that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from leankv.serving.errors import InputError, nearest, unknown_name
from leankv.serving.files import atomic_folder, atomic_write, require_new_folder


def everything_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_nearest_forgives_case_and_slips() -> None:
    assert nearest("LeanKv", ["fp16", "leankv"]) == "leankv"
    assert nearest("snap-kv", ["snapkv", "kivi"]) == "snapkv"
    assert nearest("qqqq", ["snapkv", "kivi"]) is None


def test_unknown_name_suggests_or_lists() -> None:
    assert str(unknown_name("policy", "fp61", ["fp16", "kivi"])) == "unknown policy 'fp61'; did you mean 'fp16'?"
    assert str(unknown_name("policy", "zz", ["fp16", "kivi"])) == "unknown policy 'zz'; choose one of: fp16, kivi"


def test_a_file_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.json"
    with atomic_write(target) as beside:
        beside.write_text("half")
        assert not target.exists()
        assert beside.parent == target.parent and beside.suffix == ".json"
    assert target.read_text() == "half"
    assert everything_under(tmp_path) == ["new", "new/out.json"]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "ours") as beside:
        beside.write_text("x")
    (tmp_path / "usual").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_write(target) as beside:
        beside.write_text("new")
        raise error
    assert target.read_text() == "old"
    assert everything_under(tmp_path) == ["out.json"]


def test_a_failed_write_takes_the_folders_it_made_with_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic_write(tmp_path / "a" / "b" / "c.json"):
        raise ValueError
    assert everything_under(tmp_path) == []


def test_writing_onto_a_folder_or_under_a_file_names_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is no plain file; name another"), atomic_write(tmp_path):
        pytest.fail("the body must not run")
    with pytest.raises(InputError, match="choose a place you can write to"), atomic_write(tmp_path / "file" / "x"):
        pytest.fail("the body must not run")


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as beside:
        beside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out"):
        (tmp_path / "missing").read_text()


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left on device; choose"), atomic_folder(tmp_path / "run") as beside:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(beside / "requests.parquet"))
    assert everything_under(tmp_path) == []


def test_a_folder_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"), atomic_folder(tmp_path / "run"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").write_text("")
    assert everything_under(tmp_path) == ["run", "run/theirs"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place that nobody may write")
@pytest.mark.parametrize("opened", [atomic_write, atomic_folder])
@pytest.mark.parametrize("place", ["/proc/out", "/proc/new/out"])
def test_a_place_nobody_may_write_is_found_before_any_work(
    opened: Callable[[str], AbstractContextManager[Path]], place: str
) -> None:
    with pytest.raises(InputError, match="choose a place you can write to"), opened(place):
        pytest.fail("the body must not run")


def test_a_folder_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "first"
    with atomic_folder(target) as beside:
        (beside / "summary.json").write_text("{}")
        assert not target.exists()
    assert everything_under(tmp_path) == ["runs", "runs/first", "runs/first/summary.json"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run") as beside:
        (tmp_path / "run").mkdir()
        (beside / "x").write_text("")
    assert everything_under(tmp_path) == ["run", "run/x"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "run") as beside:
        (beside / "half").write_text("")
        raise KeyboardInterrupt
    assert everything_under(tmp_path) == []


def test_a_folder_in_use_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").write_text("")
    with pytest.raises(InputError, match="already holds files; name a new one or remove it"):
        require_new_folder(tmp_path / "run")
    with pytest.raises(InputError, match="a file of that name exists"), atomic_folder(tmp_path / "run" / "x"):
        pytest.fail("the body must not run")
