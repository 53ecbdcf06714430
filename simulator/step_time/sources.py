"""Step-time sources by name."""

from __future__ import annotations

from leankv.serving.devices import DeviceSpec
from leankv.serving.errors import unknown_name
from leankv.serving.models import ModelSpec
from leankv.simulator.step_time.base import StepTimeModel
from leankv.simulator.step_time.dequantization import FAMILIES, KernelFamily
from leankv.simulator.step_time.overhead import DEFAULT_OVERHEAD, Overhead

SOURCES = ("roofline", "silicon")


def step_time_named(
    name: str, model: ModelSpec, device: DeviceSpec, tp: int = 1, overhead: Overhead = DEFAULT_OVERHEAD
) -> StepTimeModel:
    """The step-time model of that source: `roofline`, `silicon`, or either with the kernels that read quantized caches.

    `roofline:vllm-turboquant` names the kernels (`dequantization.FAMILIES`); the default is tuned ones.

    Raises:
        InputError: unknown, naming the nearest source; or the source has no figures for the model on the device.
    """
    source, _, kernels = name.partition(":")
    if source not in SOURCES:
        raise unknown_name("step-time source", source, SOURCES)
    family = _family(kernels)
    if source == "silicon":
        from leankv.simulator.step_time.silicon import silicon

        return silicon(model, device, tp, overhead, family)
    from leankv.simulator.step_time.roofline import roofline

    return roofline(model, device, tp, overhead, family)


def _family(name: str) -> KernelFamily | None:
    if name and name not in FAMILIES:
        raise unknown_name("kernel family", name, FAMILIES)
    return FAMILIES[name] if name else None
