"""A profile as text in the terminal: step costs in words, the fit's error, what is kept, the noise."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leankv.serving.profile import PolicyProfile, Profile

REGIMES = ("decode", "prefill", "mixed")
WORST = ("too noisy", "noisy", "quiet")
MIB = 1 << 20


def told(profile: Profile) -> dict[str, Any]:
    """The table's figures, as `--json` has them."""
    return {
        "model": profile.model.name,
        "device": dict(profile.device),
        "noise": dict(profile.noise),
        "policies": {
            name: {
                "fit": policy.fit.to_dict(),
                "fit_in_words": words(profile, name),
                "held_out": {regime: asdict(error) for regime, error in policy.held_out.items()},
                "retention": policy.retention.to_dict() if policy.retention else None,
                "memory": dict(policy.memory),
            }
            for name, policy in profile.policies.items()
        },
    }


def words(profile: Profile, name: str) -> list[str]:
    """A policy's fit, a sentence a term."""
    from leankv.serving.policies.registry import policy_named
    from leankv.simulator.step_time.fit_words import in_words

    tiers = {number: f"the tier {tier.name!r}" for number, tier in enumerate(policy_named(name).tiers)}
    return in_words(profile.policies[name].fit, tiers)


def print_profile(profile: Profile) -> None:
    """What was measured, policy by policy; then the errors of all, and the machine's noise."""
    print(f"{profile.model.name} on {profile.device['name']} ({profile.device['dtype']}), {profile.created}")
    for name, policy in profile.policies.items():
        print(f"\n{name}")
        for line in words(profile, name):
            print(f"  {line}")
        for line in _kept(policy):
            print(f"  {line}")
    print("\nerror of the fit on steps that it has not seen, median (9th decile), by regime")
    for name, policy in profile.policies.items():
        print(f"  {name:<24}" + "  ".join(f"{regime} {_error(policy, regime):<16}" for regime in REGIMES))
    print()
    for name, noise in profile.noise.items():
        steps = f"{noise['steps']} steps, {noise['undisturbed']:.0%} undisturbed"
        drift = f", rounds {noise['drift']:.2f}x apart" if noise["rounds"] > 1 else ""
        print(f"  {name:<24}{steps}, {noise['lost']:.0%} of the points never{drift}: {noise['verdict']}")
    verdict = next(each for each in WORST if any(noise["verdict"] == each for noise in profile.noise.values()))
    advice = "" if verdict == "quiet" else "; calibrate again when nothing else runs" if verdict == "too noisy" else ""
    print(f"the machine was {verdict}{advice}")


def _error(policy: PolicyProfile, regime: str) -> str:
    found = policy.held_out.get(regime)
    return "-" if found is None else f"{found.median:.1%} ({found.p90:.1%})"


def _kept(policy: PolicyProfile) -> list[str]:
    memory, lines = policy.memory, []
    if policy.retention is not None:
        parts = []
        for context, kept in list(zip(policy.retention.contexts, policy.retention.kept, strict=True))[1:]:
            parts.append(f"{context:,}: " + " + ".join(f"{tokens / context:.0%}" for tokens in kept))
        lines.append(f"kept of prompts, by tier ({policy.retention.source}): {', '.join(parts)}")
    if memory:
        pages = f"{memory['kv_pool_pages']:,} pages of {memory['page_bytes']:,} bytes"
        pool, peak = (memory[name] / MIB for name in ("kv_pool_bytes", "peak_bytes"))
        lines.append(f"pool: {pages} in {pool:,.0f} MiB; most memory taken: {peak:,.0f} MiB")
    return lines
