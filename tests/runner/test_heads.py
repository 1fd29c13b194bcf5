"""Without the logits, against the model's own logits: every family, every head, planted faults."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from small_models import (
    FAMILIES,
    PAD,
    SMALL,
    VOCAB,
    make_family,
    make_llama,
    make_rows,
    with_adapter,
)
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tunemath.runner import heads
from tunemath.runner.heads import kl, output_states
from tunemath.runner.hf_labels import collate, shift_targets

BATCH = collate(make_rows(5), PAD)
INPUTS = {key: BATCH[key] for key in ("input_ids", "attention_mask")}
TARGETS, COUNTS = shift_targets(BATCH["labels"])
COLUMNS = COUNTS.any(dim=0).nonzero()[:, 0]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def unsaid(caplog: pytest.LogCaptureFixture):
    """Each test hears its warnings, and none that it does not expect."""
    heads._warn.cache_clear()
    caplog.set_level(logging.WARNING, "tunemath.runner.heads")


def states_of(model, keep=COLUMNS):
    return output_states(model, keep=keep, **INPUTS)


def plain_log_probs(model) -> torch.Tensor:
    """log p of each target (B, T-1) from the model's own logits, 0 where nothing counts."""
    table = model(**INPUTS).logits[:, :-1].double().log_softmax(-1)
    return torch.where(COUNTS, table.gather(-1, TARGETS[..., None])[..., 0], 0.0)


def found_log_probs(model) -> torch.Tensor:
    return states_of(model).log_probs(TARGETS[:, COLUMNS], COUNTS[:, COLUMNS])


def gradients(model, value: torch.Tensor) -> dict[str, torch.Tensor]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(value, [p for _, p in named])
    return {name: grad for (name, _), grad in zip(named, found, strict=True)}


def assert_as_the_logits(model, *, rtol: float = 1e-9) -> None:
    """Values and gradients of cross-entropy and log-probabilities equal the logits' own."""
    expected = plain_log_probs(model)
    weights = torch.arange(len(expected), dtype=expected.dtype)
    found = found_log_probs(model)
    torch.testing.assert_close(found, expected[:, COLUMNS], rtol=rtol, atol=rtol)
    loss = states_of(model).cross_entropy(TARGETS[:, COLUMNS], COUNTS[:, COLUMNS])
    torch.testing.assert_close(loss, -expected.sum(), rtol=rtol, atol=rtol)
    for value, plain in [
        (loss, -plain_log_probs(model).sum()),
        ((found.sum(dim=1) * weights).sum(), (expected.sum(dim=1) * weights).sum()),
    ]:
        plain_gradients = gradients(model, plain)
        size = max(float(grad.abs().max()) for grad in plain_gradients.values())
        for name, grad in gradients(model, value).items():
            torch.testing.assert_close(
                grad, plain_gradients[name], rtol=10 * rtol, atol=rtol * size, msg=name
            )


def with_head(family: str = "llama", **options):
    """LoRA on the output layer too, doing something."""
    return with_adapter(make_family(family), **{"target_modules": ["lm_head"]} | options)


# --- heads that are understood


@EVERY_FAMILY
def test_every_family_gives_what_its_own_logits_give(family, caplog):
    model = with_adapter(make_family(family))
    head = states_of(model).head
    scale, cap = FAMILIES[family][2:]
    assert head is not None
    assert head.scale == pytest.approx(scale, rel=1e-15)
    assert head.soft_cap == cap
    assert_as_the_logits(model)
    assert not caplog.records


@EVERY_FAMILY
def test_lora_on_the_head_is_part_of_it(family, caplog):
    model = with_head(family)
    assert states_of(model).head.lora is not None
    assert_as_the_logits(model)
    with model.disable_adapter():
        assert states_of(model).head.lora is None
        torch.testing.assert_close(found_log_probs(model), plain_log_probs(model)[:, COLUMNS])
    assert not caplog.records


def test_no_logits_are_made():
    model, seen = make_llama(), []
    states_of(model)  # the measurement multiplies once
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    assert states_of(model).values.shape == (5, len(COLUMNS), 32)
    assert seen == [(5, len(COLUMNS), 0)]


