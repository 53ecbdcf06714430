"""Run a trace live and simulated with this machine's profile, and say how far the projection is off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from leankv.app.commands._deployment import Gib, Policies, Slo, parse_slo
from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Count, File, Requests, Text

if TYPE_CHECKING:
    from leankv.app.commands._validation_plan import Plan
    from leankv.app.commands._validation_runs import LiveRun, Results
    from leankv.backend.live_run import LiveConfig
    from leankv.backend.weights import Loaded
    from leankv.serving.profile import Profile
    from leankv.serving.runs import Run
    from leankv.simulator.validation import Validation
    from leankv.traces.trace import Trace

ABOUT = """\
Serve a trace live under some policies and loads, simulate the same, and compare metric by metric.

  leankv validate --profile profiles/mine --limit 40 --max-prompt 256 --max-output 32 --output-dir validated
  leankv validate --profile profiles/mine --policy fp16 --policy leankv --load overload --repeats 1 --limit 100
  leankv validate --calibrate --limit 40 --max-prompt 256 --max-output 32 --output-dir validated

The simulator sees the trace and the profile (`leankv calibrate` measures one), and nothing of the live runs. Loads are
found by the simulator: knee, the highest rate served in time, two thirds of it (low), half as much again (overload). A
run's folder is written when it is finished; with the same settings and --output-dir, a later call goes on after it.
"""
REPEATS, LOAD_S = 3, 540.0
"""Repeats, and the seconds that those of one load may take together, where nothing else is asked."""
Loads = Annotated[
    tuple[Literal["low", "knee", "overload"], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="NAME", help_behavior_hint=""),
]
Scale = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]


@dataclass(frozen=True)
class Validate:
    trace: Annotated[Requests, tyro.conf.arg(name="")] = field(default_factory=Requests)
    profile: File = None
    """The profile of this machine and model: the folder that `leankv calibrate` wrote."""
    calibrate: bool = False
    """Without a --profile: measure one into the folder `profile` of --output-dir, a round before each repeat and one
    after the last, so that a machine whose speed drifts does so under both; takes some minutes a round more."""
    model: Text = None
    """The model to run, where the profile's own name does not find it: a folder, a .gguf file, a name."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if there is one."""
    policy: Policies = ()
    """A KV-cache policy that runs live, repeatable; knobs follow a colon: kivi:bits=2. Default: fp16, int8, kivi,
    leankv."""
    load: Loads = ()
    """low, knee or overload, repeatable; default: all three."""
    repeats: Count = None
    """Live runs of each policy and load; their median is compared, their spread shown. Default: 3, or as many as fit
    into ten minutes a load."""
    knee: Scale = None
    """Rate scale of the knee, where it is known; default: found with the simulator, under fp16 or the first policy."""
    kv_memory_gib: Gib = None
    """KV pool in GiB; default: what fp16 needs for half of --max-num-seqs requests, so that memory counts, too."""
    max_num_seqs: int = 16
    """Requests that run at once, at most."""
    max_num_batched_tokens: int = 512
    """Tokens that one step computes, at most."""
    chunked_prefill: bool = True
    """Cut prompts where the token budget of a step ends."""
    slo: Slo = ("ttft:1000", "tpot:50")
    """Service levels in ms, for the goodput in each run's summary."""
    output_dir: File = None
    """Folder for validation.json and a run folder a run: LOAD/POLICY/simulated, LOAD/POLICY/live-1, ..."""
    json: File = None
    """Write every summary and the whole comparison to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv validate`; raises InputError for bad input, and for a run that fails: what has run is compared."""
    command = parsed(Validate, "leankv validate", ABOUT, argv)
    _check(command)
    # Threads that spin while they wait take the cores from each other where anything else runs: ten times slower here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from leankv.app.commands._validation_plan import planned, recalibrated
    from leankv.app.commands._validation_runs import Results
    from leankv.serving.errors import InputError

    plan = planned(command)
    results = Results()
    try:
        _simulate(plan, results)
        _measure(plan, results)
        if command.calibrate:
            plan = recalibrated(plan, 1 + max(results.repeats(load.name) for load in plan.loads))
            _simulate(plan, results)
    except KeyboardInterrupt:
        if results.live:
            _finish(plan, results)
        raise
    except InputError:
        # What ended it may keep this from being written, too (a full disk); the first error is the one to tell.
        with suppress(InputError):
            if results.live:
                _finish(plan, results)
        raise
    _finish(plan, results)
    return 0


