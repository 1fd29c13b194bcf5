"""Model folders that are damaged, indices that do not fit, headers that lie."""

from __future__ import annotations

import json
import re
import shutil
import struct

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from saved_models import edit_config, model, save, write_safetensors

from tunemath.errors import ModelError
from tunemath.space import read_blueprint


def _only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_index(folder):
    _empty(folder)
    save("llama", folder, max_shard_size="20KB")
    (folder / "model.safetensors.index.json").unlink()


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def _adapters_weights(folder):
    path = folder / "model.safetensors"
    save_file({f"base_model.model.{k}": v for k, v in load_file(path).items()}, path)


def _another_models_weights(folder):
    save("gpt2", folder / "other")
    (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")


def _text(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "does not exist; expected a model's folder"),
        (_text("config.json", "{"), "config.json is not valid JSON"),
        (_text("config.json", "[]"), "expected a JSON object"),
        (_text("config.json", "[" * 100_000), "config.json is not valid JSON"),
        (_text("config.json", "version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        (_text("config.json", '{"peft_type": "LORA"}'), "an adapter's configuration"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights.*found config.json"),
        (_only_pickle, "only as pickle .pytorch_model.bin.*can run any code.*save_pretrained"),
        (_no_index, r"holds \d parts of a model .model-00001-of-.* and no model.safetensors.index"),
        (_empty, "has no weights; .* found nothing"),
        (_adapter, "holds an adapter, not a model"),
        (_adapters_weights, "holds an adapter, not a model"),
        (_cut, "cut short or damaged"),
        (_text("model.safetensors", "version https://git-lfs.github.com/v1\n"), "git lfs pull"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12"), "not a safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "not a safetensors file"),
        (lambda f: write_safetensors(f / "model.safetensors", {}), "without a tensor"),
        (lambda f: edit_config(f, hidden_size="DROP"), "not of one model"),
        (lambda f: edit_config(f, vocab_size=63), r"is \[64, 32\], .* is \[63, 32\]; config and"),
        (lambda f: edit_config(f, num_hidden_layers=3), "lack 9 of .*layers.2.* of one model"),
        (lambda f: edit_config(f, attention_bias=True), "lack 8 .*q_proj.bias; config and"),
        (_another_models_weights, "the weights lack 18 of .* parameters"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    folder = save("llama", tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match=message):
        read_blueprint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "README.md"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=rf"{name} is not a file that is read; expected"):
        read_blueprint(tmp_path / name)


@pytest.mark.parametrize("text", ["{}", '{"model_type": null}', '{"hidden_size": 8}'])
def test_a_configuration_without_a_family(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="names no model_type"):
        read_blueprint(tmp_path / "config.json")


def _indexed(folder, places):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"x": "../a.safetensors"}, "expected a file of the same folder"),
        ({"x": "/etc/passwd"}, "expected a file of the same folder"),
        ({"x": ".."}, "expected a file of the same folder"),
        ({"x": ""}, "expected a file of the same folder"),
        ({"x": ["a.safetensors"]}, "expected a file of the same folder"),
        ({"x": "pytorch_model.bin"}, "whose name ends in .safetensors"),
        ({"x": "b.safetensors"}, "lacks b.safetensors, which its index names"),
        ({"x": "a.safetensors"}, "lacks x, which the index says it holds"),
        ({}, "has no weight_map"),
        (["a.safetensors"], "has no weight_map"),
    ],
)
def test_indices_that_lie(tmp_path, places, message):
    _indexed(save("llama", tmp_path), places)
    with pytest.raises(ModelError, match=message):
        read_blueprint(tmp_path)


def _sharded(folder, change):
    """Save in several files and change the index, which is given with its weight_map."""
    save("llama", folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index, index["weight_map"])
    path.write_text(json.dumps(index))
    return read_blueprint(folder)


def _leave_out_a_tensor(index, places):
    del places["model.layers.1.mlp.up_proj.weight"]


def _leave_out_a_file(index, places):
    for name in [name for name, file in places.items() if "-00002-of-" in file]:
        del places[name]


def test_a_tensor_that_an_index_does_not_list_is_counted_and_noted(tmp_path):
    """transformers loads whole files."""
    read = _sharded(tmp_path, _leave_out_a_tensor)
    assert read == read_blueprint(save("llama", tmp_path / "whole"))
    assert read.stored_bytes == 4 * model("llama").num_parameters()
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(live.get_parameter(name), model("llama").get_parameter(name))
    (note,) = read.notes
    assert f"does not list 1 of the tensors that its files hold, such as {name}; they are" in note


