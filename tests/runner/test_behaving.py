"""Products run beside what they were made of: against PEFT's own logits, and with faults."""

from __future__ import annotations

import pytest
import torch
from merged_models import live, load, logits, resolved, save_adapter, save_base
from safetensors.torch import load_file, save_file
from small_models import VOCAB, logit_bound
from test_merging import ALL, LORA

from tunemath.errors import ModelError
from tunemath.runner import behaving
from tunemath.runner.behaving import Unmeasured, behaviour
from tunemath.runner.probing import probe_rows
from tunemath.runner.updates import live_model

TIED = {
    "tied-head": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied-embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied-both": ("tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "dora": ("llama", {**ALL, "use_dora": True}),
}  # fmt: skip


def log_probs(model, folder):
    """Return the log-probabilities (N, V) in float64 at every position but the last of each row."""
    rows, _ = probe_rows(folder, VOCAB)
    with torch.no_grad():
        found = [model.eval()(torch.tensor([ids])).logits[0, :-1].double() for ids, _ in rows]
    return torch.cat(found).log_softmax(-1)


def base_at(folder, kind="llama"):
    save_base(folder, kind)
    return folder


@pytest.mark.parametrize("case", {**LORA, **TIED})
def test_an_adapter_is_the_base_with_its_update_and_its_kl_is_pefts(tmp_path, case):
    kind, options = {**LORA, **TIED}[case]
    base = base_at(tmp_path / "base", kind)
    save_adapter(tmp_path / "adapter", base, **options)
    seen = []
    found = behaviour(
        tmp_path / "adapter", {"base": base}, resolved(base), lambda *each: seen.append(each)
    )
    far = 4 * logit_bound(logits(live(base, tmp_path / "adapter")))  # as of other token ids
    assert found["adapter_vs_added"]["max_logit_difference"] < far
    tuned = log_probs(live(base, tmp_path / "adapter"), base)
    plain = log_probs(load(base), base)
    kl = torch.nn.functional.kl_div(plain, tuned, reduction="none", log_target=True).sum(-1)
    assert found["positions"] == len(kl)
    assert kl.mean() > 1e-4  # so it could fail
    assert found["beside"]["base"]["kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found["beside"]["base"]["kl_max"] == pytest.approx(float(kl.max()), rel=1e-3)
    assert [done for _, done, _ in seen][-1] == seen[-1][2] == 2


def test_an_adapter_that_peft_reads_otherwise_is_refused(tmp_path, monkeypatch):
    base = base_at(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, **ALL)

    def twice(update):
        model = live_model(update)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = 2 * parameter.data
        return model

    monkeypatch.setattr(behaving, "live_model", twice)
    with pytest.raises(ModelError, match=r"is not the base with its update added.*--no-probe"):
        behaviour(tmp_path / "adapter", {"base": base}, resolved(base))


def test_a_product_that_gives_no_numbers_or_cannot_be_read_is_refused(tmp_path):
    base, product = base_at(tmp_path / "base"), base_at(tmp_path / "product")
    file = product / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match="logits are not numbers"):
        behaviour(product, {"base": base})
    file.write_bytes(b"")
    with pytest.raises(Unmeasured):  # the same, as a source
        behaviour(base, {"one": base, "two": product})
    with pytest.raises(ModelError) as refused:
        behaviour(product, {"base": base})
    assert not isinstance(refused.value, Unmeasured)


def test_models_are_compared_one_by_one(tmp_path):
    base, product = base_at(tmp_path / "base"), base_at(tmp_path / "product")
    file = product / "model.safetensors"
    tensors = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    found = behaviour(product, {"itself": product, "base": base})
    assert found["beside"]["itself"] == {"max_logit_difference": 0.0, "kl": 0.0, "kl_max": 0.0}
    assert "adapter_vs_added" not in found
    here, there = log_probs(load(product), product), log_probs(load(base), product)
    kl = (here.exp() * (here - there)).sum(-1).mean()
    assert found["beside"]["base"]["kl"] == pytest.approx(float(kl), rel=1e-4)
