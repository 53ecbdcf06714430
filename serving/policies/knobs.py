"""Checks that methods apply to their knobs; each failure is one line that names the knob and the mend."""

from collections.abc import Sequence
from typing import cast, get_args

from leankv.serving.errors import InputError
from leankv.serving.formats import KVFormat, format_named
from leankv.serving.policies.base import KeyTransformName


def at_least(knob: str, value: float, least: float) -> None:
    if not value >= least:
        raise InputError(f"policy knob {knob}={value}: give at least {least}")


def share_knob(knob: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"policy knob {knob}={value}: give a share from 0 to 1")


def one_of(knob: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise InputError(f"policy knob {knob}={value}: choose one of {', '.join(map(str, choices))}")


def format_knob(knob: str, name: str) -> KVFormat:
    """The KV format called `name`, as K8V4."""
    try:
        return format_named(name)
    except ValueError as error:
        raise InputError(f"policy knob {knob}={name}: {error}") from error


def key_transform_knob(name: str) -> KeyTransformName:
    """How keys are stored: none, centred, rotated, rope-centred (on the mean before RoPE), or a centring+rotated."""
    one_of("key_transform", name, get_args(KeyTransformName))
    return cast(KeyTransformName, name)
