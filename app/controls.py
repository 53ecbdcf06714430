"""The sidebar: every choice of a scenario is a widget, and every widget is in the URL: a link restores the page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st

from leankv.app import found, profiles
from leankv.app.home import uploads_folder
from leankv.app.scenario import Scenario
from leankv.serving.errors import InputError

DEFAULT = Scenario()

HELP = {
    "trace": "Where the requests come from: a built-in or public trace, a file on this machine (type its path), or a "
    "synthetic workload such as `poisson:rate=5,n=2000`.",
    "rate": "How much faster the same requests arrive: 2 halves every gap between them.",
    "limit": "Only the first so many requests. 0 takes the whole trace.",
    "model": "Preset, or the path of a Hugging Face `config.json` on this machine. Only its shape matters here.",
    "gpu": "Memory, bandwidth, dense arithmetic and price of this GPU bound what the simulator projects.",
    "tp": "Tensor parallelism: so many GPUs hold one copy of the model together.",
    "policy": "What becomes of a request's KV cache. Knobs follow a colon: type `kivi:bits=4` or `snapkv:budget=2048`.",
    "ttft": "Time to first token: from the request's arrival to its first token, waiting and prompt included.",
    "tpot": "Time per output token: the mean gap between the tokens after the first.",
    "kv": "Memory for the KV cache on each GPU. Empty: what 90 % of the GPU's memory leaves beside the weights.",
    "steptime": "How long one engine step takes. `roofline`: from the spec sheets of GPU and model. `silicon`: from "
    "kernel times measured on the GPU (needs the extra `silicon`). `profile`: as measured by this project's engine on "
    "one machine and model, with the KV cache as kept there.",
    "profile": "What `leankv calibrate` measured: one that ships with this project, that a job made, or a folder: type "
    "its path. It brings its model, its device and its policies.",
    "seqs": "At most so many requests run at once (vLLM: max_num_seqs).",
    "batch": "At most so many tokens a step, prompts and decodes together (vLLM: max_num_batched_tokens).",
    "chunked": "Long prompts are cut into pieces that share steps with decoding requests.",
    "prefix": "Requests whose prompts begin alike share the pages of the common part, where trace and policy allow it.",
    "replicas": "So many copies of the deployment, each with its own queue.",
    "router": "Which replica takes the next request.",
    "seed": "Everything random follows from it; the same seed gives the same result.",
}


def scenario_controls() -> Scenario:
    """Draw the sidebar of a comparison and return what it asks for."""
    with st.sidebar:
        traffic = traffic_controls()
        st.subheader("Deployment")
        deployment = _deployment_controls()
        st.subheader("Policies")
        policies = _policy_control(deployment)
        st.subheader("Service levels", help="Goodput counts a request only if it keeps every service level (SLO).")
        levels = _slo_controls()
        with st.expander("Engine", icon=":material/tune:"):
            engine = _engine_controls(deployment)
    return Scenario(policies=policies, **traffic, **deployment, **levels, **engine)


def traffic_controls(limited: bool = True) -> dict[str, Any]:
    """The widgets that choose and shape the trace; where it is not `limited`, all of it."""
    st.subheader("Traffic")
    trace = st.selectbox(
        "Trace",
        _traces(),
        key="trace",
        help=HELP["trace"],
        accept_new_options=True,
        placeholder="Name or path",
        bind="query-params",
    )
    with st.popover("Upload a trace", icon=":material/upload:", width="stretch"):
        st.file_uploader(
            "CSV, JSONL or Parquet, plain or gzip",
            type=["csv", "jsonl", "parquet", "gz"],
            key="upload",
            on_change=_take_upload,
        )
    left, right = st.columns(2)
    rate = left.number_input(
        "Rate scale", 0.01, 1000.0, DEFAULT.rate_scale, 0.25, key="rate", help=HELP["rate"], bind="query-params"
    )
    limit = 0
    if limited:
        limit = right.number_input(
            "Requests", 0, 10_000_000, DEFAULT.limit, 500, key="limit", help=HELP["limit"], bind="query-params"
        )
    return {"trace": trace or DEFAULT.trace, "rate_scale": float(rate), "limit": int(limit)}


def _traces() -> list[str]:
    from leankv.traces.catalogue import public_names
    from leankv.traces.measured import embedded_names

    embedded = sorted(embedded_names(), key=lambda name: name != DEFAULT.trace)
    return [*embedded, *public_names()]


def _take_upload() -> None:
    """Keep the uploaded file under its content's name and choose it; the URL then names it, too."""
    upload = st.session_state.get("upload")
    if upload is None:
        return
    content = upload.getvalue()
    path = uploads_folder() / f"{hashlib.sha256(content).hexdigest()[:8]}-{Path(upload.name).name}"
    path.write_bytes(content)
    st.session_state["trace"] = str(path)


def _deployment_controls() -> dict[str, Any]:
    steptime = st.segmented_control(
        "Step times",
        _sources(),
        default=DEFAULT.step_time,
        key="steptime",
        help=HELP["steptime"],
        required=True,
        bind="query-params",
    )
    place = _measured_place() if steptime == "profile" else _preset_place()
    kv = st.number_input(
        "KV memory per GPU (GiB)",
        0.001,
        2000.0,
        None,
        1.0,
        key="kv",
        help=HELP["kv"],
        placeholder="automatic",
        bind="query-params",
    )
    return {**place, "kv_memory_gib": float(kv or 0), "step_time": steptime or DEFAULT.step_time}


def _sources() -> list[str]:
    """Where step times can come from in this environment."""
    installed = find_spec("aiconfigurator_core") is not None
    return ["roofline", "silicon", "profile"] if installed else ["roofline", "profile"]


