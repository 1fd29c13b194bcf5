"""Merged models: held against PEFT's own merging, on disk whole or not at all, and refused."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import torch
from merged_models import live, load, logits, resolved, save_adapter, save_base
from safetensors.torch import load_file, save_file
from small_models import assert_equal_logits, logit_bound

import tolerance
from processes import finished
from tunemath.errors import ModelError, RunError
from tunemath.runner.merging import MergeOptions, merge_update
from tunemath.runner.resolve import weights_hash
from tunemath.space import read_tensor_headers
from tunemath.space.weights.provenance import Provenance, Source, read_provenance
from tunemath.space.weights.reader import Weights

ALL = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8}
RANKS = {**ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"0.mlp.up_proj": 3}}
LORA = {
    "plain": ("llama", ALL),
    "rslora": ("llama", {**ALL, "use_rslora": True}),
    "patterns": ("llama", RANKS),
    "lora-bias": ("llama", {**ALL, "target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "bias-all": ("llama", {**ALL, "bias": "all"}),
    "saved": ("llama", {**ALL, "modules_to_save": ["lm_head", "norm"]}),
    "embedding": ("llama", {**ALL, "target_modules": ["embed_tokens", "q_proj"]}),
    "tokens": ("llama", {**ALL, "trainable_token_indices": [5, 7, 60]}),
    "tied-tokens": ("tied", {**ALL, "trainable_token_indices": [5, 7, 60]}),
    "tied-plain": ("tied", ALL),
    "conv1d": ("gpt2", {"r": 3, "target_modules": ["c_attn", "c_proj", "wte"]}),
}  # fmt: skip


def merged(tmp_path, kind, options, peft_type="LORA", **merge):
    save_base(tmp_path / "base", kind)
    save_adapter(tmp_path / "adapter", tmp_path / "base", peft_type, **options)
    base, adapter = resolved(tmp_path / "base"), tmp_path / "adapter"
    return merge_update(base, adapter, tmp_path / "out", MergeOptions(**merge))


@pytest.mark.parametrize("case", LORA)
def test_lora_from_its_files_gives_pefts_logits_and_tensors(tmp_path, case):
    proof = merged(tmp_path, *LORA[case])
    assert proof["computed"] == "from the update's files"
    tuned = live(tmp_path / "base", tmp_path / "adapter")
    expected = logits(tuned)
    assert (expected - logits(load(tmp_path / "base"))).abs().max() > 0.1  # so it could fail
    assert_equal_logits(logits(load(tmp_path / "out")), expected)
    # The built-in prompts go to other ids, where the logits are of the same size.
    far = 4 * logit_bound(expected)
    assert proof["adapter_vs_reloaded_merged"]["max_logit_difference"] < far
    if case not in ("tied-tokens", "conv1d"):  # PEFT moves a tied head along when it merges
        theirs = tuned.merge_and_unload().state_dict()
        ours = load(tmp_path / "out").state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


# Tuners whose layers PEFT merges; what they are trained to is drawn at random.
OTHERS = {
    "dora": ("LORA", {**ALL, "use_dora": True}),
    "dora-one-layer": ("LORA", {"layers_to_transform": [1], "use_dora": True}),
    "adalora": ("ADALORA", {"init_r": 4, "total_step": 10}),
    "ia3": ("IA3", {"target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": ("LOHA", {"r": 3}),
    "lokr": ("LOKR", {"r": 3}),
    "oft": ("OFT", {"r": 0, "oft_block_size": 8}),
    "boft": ("BOFT", {"boft_block_size": 8}),
    "hra": ("HRA", {"r": 4}),
    "vera": ("VERA", {"r": 4, "target_modules": ["q_proj", "o_proj"]}),
    "fourierft": ("FOURIERFT", {"n_frequency": 20}),
    "randlora": ("RANDLORA", {"r": 4, "target_modules": ["q_proj", "o_proj"]}),
    "vblora": ("VBLORA", {"r": 2, "num_vectors": 8, "vector_length": 16, "topk": 2}),
    "ln-tuning": ("LN_TUNING", {"target_modules": ["input_layernorm", "norm"]}),
    "c3a": ("C3A", {"block_size": 16}),
    "shira": ("SHIRA", {"r": 4}),
    "miss": ("MISS", {"r": 4}),
    "delora": ("DELORA", {"r": 4}),
    "gralora": ("GRALORA", {"r": 4, "gralora_k": 2}),
    "road": ("ROAD", {"group_size": 8}),
    "hira": ("HIRA", {"r": 4}),
    "waveft": ("WAVEFT", {"n_frequency": 20}),
    "trainable-tokens": ("TRAINABLE_TOKENS", {"target_modules": None, "token_indices": [5, 7]}),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_tuners_go_through_peft_a_layer_at_a_time(tmp_path, case):
    peft_type, options = OTHERS[case]
    proof = merged(tmp_path, "llama", options, peft_type)
    assert proof["computed"] != "from the update's files"
    expected = logits(live(tmp_path / "base", tmp_path / "adapter"))
    assert (expected - logits(load(tmp_path / "base"))).abs().max() > 1e-2
    # RandLoRA adds up large random bases that nearly cancel: the size of its terms counts.
    atol = (32 if case == "randlora" else 4) * logit_bound(expected)
    torch.testing.assert_close(logits(load(tmp_path / "out")), expected, rtol=0, atol=atol)
    assert not proof["weights"]["differing"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
def test_each_tensor_is_rounded_once_from_float32(tmp_path, dtype):
    merged(tmp_path, "llama", ALL, dtype=dtype)
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    base = load_file(tmp_path / "base/model.safetensors")[f"{name}.weight"].double()
    whole = base + 2 * b.double() @ a.double()
    found = load_file(tmp_path / "out/model.safetensors")
    kind = getattr(torch, dtype or "float32")
    # W + 2 B A in float32, then half a step of the dtype; a second rounding would be another half.
    summed = 2 * tolerance.product(b, a) + 2 * tolerance.rounded(whole, torch.float32)
    off = (found[f"{name}.weight"].double() - whole).abs()
    assert (off <= summed + tolerance.rounded(whole.abs() + summed, kind)).all()
    assert {tensor.dtype for tensor in found.values()} == {kind}
    said = json.loads((tmp_path / "out/config.json").read_text())["dtype"]
    assert said == str(kind).removeprefix("torch.")


@pytest.mark.parametrize(("target", "std"), [("lm_head", 0.1), ("embed_tokens", 0.1)])
def test_a_tied_pair_of_which_one_moves_is_untied_and_both_are_written(tmp_path, target, std):
    proof = merged(tmp_path, "tied", {"target_modules": [target, "q_proj"], "r": 4})
    assert proof["untied"] == ["lm_head.weight"]
    assert proof["head"]["should_be_tied"] is False
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    found = Weights(tmp_path / "out").tensors
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= found.keys()
    expected = logits(live(tmp_path / "base", tmp_path / "adapter"))
    assert_equal_logits(logits(load(tmp_path / "out")), expected)


def test_a_tied_pair_that_moves_alike_stays_tied(tmp_path):
    options = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    proof = merged(tmp_path, "tied", options)
    assert proof["untied"] == []
    assert proof["head"] == {
        "was_tied": True, "should_be_tied": True, "declared_tied": True, "head_stored": False,
        "equal": None,
    }  # fmt: skip
    assert "lm_head.weight" not in Weights(tmp_path / "out").tensors


def test_shards_are_the_bases_or_of_the_size_asked_for(tmp_path):
    save_base(tmp_path / "base", max_shard_size="30KB")
    save_adapter(tmp_path / "adapter", tmp_path / "base", **ALL)
    base, adapter = resolved(tmp_path / "base"), tmp_path / "adapter"
    merge_update(base, adapter, tmp_path / "out", MergeOptions())
    merge_update(base, adapter, tmp_path / "cut", MergeOptions(shard=20_000))
    whole = {name: h.file for name, h in read_tensor_headers(tmp_path / "base").items()}
    assert {name: h.file for name, h in read_tensor_headers(tmp_path / "out").items()} == whole
    assert len(set(whole.values())) > 2
    sizes = [path.stat().st_size for path in (tmp_path / "cut").glob("*.safetensors")]
    assert max(sizes) < 21_000 + 2_000
    torch.testing.assert_close(logits(load(tmp_path / "cut")), logits(load(tmp_path / "out")))


KILLED = """
import os, signal, sys
from pathlib import Path
from tunemath.runner.merging import MergeOptions, merge_update
from tunemath.runner.resolve import ResolvedModel

