"""From a run to its KV memory over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leankv.app.figures.memory import Usage
from leankv.app.timelines import across_replicas
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.serving.runs import Run


def usage_of(run: Run) -> Usage:
    """The run's pages in bytes, its tiers by their names and formats; replicas are summed."""
    return Usage(across_replicas(run.timeline), int(run.summary["page_bytes"]), tier_names(run.policy))


def tier_names(policy: str) -> tuple[str, ...]:
    """Names of a policy's tiers with their formats; plain numbers where this version does not know the policy."""
    from leankv.serving.policies.registry import policy_named

    try:
        tiers = policy_named(policy).tiers
    except InputError:
        return ("tier 0", "tier 1")
    return tuple(
        tier.format.name if tier.name in ("all", tier.format.name) else f"{tier.name}: {tier.format.name}"
        for tier in tiers
    )