def _check(command: Validate) -> None:
    """Refuse what cannot work, before anything is loaded."""
    from leankv.serving.errors import InputError

    require_place_for_file(command.json)
    require_place_for_folder(command.output_dir)
    parse_slo(command.slo)
    if command.profile is None and not command.calibrate:
        raise InputError("--profile is missing: name the folder that leankv calibrate wrote here, or give --calibrate")
    if command.calibrate and (command.profile is not None or command.output_dir is None):
        raise InputError("--calibrate makes a profile in --output-dir: name that folder, and no --profile")
    if command.repeats is not None and command.repeats < 1:
        raise InputError(f"--repeats {command.repeats}: give at least 1")
    if command.knee is not None and not command.knee > 0:
        raise InputError(f"--knee {command.knee:g} is no rate scale; give a number above 0")


def _simulate(plan: Plan, results: Results) -> None:
    """Everything is predicted before anything is measured; and once more where a profile has grown meanwhile."""
    from leankv.simulator.run import simulate

    with progress_bar(f"{len(plan.loads) * len(plan.policies)} simulations") as report:
        cases = [(load, policy) for load in plan.loads for policy in plan.policies]
        for number, (load, policy) in enumerate(cases, 1):
            run = simulate(plan.simulation(policy), plan.traces[load.name])
            results.simulated[load.name, policy.name] = run
            plan.folders.save_simulated(load.name, policy.name, run)
            report(number / len(cases))


def _simulate_paced(plan: Plan, results: Results) -> None:
    """Once more for each live run, at the pace that the machine had meanwhile."""
    from leankv.simulator.run import simulate

    policies = {policy.name: policy for policy in plan.policies}
    for (load, name, repeat), pace in results.paces(plan.profile.usual_reference_s).items():
        made = simulate(plan.simulation(policies[name], pace), plan.traces[load])
        results.paced.setdefault((load, name), {})[repeat] = made


def _measure(plan: Plan, results: Results) -> None:
    """Run live, in turns, what an earlier call has not."""
    from leankv.app.commands._validation_plan import calibrated
    from leankv.app.commands._validation_runs import in_turns

    repeats = {load.name: plan.command.repeats or _repeats(results.expected_s(load.name)) for load in plan.loads}
    runs = list(in_turns(repeats, plan.policies))
    for repeat in range(max(repeats.values())):
        if plan.command.calibrate:
            calibrated(plan.command, repeat + 1)
        _measure_repeat(plan, results, repeats, [run for run in runs if run.repeat == repeat])


def _measure_repeat(plan: Plan, results: Results, repeats: Mapping[str, int], runs: Sequence[LiveRun]) -> None:
    """The bar's time left follows the simulated durations."""
    lasting = [results.simulated[run.load, run.policy.name].summary["duration_s"] for run in runs]
    with progress_bar(f"{len(runs)} live runs") as report:
        for number, (run, expected_s) in enumerate(zip(runs, lasting, strict=True)):
            before_s = sum(lasting[:number])

            def partly(share: float, before_s: float = before_s, expected_s: float = expected_s) -> None:
                report((before_s + share * expected_s) / sum(lasting))

            made = _live(plan, run, results, partly)
            partly(1.0)
            told = f"{made.summary['duration_s']:.1f} s, {made.summary['preemptions']} preemptions"
            print(f"{run.load}, {run.policy.name}, repeat {run.repeat + 1} of {repeats[run.load]}: {told}", flush=True)


def _repeats(round_s: float) -> int:
    """As many as the time of one load allows, where a run of each policy takes `round_s`."""
    return max(1, min(REPEATS, int(LOAD_S / (round_s + 1e-9))))