def test_an_index_that_leaves_out_a_file_is_noted(tmp_path):
    with pytest.raises(ModelError, match=r"the weights lack .* of the 21 parameters"):
        _sharded(tmp_path, _leave_out_a_file)
    (tmp_path / "config.json").unlink()
    notes = read_blueprint(tmp_path).notes
    assert re.search(r"names no tensor of 1 of \d files \(number 2\), so what they", notes[1])
    assert "in metadata.total_size" in notes[2]


@pytest.mark.parametrize(
    ("size", "noted"),
    [
        (4 * 19_616, False), (4 * 19_616.0, False), (None, False), ("78464", False), (True, False),
        (78_463, True), (2 * 78_464, True), (0, True), (-1.5, True),
    ],
)  # fmt: skip
def test_a_total_size_that_does_not_fit_the_headers_is_noted(tmp_path, size, noted):
    assert model("llama").num_parameters() == 19_616
    read = _sharded(tmp_path, lambda index, _: index["metadata"].update(total_size=size))
    assert read.stored_bytes == 78_464
    assert [f"{size:,} bytes, and their headers say 78,464, which is" in n for n in read.notes] == (
        [True] * noted
    )


@pytest.mark.parametrize("metadata", [None, [], "x", {}])
def test_an_index_may_say_nothing_of_sizes(tmp_path, metadata):
    assert not _sharded(tmp_path, lambda index, _: index.update(metadata=metadata)).notes


def _raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


_TWICE = b'{"x":%b,"x":%b}' % ((json.dumps(_entry()).encode(),) * 2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (_raw({"x": _entry(shape=(3,))}, bytes(8)), "do not go together"),
        (_raw({"x": _entry(offsets=(8, 0))}, bytes(8)), "do not go together"),
        (_raw({"x": _entry(shape=(-2,))}, bytes(8)), "do not go together"),
        (_raw({"x": _entry(shape=(2.0,))}, bytes(8)), "do not go together"),
        (_raw({"x": _entry(shape=(True, 2))}, bytes(8)), "do not go together"),
        (_raw({"x": _entry(dtype="Q4")}, bytes(8)), "stores x as 'Q4'; known dtypes: BOOL"),
        (_raw({"x": _entry(dtype=["F32"])}, bytes(8)), "without dtype, shape or data_offsets"),
        (_raw({"x": {"dtype": "F32"}}, bytes(8)), "without dtype, shape or data_offsets"),
        (_raw({"x": 1}, bytes(8)), "without dtype, shape or data_offsets"),
        (_raw({"x": _entry(offsets=(8, 16))}, bytes(16)), "overlap or leave a gap"),
        (_raw({"x": _entry(), "y": _entry()}, bytes(8)), "overlap or leave a gap"),
        (_raw({"x": _entry(), "y": _entry(offsets=(16, 24))}, bytes(24)), "a gap at byte 1"),
        (_raw({"x": _entry()}, bytes(9)), "holds 9 bytes of weights where its header says 8"),
        (_raw({"x": _entry()}), "cut short or damaged"),
        (_raw(_TWICE, bytes(8)), "names 'x' twice in its header"),
        (_raw(b"{"), "damaged safetensors header"),
        (_raw(b"\xff\xfe"), "damaged safetensors header"),
        (_raw(b"[" * 100_000), "damaged safetensors header"),
        (_raw([1]), "no JSON object"),
        (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file, or is cut short"),
    ],
)
def test_headers_that_lie(tmp_path, raw, message):
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match=message):
        read_blueprint(tmp_path)


def test_a_header_longer_than_the_format_allows(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_100)
    with pytest.raises(ModelError, match="header of 100,000,001 bytes; safetensors allows"):
        read_blueprint(tmp_path)


def test_random_bytes_in_the_header_never_give_a_traceback(tmp_path):
    path = save("llama", tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    random, refused = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(8, 3000, size=3):
            data[at] = random.integers(32, 127)
        path.write_bytes(data)
        try:
            read_blueprint(tmp_path)
        except ModelError:
            refused += 1
    assert refused > 200
