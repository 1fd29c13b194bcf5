from __future__ import annotations

from contextlib import suppress

import gguf
import numpy as np
import pytest
from gguf_files import MODELS, model, write_gguf

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space import read_blueprint
from tunemath.space.blueprint.gguf import _TYPES, read_gguf


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_files_modules_are_those_of_the_live_model(tmp_path, name):
    read = read_blueprint(write_gguf(name, tmp_path / "model.gguf"))
    live = blueprint_of(model(name))
    assert read.modules == live.modules
    assert (read.tied, read.embedding, read.head) == (live.tied, live.embedding, live.head)
    assert read.parameters == live.parameters
    assert (read.quantisation, read.dtype) == ("", "float32")
    assert read.stored_bytes == 4 * read.parameters


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_packed_matrices_have_their_logical_shape(tmp_path, kind):
    path = write_gguf("llama", tmp_path / "model.gguf", kind)
    read, reader = read_blueprint(path), gguf.GGUFReader(path)
    assert read.modules == blueprint_of(model("llama")).modules
    own = [tensor for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]
    assert read.stored_bytes == sum(int(tensor.n_bytes) for tensor in own)
    halves = {"F16": "float16", "BF16": "bfloat16"}
    assert read.quantisation == ("" if kind in halves else f"gguf-{kind}")
    assert read.dtype == halves.get(kind, "float32")


@pytest.mark.parametrize("options", [{}, {"endianess": gguf.GGUFEndian.BIG}], ids=["little", "big"])
def test_the_header_is_what_ggufs_own_reader_finds(tmp_path, options):
    path = write_gguf("qwen3_moe", tmp_path / "model.gguf", **options)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {
        tensor.name: tuple(int(n) for n in tensor.shape[::-1]) for tensor in theirs.tensors
    }
    assert [t.nbytes for t in ours.tensors.values()] == [int(t.n_bytes) for t in theirs.tensors]
    assert [t.type for t in ours.tensors.values()] == [t.tensor_type.name for t in theirs.tensors]
    scalars = {
        key: field.contents()
        for key, field in theirs.fields.items()
        if not key.startswith("GGUF.") and field.types[0] != gguf.GGUFValueType.ARRAY
    }
    assert ours.metadata == scalars


def test_the_sizes_of_all_types_are_ggufs():
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert theirs == _TYPES


def test_a_split_model_is_read_as_one(tmp_path):
    whole = read_blueprint(write_gguf("llama", tmp_path / "one.gguf"))
    folder = tmp_path / "many"
    folder.mkdir()
    write_gguf("llama", folder / "model.gguf", split_max_tensors=8)
    parts = sorted(folder.iterdir())
    assert len(parts) > 2
    assert read_blueprint(folder) == read_blueprint(parts[1]) == whole
    parts[-1].unlink()
    with pytest.raises(ModelError, match=r"one of \d parts and .* is not there"):
        read_blueprint(folder)


def test_a_folder_with_two_gguf_models_asks_which(tmp_path):
    for name in ("Q4", "Q8"):
        write_gguf("llama", tmp_path / f"{name}.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF models .Q4.gguf, Q8.gguf"):
        read_blueprint(tmp_path)


def _written(path, architecture="llama", tensors=(), **numbers):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in numbers.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    for name, shape in tensors:
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _without(path, name, *dropped, renamed=()):
    """Write a tiny model's file again without some tensors, or with others' names."""
    reader = gguf.GGUFReader(write_gguf(name, path.with_name("whole.gguf")))
    writer = gguf.GGUFWriter(path, MODELS[name][0])
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture", "tokenizer.")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    renames = dict(renamed)
    for tensor in reader.tensors:
        if tensor.name not in dropped:
            writer.add_tensor(renames.get(tensor.name, tensor.name), tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_written_again_whole_is_the_same(tmp_path):
    again = _without(tmp_path / "model.gguf", "mixtral")
    assert read_blueprint(again) == read_blueprint(tmp_path / "whole.gguf")


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_mixture_that_lacks_experts_names_the_layer_and_the_tensor(tmp_path, name, layer, part):
    lost = f"blk.{layer}.ffn_{part}_exps.weight"
    path = _without(tmp_path / "model.gguf", name, lost)
    with pytest.raises(ModelError, match=rf"model.gguf: layer {layer} lacks {lost}, .* again"):
        read_blueprint(path)


def test_experts_biases_and_whole_layers_of_experts_are_missed_too(tmp_path):
    path = _without(tmp_path / "a.gguf", "gpt_oss", "blk.1.ffn_up_exps.bias")
    with pytest.raises(ModelError, match=r"layer 1 lacks blk.1.ffn_up_exps.bias"):
        read_blueprint(path)
    every = [f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")]
    with pytest.raises(ModelError, match=r"layer 0 lacks blk.0.ffn_gate_exps.weight"):
        read_blueprint(_without(tmp_path / "b.gguf", "mixtral", *every))


def test_experts_one_by_one_are_told_from_lost_ones(tmp_path):
    """llama.cpp wrote blk.0.ffn_gate.7.weight before April 2024."""
    old = {f"blk.0.ffn_{p}_exps.weight": f"blk.0.ffn_{p}.0.weight" for p in ("gate", "up", "down")}
    with pytest.raises(ModelError, match=r"holds each expert apart .* convert the model again"):
        read_blueprint(_without(tmp_path / "model.gguf", "mixtral", renamed=old))


_NUMBERS = {
    "block_count": 1, "attention__head_count": 2, "context_length": 8, "feed_forward_length": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'; known in GGUF are gemma, .*folder"),
        ({}, "has no matrix token_embd.weight"),
        ({"tensors": [("token_embd.weight", (8,))]}, "has no matrix token_embd.weight"),
        (
            {"tensors": [("token_embd.weight", (8, 4))]},
            r"no usable llama.attention.head_count .None.",
        ),
        (
            {"tensors": [("token_embd.weight", (8, 4))], **_NUMBERS},
            "lack .* such as model.layers.0.* not of one model",
        ),
        (
            {
                "tensors": [("token_embd.weight", (8, 4)), ("blk.0.attn_k.weight", (3, 4))],
                **_NUMBERS,
            },
            r"model.layers.0.self_attn.k_proj.weight is \[3, 4\]",
        ),
    ],
)
def test_models_that_cannot_be_described_are_refused(tmp_path, build, message):
    with pytest.raises(ModelError, match=message):
        read_blueprint(_written(tmp_path / "model.gguf", **build))


def _patched(at, raw):
    def damage(data):
        return data[:at] + raw + data[at + len(raw) :]

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-64], "cut short"),
        (lambda data: data[:200], "cut short or damaged"),
        (lambda data: data[:6], "is not a GGUF file"),
        (lambda data: b"PK\x03\x04" + data[4:], "is not a GGUF file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (_patched(4, b"\x01\x00\x00\x00"), "version 1; expected 2 or 3"),
        (_patched(8, b"\xff" * 8), "cut short or damaged"),
        (_patched(16, b"\xff" * 8), "unknown type|cut short or damaged"),
        (_patched(24, b"\xff" * 8), "cut short or damaged"),
        (lambda data: data.replace(b"blk.0.attn_q.", b"blk.0.attn_k."), "names a tensor twice"),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    path = write_gguf("llama", tmp_path / "model.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        read_blueprint(path)


def test_random_bytes_in_the_header_never_give_a_traceback(tmp_path):
    path = write_gguf("llama", tmp_path / "model.gguf")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(4, 2000, size=4):
            data[at] = random.integers(256)
        path.write_bytes(data)
        with suppress(ModelError):
            read_blueprint(path)
