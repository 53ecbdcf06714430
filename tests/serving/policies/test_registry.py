from importlib import import_module
from pathlib import Path

import pytest

from leankv.serving.errors import InputError
from leankv.serving.formats import K3V2, K4V4, KIVI4
from leankv.serving.policies import registry as registry_module
from leankv.serving.policies.budgets import Residual
from leankv.serving.policies.registry import METHODS, knobs_of, policies_named, policy_named, registry

DESIGN_TABLE = [
    "fp16", "fp8", "int8", "int4", "kivi", "streaming-llm", "h2o", "snapkv", "pyramidkv", "ada-kv", "duo-attention",
    "quest", "turboquant", "expected-attention", "leankv", "leankv-r", "uniform",
]  # fmt: skip
LIVE = {"fp16", "fp8", "int8", "int4", "kivi", "streaming-llm", "h2o", "snapkv", "leankv", "leankv-r", "uniform"}
FOLDER = Path(registry_module.__file__).parent
NOT_METHODS = {"base", "budgets", "curves", "held_tokens", "knobs", "published", "registry", "work"}


def test_names_and_order_are_those_of_the_design() -> None:
    assert list(registry) == DESIGN_TABLE
    assert {name for name, policy in registry.items() if policy.live} == LIVE


@pytest.mark.parametrize("name", DESIGN_TABLE)
def test_method_file_and_policy_share_a_name(name: str) -> None:
    module = name.removesuffix("-r").replace("-", "_")
    method = METHODS[name]
    assert method.__name__ == name.replace("-", "_")
    assert method.__module__ == f"leankv.serving.policies.{module}"
    assert getattr(import_module(method.__module__), method.__name__) is method
    policy = registry[name]
    assert policy.name == name and policy.summary and policy.paper.startswith("https://")
    assert "arXiv" in (method.__doc__ or "") or "vLLM" in (method.__doc__ or "") or name == "leankv-r"


def test_every_method_file_is_registered() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - NOT_METHODS
    assert files == {method.__module__.rsplit(".", 1)[1] for method in METHODS.values()}


def test_knobs_reach_the_policy() -> None:
    policy = policy_named("kivi:bits=4,residual=64")
    assert policy.name == "kivi:bits=4,residual=64"
    assert policy.budget == Residual(recent=64, block=32)
    assert policy.tiers[1].format == KIVI4
    assert [tier.format for tier in policy_named("leankv-r:high=K4V4,low=k3v2").tiers] == [K4V4, K3V2]
    assert policy_named("leankv") is registry["leankv"]


def test_defaults_are_those_of_the_design() -> None:
    assert knobs_of("kivi") == {"bits": 2, "group": 32, "residual": 128}
    assert knobs_of("streaming-llm") == {"sink": 4, "recent": 508}
    assert knobs_of("h2o") == {"heavy": 0.1, "recent": 0.1}
    assert knobs_of("snapkv") == {"budget": 1024, "window": 32, "kernel": 7}
    assert knobs_of("leankv") | {"high": "K8V4", "low": "K4V2", "window": 64} == knobs_of("leankv")
    assert knobs_of("leankv-r") | {"prune": 0.01, "low_mass": 0.2} == knobs_of("leankv-r")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("leankw", "did you mean 'leankv'"),
        ("zzz", "choose one of: fp16, fp8"),
        ("kivi:bit=2", "did you mean 'bits'"),
        ("fp16:bits=2", "it has none"),
        ("kivi:bits", "write bits=VALUE with a value of type int"),
        ("kivi:bits=two", "type int"),
        ("kivi:bits=3", "bits=3: choose one of 2, 4"),
        ("kivi:group=48", "choose one of 32, 64, 128"),
        ("snapkv:budget=8", "budget=8: give at least 32"),
        ("h2o:heavy=0.6,recent=0.6", "give a share from 0 to 1"),
        ("h2o:heavy=nan", "give a share from 0 to 1"),
        ("leankv:alpha_high=0.01", "alpha_high=0.01: give at least 0.02"),
        ("leankv:high=K9V9", "high=K9V9"),
        ("leankv:high=FP", "high=FP"),
        ("leankv:relative_to=token", "choose one of prompt, position"),
        ("leankv-r:bookkeeping=6", "choose one of 5, 8"),
        ("leankv:key_transform=turned", "choose one of none, centred, rotated"),
        ("uniform:format=K5V5", "format=K5V5"),
    ],
)
def test_bad_specs_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        policy_named(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("fp16", ["fp16"]),
        ("fp16+leankv", ["fp16", "leankv"]),
        ("leankv:key_transform=centred+rotated", ["leankv:key_transform=centred+rotated"]),
        ("leankv:key_transform=centred+rotated+fp16", ["leankv:key_transform=centred+rotated", "fp16"]),
        ("kivi:bits=2+kivi:bits=4", ["kivi:bits=2", "kivi:bits=4"]),
    ],
)
def test_replicas_are_told_from_a_knob_with_a_plus(spec: str, names: list[str]) -> None:
    assert [policy.name for policy in policies_named(spec)] == names


def test_an_unknown_replica_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'leankv'"):
        policies_named("fp16+leankw")
