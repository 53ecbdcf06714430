"""Mean keys are measured once for a model and a text, and read from then on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leankv.backend import capture
from leankv.backend.key_means import fingerprint, key_means_file, key_means_of
from leankv.backend.weights import Loaded

from . import tiny

TEXT = torch.arange(3, 80)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANKV_HOME", str(tmp_path))
    return tmp_path


def changed(loaded: Loaded) -> Loaded:
    """The same model but for one small change of one matrix, as a round of training would make to all."""
    import copy

    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(1.001)
    return Loaded(loaded.name, model, None, loaded.source)


def test_they_are_the_mean_of_the_texts_keys_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny.tiny_model()
    means = key_means_of(loaded, TEXT)
    keys = torch.stack(capture.capture(loaded, TEXT).keys)
    torch.testing.assert_close(means, keys.mean(1), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(capture, "capture", lambda *_: pytest.fail("measured again"))
    assert torch.equal(key_means_of(loaded, TEXT), means)


def test_another_model_or_text_has_a_file_of_its_own() -> None:
    loaded = tiny.tiny_model()
    other = changed(loaded)
    assert fingerprint(loaded) != fingerprint(other)
    files = {key_means_file(loaded, TEXT), key_means_file(other, TEXT), key_means_file(loaded, TEXT[1:])}
    assert len(files) == 3
    assert not torch.equal(key_means_of(loaded, TEXT)[1], key_means_of(other, TEXT)[1])


@pytest.mark.parametrize("contents", [b"", b"half a file"])
def test_a_file_that_cannot_be_read_is_made_anew(contents: bytes, home: Path) -> None:
    loaded = tiny.tiny_model()
    means = key_means_of(loaded, TEXT)
    key_means_file(loaded, TEXT).write_bytes(contents)
    assert torch.equal(key_means_of(loaded, TEXT), means)
    assert key_means_file(loaded, TEXT).stat().st_size > len(contents)
    assert len(list((home / "models").iterdir())) == 1
