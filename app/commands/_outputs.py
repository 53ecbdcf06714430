"""Where a command writes: places checked before any work, so that nothing is computed for nothing."""

from __future__ import annotations

import os
from pathlib import Path


def require_place_for_file(path: Path | None) -> None:
    """Raise InputError unless a file can be written at `path`, in a folder that exists."""
    from leankv.serving.errors import InputError

    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: its folder does not exist; create it or name another")
    _require_right(path, path.absolute().parent)


def require_place_for_folder(path: Path | None) -> None:
    """Raise InputError unless a folder can be made, or written into, at `path`."""
    from leankv.serving.errors import InputError

    if path is None:
        return
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write folder {path}: {nearest} is a file; name another place")
    _require_right(path, nearest)


def _require_right(path: Path, folder: Path) -> None:
    from leankv.serving.errors import InputError

    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: no right to write in {folder}; choose a place you can write to")
