"""Step-time sources by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leankv.serving.devices import DeviceSpec
from leankv.serving.errors import unknown_name
from leankv.serving.models import ModelSpec
from leankv.simulator.step_time.base import StepTimeModel


def step_time_named(name: str, model: ModelSpec, device: DeviceSpec, tp: int = 1) -> StepTimeModel:
    """The step-time model of that source.

    Raises:
        InputError: unknown, naming the nearest source; or the source has no figures for the model on the device.
    """
    if name not in _SOURCES:
        raise unknown_name("step-time source", name, _SOURCES)
    return _SOURCES[name](model, device, tp)


def _roofline(model: ModelSpec, device: DeviceSpec, tp: int) -> StepTimeModel:
    from leankv.simulator.step_time.roofline import roofline

    return roofline(model, device, tp)


def _silicon(model: ModelSpec, device: DeviceSpec, tp: int) -> StepTimeModel:
    from leankv.simulator.step_time.silicon import silicon

    return silicon(model, device, tp)


_SOURCES: Mapping[str, Callable[[ModelSpec, DeviceSpec, int], StepTimeModel]] = {
    "roofline": _roofline,
    "silicon": _silicon,
}
