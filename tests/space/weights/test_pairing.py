import pytest
import torch
from safetensors.torch import save_file

from tunemath.errors import ModelError
from tunemath.space.weights.pairing import pair_up


def folder(path, **tensors):
    path.mkdir()
    save_file({n.replace("__", "."): t for n, t in tensors.items()}, path / "model.safetensors")
    return path


def test_names_meet_with_and_without_their_first_part(tmp_path):
    base = folder(tmp_path / "base", model__layers__0__w=torch.zeros(2, 3), lm_head=torch.ones(1))
    tuned = folder(tmp_path / "tuned", layers__0__w=torch.ones(2, 3), score=torch.ones(1))
    pairing = pair_up(base, tuned)
    assert [(p.before, p.after) for p in pairing.pairs] == [("model.layers.0.w", "layers.0.w")]
    assert (pairing.only_base, pairing.only_tuned) == (("lm_head",), ("score",))


def test_a_change_is_seen_in_the_last_element_and_across_dtypes(tmp_path):
    w = torch.arange(6.0).reshape(3, 2)
    moved = w.clone()
    moved[2, 1] += 1
    base = folder(tmp_path / "base", a=w, b=w.clone(), c=w.clone())
    tuned = folder(tmp_path / "tuned", a=w.bfloat16(), b=moved, c=torch.zeros(5, 2))
    pairing = pair_up(base, tuned)
    assert [pairing.differs(pair) for pair in pairing.pairs] == [False, True, True]
    assert [pair.resized for pair in pairing.pairs] == [False, False, True]


def test_two_architectures_are_refused(tmp_path):
    base = folder(tmp_path / "base", w=torch.zeros(2, 3))
    with pytest.raises(ModelError, match=r"w is \[2, 3\] in .*base and \[2, 4\] in .*other"):
        pair_up(base, folder(tmp_path / "other", w=torch.zeros(2, 4)))
    with pytest.raises(ModelError, match="no tensor in common"):
        pair_up(base, folder(tmp_path / "alien", v=torch.zeros(2, 3)))
