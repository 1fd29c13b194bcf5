import pytest
import torch
from safetensors.torch import save_file

from tunemath.errors import ModelError
from tunemath.space.weights.reader import TORCH_DTYPES, Weights, row_blocks


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_a_tensor_is_read_as_it_was_stored(tmp_path, dtype):
    stored = torch.arange(12).to(dtype).reshape(4, 3)
    save_file({"w": stored}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    bits = stored.contiguous().view(torch.uint8)
    assert torch.equal(weights.read("w").contiguous().view(torch.uint8), bits)
    assert torch.equal(weights.read("w", slice(1, 3)).contiguous().view(torch.uint8), bits[1:3])


def test_a_scalar_and_an_empty_tensor(tmp_path):
    save_file({"s": torch.tensor(2.5), "e": torch.zeros(0, 4)}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    assert weights.read("s").item() == 2.5
    assert weights.read("e", slice(0, 0)).shape == (0, 4)


def test_writing_to_what_was_read_changes_no_file(tmp_path):
    save_file({"w": torch.zeros(8)}, tmp_path / "model.safetensors")
    Weights(tmp_path).read("w").fill_(1.0)
    assert torch.equal(Weights(tmp_path).read("w"), torch.zeros(8))


def test_a_dtype_that_torch_lacks_is_named(tmp_path):
    header = b'{"w":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    raw = len(header).to_bytes(8, "little") + header + bytes(3)
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match="stores w as F6_E2M3"):
        Weights(tmp_path).read("w")


def test_blocks_of_rows_cover_a_tensor_once():
    blocks = list(row_blocks((10, 4), elements=12))
    assert [(block.start, block.stop) for block in blocks] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(row_blocks(())) == [None]
    assert list(row_blocks((2, 100), elements=10)) == [slice(0, 1), slice(1, 2)]
