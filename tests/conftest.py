"""What every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A runner that was started in the background ignores Ctrl-C, and so would every command that a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]

# A shared machine stalls any test now and then: time limits are pytest-timeout's business, not an example's.
settings.register_profile("anywhere", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# CI judges a change, so it draws the same examples every time; new ones are drawn wherever people work.
settings.register_profile("ci", settings.get_profile("anywhere"), derandomize=True)
settings.load_profile("ci" if os.environ.get("LEANKV_CI") else "anywhere")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real traces and evaluation data, which lies beside the repository where there is one."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` with the real traces beside the repository")
    return folder
