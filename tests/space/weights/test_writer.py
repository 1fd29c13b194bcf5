import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunemath.errors import ModelError
from tunemath.space import read_tensor_headers
from tunemath.space.weights.writer import Planned, in_files_of, sharded, write_checkpoint

TENSORS = {
    "a": torch.arange(6, dtype=torch.bfloat16).reshape(3, 2),
    "b": torch.arange(5, dtype=torch.float32),
    "c": torch.tensor(7, dtype=torch.int64),
    "d": torch.zeros(0, 4, dtype=torch.float16),
    "e": torch.tensor([True, False, True]),
}


def written(folder, tensors, files, **made):
    plan = {name: Planned(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_checkpoint(folder, plan, lambda name: made.get(name, [tensors[name]]), files)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_safetensors_reads_what_was_written_in_parts(tmp_path):
    written(
        tmp_path,
        TENSORS,
        dict.fromkeys(TENSORS, "model.safetensors"),
        a=(TENSORS["a"][i : i + 1] for i in range(3)),
    )
    same(load_file(tmp_path / "model.safetensors"), TENSORS)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    starts = [h.start % 8 for n, h in read_tensor_headers(tmp_path).items() if n in "bc"]
    assert set(starts) <= {0, 4}
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_several_files_have_an_index_that_transformers_format_knows(tmp_path):
    plan = {name: Planned(t.dtype, tuple(t.shape)) for name, t in TENSORS.items()}
    files = sharded(plan, limit=20)
    assert files["a"] == "model-00001-of-00003.safetensors"
    assert files["e"] == "model-00003-of-00003.safetensors"
    written(tmp_path, TENSORS, files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == files
    assert index["metadata"]["total_size"] == 12 + 20 + 8 + 0 + 3
    same({n: t for f in set(files.values()) for n, t in load_file(tmp_path / f).items()}, TENSORS)


def test_the_division_into_files_is_that_of_the_source(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"y": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    names = {f"model-0000{i}-of-00002.safetensors": key for i, key in ((1, "x"), (2, "y"))}
    index = {"metadata": {}, "weight_map": {key: file for file, key in names.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert in_files_of(read_tensor_headers(tmp_path)) == index["weight_map"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (torch.zeros(3, 2), "a was made as torch.float32; planned: torch.bfloat16"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "a was made with 8 bytes; planned: 12"),
    ],
)
def test_a_tensor_that_is_not_as_planned_is_refused(tmp_path, part, message):
    with pytest.raises(ModelError, match=message):
        written(tmp_path, {"a": TENSORS["a"]}, {"a": "model.safetensors"}, a=[part])
