"""aiconfigurator's own estimate of the rows of `silicon_bench`, run live from the package that carries its core."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from leankv.serving.errors import InputError
from leankv.simulator.silicon_bench import BACKEND, MEASURED_MODEL, MEASURED_SYSTEM, Latencies, ServingPoint


def peer_predictions(points: Sequence[ServingPoint]) -> list[Latencies]:
    """Estimates of continuous batching with its defaults: the newest tables, a context budget of one prompt a step.

    Raises:
        InputError: the package is missing, or its interface is another than that of 0.12.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return _estimates(points)
    except (ImportError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"aiconfigurator-core cannot estimate here ({error}); install version 0.12") from error
    finally:
        logging.disable(before)


def _estimates(points: Sequence[ServingPoint]) -> list[Latencies]:
    from aiconfigurator_core.sdk import common, config
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.perf_database import get_database, get_latest_database_version

    version = get_latest_database_version(system=MEASURED_SYSTEM, backend=BACKEND)
    database = get_database(MEASURED_SYSTEM, BACKEND, version) if version else None
    if database is None:
        raise InputError(f"aiconfigurator-core has no tables of {BACKEND} on {MEASURED_SYSTEM}; install version 0.12")
    by_tp = {}
    for tp in sorted({point.tp for point in points}):
        setup = config.ModelConfig(
            tp_size=tp,
            gemm_quant_mode=common.GEMMQuantMode.bfloat16,
            kvcache_quant_mode=common.KVCacheQuantMode.bfloat16,
            fmha_quant_mode=common.FMHAQuantMode.bfloat16,
        )
        # A backend caches by lengths and batch alone, so each number of ranks needs its own.
        by_tp[tp] = (get_backend(BACKEND), get_model(MEASURED_MODEL, setup, BACKEND))
    found = []
    for point in points:
        backend, model = by_tp[point.tp]
        asked = config.RuntimeConfig(batch_size=point.concurrency, isl=point.isl, osl=point.osl)
        row = backend.run_agg(model, database, asked, ctx_tokens=point.isl).get_summary_df().iloc[0]
        found.append(Latencies(float(row["ttft"]), float(row["tpot"])))
    return found
