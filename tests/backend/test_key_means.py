"""Mean keys are measured once for a model and a text, and read from then on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from leankv.backend import capture
from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.backend.key_means import fingerprint, key_means_file, key_means_of, rope_frequencies
from leankv.backend.weights import Loaded
from leankv.serving.policies.registry import policy_named

from . import tiny

TEXT = torch.arange(3, 80)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANKV_HOME", str(tmp_path))
    return tmp_path


def changed(loaded: Loaded) -> Loaded:
    """The same model but for one small change of one matrix, as a round of training would make to all."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(1.001)
    return Loaded(loaded.name, model, None, loaded.source)


def test_they_are_the_mean_of_the_texts_keys_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny.tiny_model()
    means = key_means_of(loaded, TEXT)
    keys = torch.stack(capture.capture(loaded, TEXT).keys)
    torch.testing.assert_close(means.plain, keys.mean(1), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(capture, "capture", lambda *_: pytest.fail("measured again"))
    assert same(key_means_of(loaded, TEXT), means)


def same(one: KeyMeans, other: KeyMeans) -> bool:
    parts = ((one.plain, other.plain), (one.before_rope, other.before_rope), (one.frequencies, other.frequencies))
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in parts)


def test_those_before_rope_are_what_the_model_projects() -> None:
    loaded, seen = tiny.tiny_model(), []
    layers = [layer.self_attn.k_proj for layer in loaded.model.model.layers]
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call[2][0])) for layer in layers]
    means = key_means_of(loaded, TEXT)
    for hook in hooks:
        hook.remove()
    expected = torch.stack(seen).unflatten(-1, (loaded.kv_heads, loaded.head_dim)).mean(1)
    assert means.before_rope is not None
    # Turned and turned back again in float32, over 77 tokens.
    torch.testing.assert_close(means.before_rope, expected, atol=1e-5, rtol=1e-4)


def test_a_model_with_two_rotary_embeddings_has_none_for_all_layers() -> None:
    loaded = copy.deepcopy(tiny.tiny_model())
    loaded.model.other = torch.nn.Module()
    loaded.model.other.register_buffer("inv_freq", torch.ones(32))
    assert rope_frequencies(loaded) is None
    means = key_means_of(loaded, TEXT[1:])
    assert means.before_rope is None
    with pytest.raises(ValueError, match="no one rotary embedding"):
        KVCache(
            CacheShape(2, 4, 2, 64),
            [policy_named("leankv:key_transform=rope-centred")],
            slots=1,
            memory_bytes=1 << 22,
            max_tokens=64,
            key_means=means,
        )


def test_another_model_or_text_has_a_file_of_its_own() -> None:
    loaded = tiny.tiny_model()
    other = changed(loaded)
    assert fingerprint(loaded) != fingerprint(other)
    files = {key_means_file(loaded, TEXT), key_means_file(other, TEXT), key_means_file(loaded, TEXT[1:])}
    assert len(files) == 3
    assert not torch.equal(key_means_of(loaded, TEXT).plain[1], key_means_of(other, TEXT).plain[1])


@pytest.mark.parametrize("contents", [b"", b"half a file"])
def test_a_file_that_cannot_be_read_is_made_anew(contents: bytes, home: Path) -> None:
    loaded = tiny.tiny_model()
    means = key_means_of(loaded, TEXT)
    key_means_file(loaded, TEXT).write_bytes(contents)
    assert same(key_means_of(loaded, TEXT), means)
    assert key_means_file(loaded, TEXT).stat().st_size > len(contents)
    assert len(list((home / "models").iterdir())) == 1
