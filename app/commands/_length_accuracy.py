"""How well routers predict output lengths: as well as the length predictor did on an evaluation's held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.backend.evaluation.length_predictor import Predictor


def length_accuracy(folder: Path, router: str, given: float | None) -> float | None:
    """1 minus the mean relative error measured, or None to go by what is given or the default; says which, and why.

    folder: an evaluation. given: what the user named, which wins. A router that predicts nothing needs none.
    Raises InputError for predictions so wrong that they are none.
    """
    from leankv.simulator.routing import PREDICTIVE

    if router not in PREDICTIVE:
        return None
    if given is not None:
        print(f"router {router}: length accuracy {given:g}, as given")
        return None
    predictor = _predictor(folder, router)
    return None if predictor is None else _best(predictor, folder, router)


def _predictor(folder: Path, router: str) -> Predictor | None:
    """None, with the reason told, where prompts are too few or scikit-learn is missing."""
    from leankv.backend.evaluation.length_predictor import evaluate_predictor
    from leankv.serving.quality import load_quality
    from leankv.simulator.forecast import LENGTH_ACCURACY

    samples = load_quality(folder).samples
    try:
        return evaluate_predictor(samples)
    except InputError as error:
        print(f"router {router}: length accuracy {LENGTH_ACCURACY:g}, the default; {folder}: {error}")
        return None


def _best(predictor: Predictor, folder: Path, router: str) -> float:
    name, accuracy = predictor.best
    if accuracy <= 0:
        raise InputError(
            f"--length-shift {folder}: output lengths are predicted there with accuracy {accuracy:.2f} at best, which "
            "tells a router nothing; give --length-accuracy, or a --router that predicts none"
        )
    print(
        f"router {router}: length accuracy {accuracy:.3f}, that of {name}, held out on {predictor.prompts} prompts of "
        f"{folder}"
    )
    return accuracy
