"""Bottleneck adapters against plain loops over a model's own modules, and against themselves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import PAD, VOCAB, make_family, make_llama, make_rows
from torch import nn
from transformers.masking_utils import create_causal_mask

from tunemath.contract import ModelChoice
from tunemath.errors import ModelError
from tunemath.runner import probes
from tunemath.runner.adapters import Bottleneck
from tunemath.runner.answering import generate
from tunemath.runner.heads import output_states
from tunemath.runner.models import attach_adapter, load_adapter, load_base
from tunemath.runner.probing import answer_logits
from tunemath.runner.resolve import resolve_model, weights_hash
from tunemath.space import AdapterSpace, adapter_parameter_count

STYLES = ("houlsby", "pfeiffer", "parallel")
FAMILIES = ("llama", "gemma 2", "cohere", "phi", "gpt 2")


def space(style: str = "pfeiffer", **options: Any) -> AdapterSpace:
    return AdapterSpace(method="adapter", style=style, bottleneck=6, **options)


def moved(model: Any) -> Any:
    """Give the adapters values, so that they do something."""
    torch.manual_seed(5)
    for parameter in model.trained().values():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_adapter_changes_no_bit(name, style, dtype):
    base = make_family(name, dtype)
    expected = copy.deepcopy(base)(input_ids=ids()).logits
    model = attach_adapter(base, space(style), 0).eval()
    assert torch.equal(model(input_ids=ids()).logits, expected)
    with moved(model).disable_adapter():
        assert torch.equal(model(input_ids=ids()).logits, expected)
    found = model(input_ids=ids()).logits
    assert found.dtype == dtype
    assert (found - expected).abs().max() > 0.01
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def by_hand(model: Any, style: str) -> torch.Tensor:
    """Run a Llama layer by layer; the modules' own forward leaves their hooks aside."""
    body = model.get_base_model().model
    hidden = body.embed_tokens(ids())
    positions = torch.arange(ids().shape[1])[None]
    rope = body.rotary_emb(hidden, positions)
    mask = create_causal_mask(body.config, hidden, None, None, positions)

    def update(adapter: Bottleneck, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(x @ adapter.down.weight.double().T + adapter.down.bias.double())
        return inner @ adapter.up.weight.double().T + adapter.up.bias.double()

    for layer in body.layers:
        own, _ = layer.self_attn.forward(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=rope,
            attention_mask=mask,
        )
        if style == "houlsby":
            own = own + update(layer.self_attn.adapter, own)
        hidden = hidden + own
        entering = layer.post_attention_layernorm(hidden)
        own = layer.mlp.forward(entering)
        if style == "parallel":
            own = own + 4.0 * update(layer.mlp.adapter, entering)
        else:
            own = own + update(layer.mlp.adapter, own)
        hidden = hidden + own
    return model.get_base_model().lm_head(body.norm(hidden))


@pytest.mark.parametrize("style", STYLES)
def test_the_logits_are_those_of_a_plain_loop(style):
    model = moved(attach_adapter(make_llama(), space(style), 0)).double()
    torch.testing.assert_close(
        model(input_ids=ids()).logits, by_hand(model, style), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("bias", [True, False])
def test_it_holds_the_parameters_of_the_closed_form(bias):
    model = attach_adapter(make_llama(), space("houlsby", bias=bias), 0)
    trained = model.trained()
    assert sum(p.numel() for p in trained.values()) == 4 * adapter_parameter_count(32, 6, bias)
    assert sorted(trained)[0].startswith("model.layers.0.mlp.adapter.down.")
    assert all(".adapter." in name for name in trained)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", torch.relu), ("gelu", nn.functional.gelu), ("silu", nn.functional.silu),
     ("tanh", torch.tanh)],
)  # fmt: skip
def test_the_non_linearity_and_the_scale_are_those_asked_for(activation, function):
    adapter = Bottleneck(4, space(activation=activation, scale=0.5, bias=False))
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(3, 4)
    expected = 0.5 * function(x @ adapter.down.weight.T) @ adapter.up.weight.T
    torch.testing.assert_close(adapter(x), expected)


# --- training


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train()
    (model(input_ids=ids()).logits ** 2).sum().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    return {name: p.grad for name, p in model.trained().items()}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["llama", "gemma 2"])
def test_checkpointing_leaves_the_gradients_as_they_are(name, style, reentrant):
    expected = gradients(moved(attach_adapter(make_family(name), space(style), 0)))
    model = moved(attach_adapter(make_family(name), space(style), 0))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(found[key], gradient)