base, adapter, out = map(Path, sys.argv[1:])

def killed(what, done, total):
    if what == "merging" and done == total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

model = ResolvedModel("base", base, None, None, False)
merge_update(model, adapter, out, MergeOptions(), progress=killed)
"""


def test_a_kill_in_the_middle_leaves_no_product_and_the_next_one_is_whole(tmp_path):
    save_base(tmp_path / "base", max_shard_size="30KB")
    save_adapter(tmp_path / "adapter", tmp_path / "base", **ALL)
    folders = [tmp_path / name for name in ("base", "adapter", "out")]
    done = finished([sys.executable, "-c", KILLED, *folders])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    merge_update(resolved(folders[0]), folders[1], folders[2], MergeOptions())
    expected = logits(live(folders[0], folders[1]))
    assert_equal_logits(logits(load(folders[2])), expected)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"base", "adapter", "out"}


def test_rounding_that_erases_the_update_is_measured(tmp_path):
    """W is on bfloat16's grid and ΔW below half of its steps: by hand, none of it is left."""
    save_base(tmp_path / "base", dtype=torch.bfloat16)
    save_adapter(tmp_path / "adapter", tmp_path / "base", std=0.0, **ALL)
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        tensors[name] = torch.full_like(tensors[name], 1e-4)
    save_file(tensors, path, metadata={"format": "pt"})
    base, adapter = resolved(tmp_path / "base"), tmp_path / "adapter"
    proof = merge_update(base, adapter, tmp_path / "out", MergeOptions(check=("float32",)))
    kept = proof["weights"]["forms"]
    assert kept["bfloat16"]["share"] < 0.05
    assert kept["float32"]["share"] == pytest.approx(1, abs=1e-2)
    norm = 2 * 4 * 1e-8 * (2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 32 * 48)) ** 0.5
    assert proof["weights"]["norm"] == pytest.approx(norm, rel=1e-4)


