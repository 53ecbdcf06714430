"""Measured profiles: which there are, how to name one, and what its fit says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from leankv.app import found
from leankv.app.scenario import file_version
from leankv.app.usage import tier_names
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.serving.profile import HeadRetention, Profile


def of_date(created: str) -> Profile | None:
    """The profile that was measured at this very time, if it is shipped or a job made it."""
    from leankv.serving.profile import load_profile

    for folder in found.offered("profile").values():
        try:
            profile = load_profile(folder)
        except InputError:
            continue  # another's fault: the one that is looked for may still come
        if profile.created == created:
            return profile
    return None


def read(folder: str) -> Profile:
    """The profile in this folder, read once for each state of its file. Raises InputError as `load_profile`."""
    return _read(folder, file_version(f"{folder}/profile.json"))


@st.cache_resource(max_entries=8, show_spinner=False)
def _read(folder: str, version: str) -> Profile:
    from leankv.serving.profile import load_profile

    return load_profile(folder)


def opened(name: str) -> Path:
    """The folder behind a profile's name, or behind a path that was typed."""
    return found.offered("profile").get(name) or Path(name).expanduser()


def in_words(profile: Profile, policy: str) -> list[str]:
    """A sentence a term of the policy's step-time fit."""
    from leankv.simulator.step_time.fit_words import in_words as fit_in_words

    return fit_in_words(profile.policies[policy].fit, dict(enumerate(tier_names(policy))))


def with_heads(model: str) -> dict[str, HeadRetention]:
    """Policy -> what each of its heads keeps, of the first profile of this model that measured it."""
    from leankv.serving.profile import load_profile

    for folder in found.offered("profile").values():
        try:
            profile = load_profile(folder)
        except InputError:
            continue  # see `of_date`
        measured = {name: each.heads for name, each in profile.policies.items() if each.heads is not None}
        if measured and profile.model.name == model:
            return measured
    return {}
