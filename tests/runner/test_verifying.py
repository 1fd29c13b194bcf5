"""Products that went wrong in a known way, made by plain torch, and what is said of each."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from merged_models import live, load, resolved, save_adapter, save_base
from safetensors.torch import load_file, save_file

from tunemath.pipeline.products import verify
from tunemath.runner.quiet import quiet_libraries

OPTIONS = {"target_modules": ["q_proj", "o_proj", "down_proj"], "r": 4, "lora_alpha": 8}
MODULES = [
    f"model.layers.{layer}.{name}"
    for layer in range(2)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
]
FIRST = f"{MODULES[0]}.weight"


@pytest.fixture
def pair(tmp_path):
    save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", tmp_path / "base", **OPTIONS)
    return tmp_path


def deltas(folder) -> dict[str, torch.Tensor]:
    saved = load_file(folder / "adapter/adapter_model.safetensors")
    return {
        f"{name}.weight": 2.0
        * saved[f"base_model.model.{name}.lora_B.weight"]
        @ saved[f"base_model.model.{name}.lora_A.weight"]
        for name in MODULES
    }


def write(folder, tensors, **config) -> None:
    shutil.copytree(folder / "base", folder / "product")
    save_file(tensors, folder / "product/model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "base/config.json").read_text())
    (folder / "product/config.json").write_text(json.dumps({**values, **config}))


def product(folder, change, base="base", dtype=None, **config):
    """Write base tensors with ``change(W, ΔW)`` in the adapted ones; return what verify says."""
    tensors = load_file(folder / base / "model.safetensors")
    for name, delta in deltas(folder).items():
        tensors[name] = change(name, tensors[name], delta).contiguous()
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write(folder, tensors, **config)
    return judged(folder)


def judged(folder, probe=False):
    found = verify(resolved(folder / "base"), folder / "adapter", folder / "product", probe)
    return found, {finding["check"]: finding for finding in found["findings"]}


def right(name, w, delta):
    return w + delta


FAULTS = {
    "twice": (lambda name, w, d: w + 2 * d, "6 of 6 hold the update twice"),
    "scale": (lambda name, w, d: w + 0.5 * d, "6 of 6 hold the update in another scale"),
    "swapped": (
        lambda name, w, d: w + (d.T if w.shape[0] == w.shape[1] else d),
        "4 of 6 hold the transposed update, as A and B swapped give it",
    ),
    "nothing": (lambda name, w, d: w, "6 of 6 hold none of the update"),
    "dropped": (
        lambda name, w, d: w if name == FIRST else w + d, "1 of 6 hold none of the update",
    ),
    "subtracted": (lambda name, w, d: w - d, "6 of 6 hold the update in another scale"),
    "another adapter": (
        lambda name, w, d: w + d.std() * torch.randn(w.shape), "6 of 6 hold another change",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_fault_is_named(pair, fault, dtype):
    torch.manual_seed(3)
    change, said = FAULTS[fault]
    verdict, findings = product(pair, change, dtype=dtype)
    finding = findings["merged-is-base-plus-update"]
    assert (finding["status"], verdict["exit_code"]) == ("FAIL", 1)
    assert said in finding["measured"]
    if fault == "dropped":
        assert finding["where"] == FIRST


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_right_product_passes_in_any_dtype(pair, dtype):
    _, findings = product(pair, right, dtype=dtype)
    assert findings["merged-is-base-plus-update"]["status"] == "PASS"
    assert findings["update-survives-rounding"]["status"] == "PASS"
    assert findings["head-and-embedding-as-declared"]["status"] == "PASS"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_peft_merges_in_that_dtype_passes(pair, dtype):
    tuned = live(pair / "base", pair / "adapter")
    with quiet_libraries():
        tuned.to(dtype).merge_and_unload().save_pretrained(pair / "product")
    verdict, findings = judged(pair, probe=True)
    assert findings["merged-is-base-plus-update"]["status"] == "PASS"
    assert findings["adapter-merged-reloaded"]["status"] == "PASS"
    assert verdict["verdict"] == "PASS"


def test_another_base_shows_in_the_tensors_that_should_not_have_changed(pair):
    other = load(pair / "base")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    other.save_pretrained(pair / "other")
    verdict, findings = product(pair, right, base="other")
    finding = findings["merged-is-base-plus-update"]
    assert verdict["exit_code"] == 1
    assert "other tensors are not the base's" in finding["measured"]
    assert "made from another base" in finding["action"]


def test_an_update_that_rounding_erased_is_reported(tmp_path):
    save_base(tmp_path / "base", dtype=torch.bfloat16)
    save_adapter(tmp_path / "adapter", tmp_path / "base", std=3e-3, **OPTIONS)
    _, findings = product(tmp_path, lambda name, w, d: w.float() + 1e-4 * d, dtype=torch.bfloat16)
    assert findings["merged-is-base-plus-update"]["status"] == "FAIL"
    shutil.rmtree(tmp_path / "product")
    path = tmp_path / "adapter/adapter_model.safetensors"
    small = {n: t * (1e-4 if "lora_B" in n else 1) for n, t in load_file(path).items()}
    save_file(small, path, metadata={"format": "pt"})
    _, findings = product(tmp_path, lambda name, w, d: w.float() + d, dtype=torch.bfloat16)
    assert findings["merged-is-base-plus-update"]["status"] == "PASS"  # it is what rounding gives
    lost = findings["update-survives-rounding"]
    assert lost["status"] == "FAIL"
    assert re.match(r"the product: 0\.[01]% of ΔW is left", lost["measured"])


TIED = {
    "diverged": ({}, True, "the product declares them tied"),
    "head lost": ({"tie_word_embeddings": False}, False, "declares them apart and stores no head"),
}


@pytest.mark.parametrize("fault", TIED)
def test_a_tied_head_that_diverged_is_named(tmp_path, fault):
    config, stored, said = TIED[fault]
    save_base(tmp_path / "base", "tied")
    save_adapter(tmp_path / "adapter", tmp_path / "base", target_modules=["lm_head"], r=4)
    tensors = load_file(tmp_path / "base/model.safetensors")
    if stored:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.1
    write(tmp_path, tensors, **config)
    verdict, findings = judged(tmp_path)
    assert verdict["exit_code"] == 1
    assert said in findings["head-and-embedding-as-declared"]["measured"]


def test_a_head_that_was_untied_on_purpose_is_said_to_be(tmp_path):
    save_base(tmp_path / "base", "tied")
    save_adapter(tmp_path / "adapter", tmp_path / "base", target_modules=["lm_head"], r=4)
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.lm_head.lora_{x}.weight"] for x in "AB")
    scale = live(tmp_path / "base", tmp_path / "adapter").base_model.model.lm_head.scaling
    tensors = load_file(tmp_path / "base/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + scale["default"] * b @ a
    write(tmp_path, tensors, tie_word_embeddings=False)
    verdict, findings = judged(tmp_path)
    assert verdict["exit_code"] == 0
    finding = findings["head-and-embedding-as-declared"]
    assert finding["measured"] == (
        "head and embedding are apart on purpose, since the update moves one only"
    )


def test_a_token_without_a_trained_row_is_named(pair):
    from tokenizers import Tokenizer, models

    for folder, extra in (("base", {}), ("adapter", {"<new>": 60, "<far>": 70})):
        vocabulary = {f"t{n}": n for n in range(60)} | extra
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
        tokenizer.save(str(pair / folder / "tokenizer.json"))
    _, findings = product(pair, right)
    finding = findings["new-tokens-saved"]
    assert (finding["status"], finding["where"]) == ("FAIL", "60, 70")
    assert finding["measured"] == "2 tokens are new, 2 of them without a trained row"