def test_at_the_start_only_the_last_factor_learns():
    found = gradients(attach_adapter(make_llama(), space(), 0))
    for name, gradient in found.items():
        assert bool(gradient.any()) == (".up." in name), name


# --- what the rest of the road asks of a model


@pytest.mark.parametrize("style", STYLES)
def test_left_padded_generation_with_a_cache_is_that_of_whole_rows(style):
    model = moved(attach_adapter(make_family("gpt 2", torch.float32), space(style), 0))
    prompts = [[9, 4, 11], [9, 4, 5, 6, 7, 8], [9, 4]]
    answers = generate(
        model, prompts, stop=[2], pad=PAD, max_new_tokens=5, batch_size=3, tick=lambda _: None
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        row = list(prompt)
        for token in answer.tokens:
            assert int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()) == token
            row.append(token)


def test_the_fused_objectives_see_its_head():
    model = moved(attach_adapter(make_llama(), space(), 0))
    states = output_states(model, input_ids=ids())
    assert states.head is not None
    torch.testing.assert_close(states.logits(), model(input_ids=ids()).logits)


def test_step_0_is_the_base_and_a_moved_one_is_not():
    model = attach_adapter(make_llama(), space("houlsby"), 0)
    base = answer_logits(make_llama(), make_rows(3))
    found = probes.identity(base, model, make_rows(3))
    assert (found["max_logit_difference"], found["moves_by_nature"]) == (0.0, False)
    found = probes.identity(base, moved(model), make_rows(3))
    assert found["kl"] > 0.01
    assert found["switched_off"] == 0.0


@pytest.mark.parametrize("style", STYLES)
def test_what_is_saved_loads_back_to_the_same_logits(tiny_model, tmp_path, style):
    base = resolve_model(ModelChoice(id=str(tiny_model)))
    cpu = torch.device("cpu"), torch.float32
    model = moved(attach_adapter(load_base(base, *cpu), space(style), 0))
    model.save_pretrained(tmp_path / "a", base={"id": base.id, "sha256": base.weights_hash()})
    about = json.loads((tmp_path / "a/update.json").read_text())
    assert about["space"] == space(style).model_dump(mode="json")
    assert about["base"] == {"id": base.id, "sha256": weights_hash(tiny_model)}
    again = load_adapter(load_base(base, *cpu), tmp_path / "a")
    assert torch.equal(again(input_ids=ids()).logits, model(input_ids=ids()).logits)
    assert not again.training


def other_base(folder: Path, tiny_model: Path) -> None:
    about = json.loads((folder / "update.json").read_text())
    about["base"]["sha256"] = "0" * 64
    (folder / "update.json").write_text(json.dumps(about))


def lost_tensor(folder: Path, tiny_model: Path) -> None:
    tensors = load_file(folder / "update.safetensors")
    tensors.pop("model.layers.1.mlp.adapter.up.weight")
    save_file(tensors, folder / "update.safetensors")


def other_width(folder: Path, tiny_model: Path) -> None:
    about = json.loads((folder / "update.json").read_text())
    about["space"]["bottleneck"] = 7
    (folder / "update.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (other_base, "was trained on .* with SHA-256 000000000000…, and .* has other weights"),
        (lost_tensor, r"has no tensor for model.layers.1.mlp.adapter.up.weight, .*\(64, 6\)"),
        (other_width, r"has \(6, 64\) for model.layers.0.mlp.adapter.down.weight, .* is \(7, 64\)"),
    ],
)
def test_an_update_that_does_not_belong_to_the_base_is_refused(tiny_model, tmp_path, tamper, words):
    base = resolve_model(ModelChoice(id=str(tiny_model)))
    cpu = torch.device("cpu"), torch.float32
    model = attach_adapter(load_base(base, *cpu), space(), 0)
    model.save_pretrained(tmp_path, base={"id": base.id, "sha256": base.weights_hash()})
    tamper(tmp_path, tiny_model)
    with pytest.raises(ModelError, match=words):
        load_adapter(load_base(base, *cpu), tmp_path)


def test_models_of_another_build_are_refused():
    opt = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCAB, hidden_size=16, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2,
            word_embed_proj_dim=16, max_position_embeddings=16,
        )
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"layers.0 of this opt has self_attn, fc1, fc2; use lora"):
        attach_adapter(opt, space(), 0)
    with pytest.raises(ModelError, match="compacter is counted but not trained here; use pfeiffer"):
        attach_adapter(make_llama(), space("compacter", kronecker=2), 0)
