"""Measured kernel times, read from the package `aiconfigurator-core` and reduced to the curves one model needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from leankv.serving.errors import InputError

PACKAGE = "aiconfigurator_core"
SYSTEMS = {
    "a100-80gb": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "l40s": "l40s",
}
BACKEND = "vllm"
MILLISECONDS = 1e-3
NO_OPTIONS: Mapping[str, Any] = {}


def systems_folder() -> Path:
    """The package's folder of systems.

    Raises:
        InputError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the measured tables come with aiconfigurator-core; run: pip install 'leankv[silicon]'")
    return Path(spec.submodule_search_locations[0]) / "systems"


def system_folder(device: str) -> Path:
    """Folder of one device's tables.

    Raises:
        InputError: there are none for the device (or the package is missing).
    """
    systems = systems_folder()
    if device not in SYSTEMS:
        raise InputError(f"no measured tables for device {device!r}; there are for: {', '.join(SYSTEMS)}")
    return systems / "data" / SYSTEMS[device]


def newest_table(device: str, family: str, backend: str, name: str) -> Path:
    """The table of the newest version that has it: `family/backend/version/name.parquet`.

    Raises:
        InputError: no version has it.
    """
    folder = system_folder(device) / family / backend
    found = [version for version in folder.glob("*") if (version / f"{name}.parquet").is_file()]
    if not found:
        raise InputError(f"device {device!r} has no measured {name} of {backend}; use --step-time roofline")
    return max(found, key=lambda version: _version_key(version.name)) / f"{name}.parquet"


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in version).split())


@dataclass(frozen=True)
class Columns:
    """A table as NumPy columns of one length, filtered to the rows wanted."""

    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def where(self, **wanted: Any) -> Columns:
        """Rows whose columns equal the values wanted."""
        mask = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            mask &= self.columns[name] == value
        return Columns({name: column[mask] for name, column in self.columns.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def read_table(path: Path, names: tuple[str, ...], optional: Mapping[str, Any] = NO_OPTIONS) -> Columns:
    """The columns `names` and `latency`, which is turned into seconds.

    A column of `optional` that the table lacks has the value given there in every row.
    """
    columns = dict(_read_columns(path, names, tuple(optional)).columns)
    rows = len(columns["latency"])
    return Columns({**{name: np.full(rows, value) for name, value in optional.items()}, **columns})


@cache
def _read_columns(path: Path, names: tuple[str, ...], optional: tuple[str, ...]) -> Columns:
    import pyarrow.parquet as pq

    present = set(pq.read_schema(path).names)
    wanted = [*names, *(name for name in optional if name in present)]
    table = pq.read_table(path, columns=[*wanted, "latency"])
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in wanted}
    columns["latency"] = table["latency"].to_numpy().astype(float) * MILLISECONDS
    return Columns(columns)


@dataclass(frozen=True)
class Curve:
    """Seconds over a rising variable, linear between the measured points.

    Beyond the last point it goes on in proportion to `x ** power`; below the first it stays at the first value.
    """

    x: np.ndarray
    seconds: np.ndarray
    power: float = 1.0

    def at(self, x: float) -> float:
        if x > self.x[-1]:
            return float(self.seconds[-1] * (x / self.x[-1]) ** self.power)
        return float(np.interp(x, self.x, self.seconds))


def curve(x: np.ndarray, seconds: np.ndarray, power: float = 1.0) -> Curve:
    """A curve through the points, the mean where one x was measured more than once, and never falling."""
    unique, inverse = np.unique(x.astype(float), return_inverse=True)
    mean = np.bincount(inverse, weights=seconds) / np.bincount(inverse)
    return Curve(unique, np.maximum.accumulate(mean), power)


def gemm_curve(table: Columns, n: int, k: int) -> Curve:
    """Seconds of [m, k] x [k, n] over m, log-linear in n and k between the nearest measured widths.

    A product's time is close to proportional to n and to k, so its logarithm is close to linear in theirs.
    """
    curves = {
        (near_n, near_k): _by_m(table, near_n, near_k)
        for near_n in _neighbours(np.unique(table["n"]), n)
        for near_k in _neighbours(np.unique(table["k"]), k)
    }
    shared = sorted(set.intersection(*(set(found) for found in curves.values())))
    logs = {corner: np.log([found[m] for m in shared]) for corner, found in curves.items()}
    corners_n, corners_k = (sorted({corner[axis] for corner in curves}) for axis in (0, 1))
    blended = sum(
        wn * wk * logs[near_n, near_k]
        for near_n, wn in zip(corners_n, _log_weights(corners_n, n), strict=True)
        for near_k, wk in zip(corners_k, _log_weights(corners_k, k), strict=True)
    )
    return curve(np.array(shared), np.exp(blended))


def _by_m(table: Columns, n: int, k: int) -> dict[int, float]:
    rows = table.where(n=n, k=k)
    return dict(zip(rows["m"].tolist(), rows["latency"].tolist(), strict=True))


def _neighbours(grid: np.ndarray, value: int) -> list[int]:
    """The two grid values around `value` (the last two beyond an end), or itself alone where it is on the grid."""
    if value in grid:
        return [value]
    upper = int(np.clip(np.searchsorted(grid, value), 1, len(grid) - 1))
    return [int(grid[upper - 1]), int(grid[upper])]


def _log_weights(corners: Sequence[int], value: int) -> list[float]:
    if len(corners) == 1:
        return [1.0]
    share = math.log(value / corners[0]) / math.log(corners[1] / corners[0])
    return [1 - share, share]


def nearest_heads(table: Columns, heads: int, kv_heads: int) -> tuple[int, int]:
    """The measured pair of query and KV heads closest to the pair wanted: KV heads first, then the group size."""
    pairs = np.unique(np.stack([table["num_heads"], table["num_key_value_heads"]], axis=1), axis=0)
    best = min(
        pairs.tolist(),
        key=lambda pair: (
            abs(math.log(pair[1] / kv_heads)),
            abs(math.log(pair[0] / pair[1] * kv_heads / heads)),
        ),
    )
    return int(best[0]), int(best[1])