def _live(plan: Plan, run: LiveRun, results: Results, report: Callable[[float], None]) -> Run:
    """One live run, by the path of `leankv run`, or the one that an earlier call finished: traced lengths to the token.

    It is among the results before it is saved, so that a disk that is full costs only the folder.
    """
    from leankv.backend.live_request import Sampling

    trace, sampling = plan.traces[run.load], Sampling(seed=plan.command.trace.seed, ignore_eos=True)
    config = plan.setup.config(run.policy, plan.limits, sampling, parse_slo(plan.command.slo))
    kept = plan.folders.kept(run, config.as_dict(trace))
    made = kept or _measured(plan, config, trace, report)
    results.add(run, made)
    if kept is None:
        plan.folders.save_live(run, made)
    return made


def _measured(plan: Plan, config: LiveConfig, trace: Trace, report: Callable[[float], None]) -> Run:
    """A run with the machine's speed around it. Raises InputError where the cache fails."""
    from leankv.backend.calibration.reference import Reference
    from leankv.backend.live_run import run_live
    from leankv.backend.neighbours import Neighbours
    from leankv.backend.pace import PaceMeter
    from leankv.backend.step_read import CacheFault
    from leankv.serving.errors import InputError

    setup = plan.setup
    before, others = machine_speed(setup.loaded, plan.profile), Neighbours()
    # A GPU's own pace is steady, and the reference would tell how fast the host launches.
    meter = None if setup.loaded.model.device.type == "cuda" else PaceMeter(Reference(setup.loaded.model))
    try:
        made = run_live(setup.loaded, config, trace, setup.prompts, report, setup.key_means, meter)
    except CacheFault as fault:
        raise InputError(f"--policy {config.policy.name}: the cache failed: {fault}; its run is not written") from fault
    after = machine_speed(setup.loaded, plan.profile)
    machine = {"others": others.share(), "before": before, "after": after, "reference_s": meter and meter.reference_s()}
    return replace(made, summary={**made.summary, "machine": machine})


def machine_speed(loaded: Loaded, profile: Profile) -> float | None:
    """How long a reference step lasts now, as a multiple of what the profile says; None where it has no fp16 step."""
    from leankv.backend.reference import CONTEXT, SEQUENCES, reference_step_s
    from leankv.serving.memory import MemoryModel
    from leankv.serving.paired import BASELINE
    from leankv.serving.policies.registry import policy_named

    if BASELINE not in profile.policies:
        return None
    fit = profile.policies[BASELINE].fit
    read = MemoryModel(policy_named(BASELINE), profile.model).kv_read(CONTEXT, CONTEXT)
    decode_s = fit.decode(SEQUENCES, [SEQUENCES * each for each in read])
    return reference_step_s(loaded) / (fit.linear(SEQUENCES) + fit.row_s * SEQUENCES + decode_s)


def _finish(plan: Plan, results: Results) -> None:
    """Compare what has run, print it, and write it where asked: each file even where the other cannot be."""
    from leankv.app.commands._validation_tables import print_validation
    from leankv.simulator.validation import save_validation, validated

    _simulate_paced(plan, results)
    loads = {load.name: load.as_dict() for load in plan.loads}
    machine = results.machine(plan.profile.usual_reference_s)
    validation = validated(_conditions(plan, results), loads, results.cases(), machine)
    print_validation(validation)
    try:
        if plan.command.output_dir is not None:
            save_validation(validation, plan.command.output_dir / "validation.json")
    finally:
        if plan.command.json is not None:
            _write_json(plan.command.json, results, validation)


def _write_json(path: Path, results: Results, validation: Validation) -> None:
    from leankv.serving.files import atomic_write

    content = {"runs": results.as_json(), **validation.as_json()}
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _conditions(plan: Plan, results: Results) -> dict[str, Any]:
    """What was asked, of whom, and which profile predicted it."""
    from leankv.backend.reference import versions

    trace = plan.trace
    return {
        "device": dict(plan.setup.device),
        "model": asdict(plan.setup.model),
        "trace": {"name": trace.name, "requests": len(trace), **trace.provenance},
        "policies": [policy.name for policy in plan.policies],
        "repeats": {load.name: results.repeats(load.name) for load in plan.loads},
        **asdict(plan.limits),
        "kv_memory_bytes": plan.setup.kv_memory_bytes,
        "versions": versions(),
        "profile": {**plan.profile.identity, "versions": dict(plan.profile.versions)},
    }