def _measured_place() -> dict[str, Any]:
    """A profile's model and device, told rather than asked."""
    places = found.offered("profile")
    name = st.selectbox(
        "Profile",
        list(places),
        0 if places else None,
        key="profile",
        help=HELP["profile"],
        accept_new_options=True,
        placeholder="Calibrate first, or type a folder",
        bind="query-params",
    )
    folder = str(profiles.opened(name)) if name else ""
    with suppress(InputError):  # the page says what is wrong with it
        profile = profiles.read(folder)
        st.caption(f"**{profile.model.name}** on **{profile.device['name']}**, measured {profile.created[:10]}")
        return {"profile": folder, "model": profile.model.name, "device": str(profile.device["name"])}
    return {"profile": folder}


def _preset_place() -> dict[str, Any]:
    from leankv.serving.devices import DEVICES
    from leankv.serving.models import model_presets

    models, devices = list(model_presets()), list(DEVICES)
    model = st.selectbox(
        "Model",
        models,
        models.index(DEFAULT.model),
        key="model",
        help=HELP["model"],
        accept_new_options=True,
        bind="query-params",
    )
    left, right = st.columns([3, 2])
    device = left.selectbox(
        "GPU", devices, devices.index(DEFAULT.device), key="gpu", help=HELP["gpu"], bind="query-params"
    )
    tp = right.number_input("GPUs (TP)", 1, 64, DEFAULT.tp, key="tp", help=HELP["tp"], bind="query-params")
    return {"model": model or DEFAULT.model, "device": device, "tp": int(tp)}


def _policy_control(deployment: Mapping[str, Any]) -> tuple[str, ...]:
    from leankv.serving.policies.registry import registry

    if deployment.get("profile"):
        return _measured_policies(deployment["profile"])
    chosen = st.multiselect(
        "Policies to compare",
        list(registry),
        list(DEFAULT.policies),
        key="policy",
        help=HELP["policy"],
        accept_new_options=True,
        label_visibility="collapsed",
        bind="query-params",
    )
    with st.popover("What are these?", icon=":material/help:", width="stretch"):
        for policy in registry.values():
            st.markdown(f"**[{policy.name}]({policy.paper})**: {policy.summary}")
    return tuple(chosen)


def _measured_policies(folder: str) -> tuple[str, ...]:
    """All that the profile measured, of which some can be chosen; a choice of its own, since others do not apply."""
    try:
        names = list(profiles.read(folder).policies)
    except InputError:
        return DEFAULT.policies
    help = "Those that the profile measured. Choose other step times to compare any."
    chosen = st.multiselect(
        "Measured policies", names, names, key="measured", help=help, label_visibility="collapsed", bind="query-params"
    )
    return tuple(chosen)


def _slo_controls() -> dict[str, Any]:
    left, right = st.columns(2)
    ttft = left.number_input(
        "TTFT (ms)", 1.0, 1e7, DEFAULT.ttft_ms, 100.0, "%.0f", key="ttft", help=HELP["ttft"], bind="query-params"
    )
    tpot = right.number_input(
        "TPOT (ms)", 1.0, 1e6, DEFAULT.tpot_ms, 5.0, "%.0f", key="tpot", help=HELP["tpot"], bind="query-params"
    )
    return {"ttft_ms": float(ttft), "tpot_ms": float(tpot)}


def _engine_controls(deployment: Mapping[str, Any]) -> dict[str, Any]:
    from leankv.simulator.routing import ROUTERS

    routers = list(ROUTERS)
    if deployment.get("profile"):
        return {**_measured_limits(deployment["profile"]), **_other_engine_controls(routers)}
    seqs = st.number_input(
        "Running requests at most",
        1,
        8192,
        DEFAULT.max_num_seqs,
        32,
        key="seqs",
        help=HELP["seqs"],
        bind="query-params",
    )
    batch = st.number_input(
        "Tokens a step at most",
        16,
        1 << 20,
        DEFAULT.max_num_batched_tokens,
        512,
        key="batch",
        help=HELP["batch"],
        bind="query-params",
    )
    limits = {"max_num_seqs": int(seqs), "max_num_batched_tokens": int(batch)}
    return {**limits, **_other_engine_controls(routers)}


def _measured_limits(folder: str) -> dict[str, Any]:
    """A profile's step times hold as far as they were measured."""
    with suppress(InputError):
        settings = profiles.read(folder).settings
        limits = {name: settings[name] for name in ("max_num_seqs", "max_num_batched_tokens") if name in settings}
        said = [f"{limits[name]:,} {unit}" for name, unit in _LIMITS.items() if name in limits]
        st.caption(f"As far as the profile was measured: at most {' and '.join(said)}." if said else "")
        return limits
    return {}


_LIMITS = {"max_num_seqs": "running requests", "max_num_batched_tokens": "tokens a step"}


def _other_engine_controls(routers: list[str]) -> dict[str, Any]:
    chunked = st.toggle(
        "Chunked prefill", DEFAULT.chunked_prefill, key="chunked", help=HELP["chunked"], bind="query-params"
    )
    prefix = st.toggle("Prefix caching", DEFAULT.prefix_caching, key="prefix", help=HELP["prefix"], bind="query-params")
    replicas = st.number_input(
        "Replicas", 1, 256, DEFAULT.replicas, key="replicas", help=HELP["replicas"], bind="query-params"
    )
    router = st.selectbox(
        "Router", routers, routers.index(DEFAULT.router), key="router", help=HELP["router"], bind="query-params"
    )
    seed = st.number_input("Seed", 0, 1 << 31, DEFAULT.seed, key="seed", help=HELP["seed"], bind="query-params")
    return {
        "chunked_prefill": chunked,
        "prefix_caching": prefix,
        "replicas": int(replicas),
        "router": router,
        "seed": int(seed),
    }
