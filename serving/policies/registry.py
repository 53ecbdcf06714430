"""Policies by name, with knobs: `policy_named("leankv")`, `policy_named("kivi:bits=4,residual=64")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature

from leankv.serving.errors import InputError, nearest, unknown_name
from leankv.serving.policies.ada_kv import ada_kv
from leankv.serving.policies.base import Policy
from leankv.serving.policies.duo_attention import duo_attention
from leankv.serving.policies.expected_attention import expected_attention
from leankv.serving.policies.fp8 import fp8
from leankv.serving.policies.fp16 import fp16
from leankv.serving.policies.h2o import h2o
from leankv.serving.policies.int4 import int4
from leankv.serving.policies.int8 import int8
from leankv.serving.policies.kivi import kivi
from leankv.serving.policies.leankv import leankv, leankv_r
from leankv.serving.policies.pyramidkv import pyramidkv
from leankv.serving.policies.quest import quest
from leankv.serving.policies.snapkv import snapkv
from leankv.serving.policies.streaming_llm import streaming_llm
from leankv.serving.policies.turboquant import turboquant
from leankv.serving.policies.uniform import uniform

Knob = int | float | str
METHODS: Mapping[str, Callable[..., Policy]] = {
    "fp16": fp16,
    "fp8": fp8,
    "int8": int8,
    "int4": int4,
    "kivi": kivi,
    "streaming-llm": streaming_llm,
    "h2o": h2o,
    "snapkv": snapkv,
    "pyramidkv": pyramidkv,
    "ada-kv": ada_kv,
    "duo-attention": duo_attention,
    "quest": quest,
    "turboquant": turboquant,
    "expected-attention": expected_attention,
    "leankv": leankv,
    "leankv-r": leankv_r,
    "uniform": uniform,
}
registry: dict[str, Policy] = {name: method() for name, method in METHODS.items()}


def policy_named(spec: str) -> Policy:
    """The policy `name` or `name:knob=value,...`; one with knobs set carries them in its name.

    Raises:
        InputError: unknown name or knob (naming the nearest), a value of the wrong type or out of range.
    """
    name, _, settings = spec.partition(":")
    if name not in METHODS:
        raise unknown_name("policy", name, METHODS)
    if not settings:
        return registry[name]
    knobs = dict(_knob(name, setting) for setting in settings.split(","))
    return replace(METHODS[name](**knobs), name=spec)


def policies_named(spec: str) -> tuple[Policy, ...]:
    """The policies of replicas that differ, one after another with + between; a knob's value may have a + of its own.

    Raises:
        InputError: as `policy_named`.
    """
    parts: list[str] = []
    for part in spec.split("+"):
        if parts and ":" in parts[-1] and part.partition(":")[0] not in METHODS:
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return tuple(map(policy_named, parts))


def knobs_of(name: str) -> dict[str, Knob]:
    """The knobs of a method with their defaults."""
    return {knob: parameter.default for knob, parameter in signature(METHODS[name]).parameters.items()}


def _knob(name: str, setting: str) -> tuple[str, Knob]:
    knob, equals, text = setting.partition("=")
    defaults = knobs_of(name)
    if knob not in defaults:
        close = nearest(knob, defaults)
        mend = f"did you mean {close!r}?" if close else f"it has {', '.join(defaults) or 'none'}"
        raise InputError(f"policy {name!r} has no knob {knob!r}; {mend}")
    kind = type(defaults[knob])
    try:
        if not equals:
            raise ValueError
        return knob, kind(text)
    except ValueError as error:
        raise InputError(f"policy {name!r}: write {knob}=VALUE with a value of type {kind.__name__}") from error