def test_the_model_is_left_as_it_was():
    model = make_llama()
    before, state = model(**INPUTS).logits, torch.get_rng_state()
    states_of(model.train())
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model.eval()(**INPUTS).logits, before)


def test_the_head_is_whole_again_after_an_error():
    model = make_llama()
    states_of(model)
    with pytest.raises(IndexError):
        output_states(model, input_ids=torch.tensor([[VOCAB]]))
    assert model(**INPUTS).logits.shape[-1] == VOCAB


def test_a_model_is_measured_once(monkeypatch):
    model, measured = with_adapter(make_llama()), []
    monkeypatch.setattr(heads, "_measure", lambda *given: measured.append(given[0]) or (1.0, None))
    for _ in range(3):
        states_of(model)
    with model.disable_adapter():
        states_of(model)
    assert measured == [model.get_base_model()]


def test_a_measured_model_can_be_forgotten():
    model = make_llama()
    states_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_columns_are_chosen_where_the_model_cannot_choose_them():
    class KeepsAll(LlamaForCausalLM):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    model = make_llama()
    model.__class__ = KeepsAll
    assert states_of(model).values.shape == (5, len(COLUMNS), 32)
    assert_as_the_logits(model)


def test_gradient_checkpointing_changes_nothing():
    model = with_adapter(make_llama())
    expected = gradients(model, -plain_log_probs(model).sum())
    model.get_base_model().gradient_checkpointing_enable()
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    loss = states_of(model).cross_entropy(TARGETS[:, COLUMNS], COUNTS[:, COLUMNS])
    for name, grad in gradients(model, loss).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-7, atol=1e-10)


def test_a_trained_copy_of_the_head_is_the_head():
    model = with_adapter(make_llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    copy = model.get_base_model().lm_head.modules_to_save["default"]
    torch.nn.init.normal_(copy.weight, std=0.2)
    assert states_of(model).head.weight is copy.weight
    assert_as_the_logits(model)
    with torch.no_grad(), model.disable_adapter():
        base = states_of(model)
        torch.testing.assert_close(found_log_probs(model), plain_log_probs(model)[:, COLUMNS])
    assert base.head.weight is model.get_base_model().lm_head.original_module.weight
    assert_kl(model)


def test_a_merged_adapter_is_in_the_weight():
    model = with_head()
    expected = plain_log_probs(model)[:, COLUMNS]
    model.merge_adapter()
    assert states_of(model).head.lora is None
    torch.testing.assert_close(found_log_probs(model), expected)


def test_half_precision_agrees_to_its_own_rounding(caplog):
    model = make_family("gemma 2", torch.bfloat16)
    head = states_of(model).head
    assert (head.scale, head.soft_cap) == (pytest.approx(1.0, rel=1e-15), 3.0)
    torch.testing.assert_close(
        found_log_probs(model).double(), plain_log_probs(model)[:, COLUMNS], rtol=0.03, atol=0.03
    )
    assert not caplog.records


# --- KL


def assert_kl(model) -> None:
    with torch.no_grad():
        moved, own = states_of(model), model(**INPUTS).logits[:, COLUMNS].log_softmax(-1)
        with model.disable_adapter():
            base, other = states_of(model), model(**INPUTS).logits[:, COLUMNS].log_softmax(-1)
        found = kl(moved[COUNTS[:, COLUMNS]], base[COUNTS[:, COLUMNS]])
    expected = F.kl_div(other, own, log_target=True, reduction="none").sum(-1)
    assert float(expected.max()) > 1e-3
    torch.testing.assert_close(found, expected[COUNTS[:, COLUMNS]], rtol=1e-8, atol=1e-10)


@EVERY_FAMILY
@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]])
def test_kl_is_that_of_the_logits(family, targets):
    assert_kl(with_adapter(make_family(family), target_modules=targets))


def test_kl_of_a_head_that_is_not_understood_beside_one_that_is(caplog):
    model = with_head(use_dora=True)
    assert states_of(model).head is None
    with model.disable_adapter():
        assert states_of(model).head is not None
    assert_kl(model)


@EVERY_FAMILY
def test_the_preferred_token_is_the_logits_highest(family):
    model = with_head(family)
    expected = model(**INPUTS).logits.argmax(-1)
    real = INPUTS["attention_mask"] == 1
    assert torch.equal(states_of(model, keep=None)[real].preferred(), expected[real])


