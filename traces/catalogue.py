"""Named public traces: where to get them, how to check them, under which licence. None is shipped with the package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from leankv.serving.errors import InputError, unknown_name

AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
AZURE_2024 = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024"
MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces"
BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v1.1"
SERVEGEN = "https://github.com/alibaba/ServeGen/archive/refs/heads/main.tar.gz"
VIDUR = "https://raw.githubusercontent.com/microsoft/vidur/main/data/processed_traces"

SPLITWISE = "Patel et al., Splitwise, ISCA 2024"
DYNAMOLLM = "Stojkovic et al., DynamoLLM, HPCA 2025"
FAST25 = "Qin et al., Mooncake, FAST 2025"
BURSTGPT_PAPER = "Wang et al., BurstGPT, arXiv 2401.17644"
SERVEGEN_PAPER = "Xiang et al., ServeGen, NSDI 2026"
VIDUR_PAPER = "Agrawal et al., Vidur, MLSys 2024"


@dataclass(frozen=True)
class PublicTrace:
    """One entry. sha256: of the decompressed file, None where not known; checksum_from: who computed it.

    folder: the model's folder inside an archive of several.
    """

    name: str
    about: str
    url: str
    file: str
    licence: str
    cite: str
    sha256: str | None = None
    checksum_from: str = "unknown"
    folder: str | None = None


READ_COPY = "a copy read by this project"
LFS = "the repository's own LFS pointer"

PUBLIC_TRACES = (
    PublicTrace(
        "azure-conv-2023",
        "Azure conversation service, 58 min, 19,366 requests",
        f"{AZURE}/AzureLLMInferenceTrace_conv.csv",
        "AzureLLMInferenceTrace_conv_2023.csv",
        "CC-BY-4.0",
        SPLITWISE,
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        READ_COPY,
    ),
    PublicTrace(
        "azure-code-2023",
        "Azure code service, 57 min, 8,819 requests",
        f"{AZURE}/AzureLLMInferenceTrace_code.csv",
        "AzureLLMInferenceTrace_code_2023.csv",
        "CC-BY-4.0",
        SPLITWISE,
    ),
    PublicTrace(
        "azure-conv-2024",
        "Azure conversation service, one week, 1.1 GB",
        f"{AZURE_2024}/AzureLLMInferenceTrace_conv_1week.csv",
        "AzureLLMInferenceTrace_conv_1week.csv",
        "CC-BY-4.0",
        DYNAMOLLM,
    ),
    PublicTrace(
        "azure-code-2024",
        "Azure code service, one week, 0.7 GB",
        f"{AZURE_2024}/AzureLLMInferenceTrace_code_1week.csv",
        "AzureLLMInferenceTrace_code_1week.csv",
        "CC-BY-4.0",
        DYNAMOLLM,
    ),
    PublicTrace(
        "mooncake-conversation",
        "Kimi conversations with prefix hashes, 59 min, 12,031 requests",
        f"{MOONCAKE}/conversation_trace.jsonl",
        "mooncake_conversation_trace.jsonl",
        "Apache-2.0",
        FAST25,
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        READ_COPY,
    ),
    PublicTrace(
        "mooncake-toolagent",
        "Kimi tools and agents with prefix hashes",
        f"{MOONCAKE}/toolagent_trace.jsonl",
        "mooncake_toolagent_trace.jsonl",
        "Apache-2.0",
        FAST25,
    ),
    PublicTrace(
        "burstgpt-1",
        "ChatGPT and GPT-4 on a campus, first two months, failures left out",
        f"{BURSTGPT}/BurstGPT_without_fails_1.csv",
        "BurstGPT_without_fails_1.csv",
        "CC-BY-4.0",
        BURSTGPT_PAPER,
        "a4d068a7113ec0290e74063a1b3447dc6001a30e4298eb313581b71006dda1f4",
        LFS,
    ),
    PublicTrace(
        "burstgpt-2",
        "ChatGPT and GPT-4 on a campus, second two months, failures left out",
        f"{BURSTGPT}/BurstGPT_without_fails_2.csv",
        "BurstGPT_without_fails_2.csv",
        "CC-BY-4.0",
        BURSTGPT_PAPER,
        "56193aa9b2bb26128ded43d2d29a960df6bf5af062bcfc9b005f3fcaa4e6e501",
        LFS,
    ),
    PublicTrace(
        "servegen-deepseek-r1",
        "Alibaba Model Studio, DeepSeek-R1 clients, 24 h (requests are sampled)",
        SERVEGEN,
        "servegen_main.tar.gz",
        "Apache-2.0",
        SERVEGEN_PAPER,
        folder="data/reason/deepseek-r1",
    ),
    PublicTrace(
        "servegen-m-large",
        "Alibaba Model Studio, a large language model's clients (requests are sampled)",
        SERVEGEN,
        "servegen_main.tar.gz",
        "Apache-2.0",
        SERVEGEN_PAPER,
        folder="data/language/m-large",
    ),
    PublicTrace(
        "arxiv-summarization",
        "Lengths of arXiv summaries, Llama-2 tokens, 28,257 requests, no arrivals",
        f"{VIDUR}/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "arxiv_summarization_lengths_llama2.csv",
        "MIT",
        VIDUR_PAPER,
        "9d3580538d915ca75e4aaaa54590b42dbb17abc6d74c8913310cf07c232adcdc",
        READ_COPY,
    ),
)


def public_names() -> list[str]:
    """Names of the catalogue, in its order."""
    return [entry.name for entry in PUBLIC_TRACES]


def public_trace(name: str) -> PublicTrace:
    """The entry of that name.

    Raises:
        InputError: no such name; suggests the nearest.
    """
    for entry in PUBLIC_TRACES:
        if entry.name == name:
            return entry
    raise unknown_name("public trace", name, public_names())


def trace_folder() -> Path:
    """Where downloaded traces are kept: $LEANKV_TRACES, else leankv/traces in the user's cache folder."""
    named = os.environ.get("LEANKV_TRACES")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "leankv" / "traces"


def local_file(entry: PublicTrace, folder: Path | None = None) -> Path:
    """The entry's downloaded file, plain or gzip.

    Raises:
        InputError: it is not there; says how to get it.
    """
    base = folder or trace_folder()
    for candidate in (base / entry.file, base / f"{entry.file}.gz"):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{entry.name} is not in {base}; get it with: leankv traces download {entry.name} "
        "(or give the path of a copy with --trace)"
    )