def test_the_record_names_base_and_adapter_and_merging_twice_is_refused(tmp_path):
    merged(tmp_path, "llama", ALL)
    record = read_provenance(tmp_path / "out")
    assert record.operation == "merge"
    assert [source.sha256 for source in record.sources] == [
        weights_hash(tmp_path / "base"),
        weights_hash(tmp_path / "adapter"),
    ]
    assert record.proof["adapter_vs_reloaded_merged"]["kl"] < 1e-6
    again = resolved(tmp_path / "out")
    with pytest.raises(ModelError, match=r"merged into .*out already, and would be applied twice"):
        merge_update(again, tmp_path / "adapter", tmp_path / "twice", MergeOptions())
    assert not (tmp_path / "twice").exists()


def test_another_base_than_the_one_trained_on_is_refused_by_both_names(tmp_path):
    save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", tmp_path / "base", **ALL)
    source = Source("base", "the-right-one", weights_hash(tmp_path / "base"))
    Provenance("train", (source,)).write(tmp_path / "adapter")
    save_base(tmp_path / "other", dtype=torch.float16)
    other = resolved(tmp_path / "other")
    with pytest.raises(ModelError, match=r"trained on the-right-one with .* other weights"):
        merge_update(other, tmp_path / "adapter", tmp_path / "out", MergeOptions())
    base = resolved(tmp_path / "base")
    proof = merge_update(base, tmp_path / "adapter", tmp_path / "out", MergeOptions())
    assert proof["base"]["trained_on"] == proof["base"]["sha256"]


@pytest.mark.parametrize(
    ("peft_type", "options", "message"),
    [
        ("PROMPT_TUNING", {"num_virtual_tokens": 3}, "virtual tokens stand before the input"),
        ("LORA", {"init_lora_weights": "pissa"}, "started with init_lora_weights 'pissa'"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(tmp_path, peft_type, options, message):
    save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", tmp_path / "base", peft_type, **options)
    base = resolved(tmp_path / "base")
    with pytest.raises(ModelError, match=message):
        merge_update(base, tmp_path / "adapter", tmp_path / "out", MergeOptions())
    assert not (tmp_path / "out").exists()


def test_a_product_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    from tunemath.runner import verifying

    monkeypatch.setitem(verifying.TOLERANCES, "float32", 0.0)
    with pytest.raises(ModelError, match=r"differs from the adapter by .* nothing was written"):
        merged(tmp_path, "llama", ALL)
    assert not (tmp_path / "out").exists()
    base = resolved(tmp_path / "base")
    with pytest.raises(RunError, match="exists already"):
        merge_update(base, tmp_path / "adapter", tmp_path / "base", MergeOptions())