# --- heads that are not, each with its own logits and a warning


def plant(after=None, before=None):
    """A Llama whose forward does something of its own around its head."""

    class Planted(LlamaForCausalLM):
        def forward(self, input_ids, attention_mask):
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
            logits = self.lm_head(hidden) if before is None else before(self, hidden)
            logits = logits if after is None else after(logits)
            return type("Output", (), {"logits": logits})()

    torch.manual_seed(0)
    return Planted(LlamaConfig(**SMALL)).double().eval()


def shift_one_token(logits):
    bias = torch.zeros(VOCAB, dtype=logits.dtype)
    bias[7] = 0.3
    return logits + bias


def forbid_a_token(logits):
    logits = logits.clone()
    logits[..., 5] = -1e4
    return logits


def cool_by_position(logits):
    return logits * torch.linspace(1.0, 2.0, logits.shape[1], dtype=logits.dtype)[:, None]


AFTER = {
    "one token's logit shifted": shift_one_token,
    "one token forbidden": forbid_a_token,
    "another soft-cap": lambda z: 4 * z / (1 + z.abs() / 4),
    "a hard cap": lambda z: z.clamp(-5, 5),
    "a slope that changes": lambda z: torch.where(z > 0, z, 0.9 * z),
    "log-probabilities": lambda z: z.log_softmax(-1),
    "the sign turned": lambda z: -z,
    "a temperature by position": cool_by_position,
}
BEFORE = {
    "another weight": lambda self, h: (self.lm_head(h), h @ self.model.embed_tokens.weight.T)[1],
    "the head twice": lambda self, h: self.lm_head(h) + self.lm_head(h.flip(-1)),
    "never its head": lambda self, h: h @ self.lm_head.weight.T,
}


@pytest.mark.parametrize("fault", AFTER)
def test_a_model_that_changes_its_logits_keeps_them(fault, caplog):
    model = plant(AFTER[fault])
    assert states_of(model).head is None
    assert_as_the_logits(model)
    assert caplog.messages == [
        "Planted computes all its logits: it changes the products of its output layer in a way "
        "that is not known here"
    ]


@pytest.mark.parametrize("fault", BEFORE)
def test_a_model_that_uses_its_head_otherwise_keeps_its_logits(fault, caplog):
    model = plant(before=BEFORE[fault])
    assert states_of(model).head is None
    torch.testing.assert_close(found_log_probs(model), plain_log_probs(model)[:, COLUMNS])
    assert len(caplog.messages) == 1


def test_a_scale_and_a_cap_without_names_are_measured(caplog):
    model = plant(lambda z: 3.0 * torch.tanh(z * 0.7 / 3.0))
    head = states_of(model).head
    assert (head.scale, head.soft_cap) == pytest.approx((0.7, 3.0))
    assert_as_the_logits(model, rtol=1e-7)
    assert not caplog.records


def test_a_head_with_a_forward_of_its_own_is_not_read(caplog):
    model = make_llama()
    original = model.lm_head.forward
    model.lm_head.forward = lambda hidden: original(2 * hidden)
    assert_as_the_logits(model)
    assert caplog.messages == [
        "LlamaForCausalLM computes all its logits: the forward of its output layer was replaced"
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "is not plain LoRA"),
        ({"lora_dropout": 0.5}, "has a dropout of 0.5"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_keeps_the_logits(options, reason, caplog):
    model = with_head(**options).train()
    assert states_of(model).head is None
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]
    if "use_dora" in options:
        assert_as_the_logits(model)


def test_dropout_on_the_heads_adapter_does_not_matter_in_evaluation(caplog):
    model = with_head(lora_dropout=0.5)
    assert states_of(model).head is not None
    assert_as_the_logits(model)
    assert not caplog.records


def test_two_active_adapters_on_the_head_keep_the_logits(caplog):
    model = with_head()
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    assert states_of(model).head is None
    torch.testing.assert_close(found_log_probs(model), plain_log_probs(model)[:, COLUMNS])
    assert "its output layer has 2 active adapters" in caplog.text


def test_a_reason_is_given_once(caplog):
    model = plant(shift_one_token)
    for _ in range(3):
        states_of(model)
    assert len(caplog.messages) == 1
