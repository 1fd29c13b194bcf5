"""What all tuner types share: saved modules, biases, trained tokens, tied embeddings."""

from __future__ import annotations

import peft
import pytest
from peft_models import agree, agree_on, base, blueprint, live_counts
from torch import nn

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, Change, peft_change, peft_ledger

QUERY = {"target_modules": ["q_proj"], "r": 2}
LLAMA = 2 * 2 * (32 + 32)  # rank 2 on the queries of both layers


def change_of(family: str, **values) -> Change:
    return peft_change(blueprint(family), AdapterConfig("LORA", **values))


def trained(family: str, **values) -> int:
    return peft_ledger(blueprint(family), AdapterConfig("LORA", **values)).trainable


# --- modules_to_save


@pytest.mark.parametrize(
    ("family", "names", "copied", "trainable"),
    [
        # (what is copied, what of it is trained) beside the adapter, in parameters
        ("llama", ["lm_head"], 64 * 32, 64 * 32),
        ("qwen2", ["lm_head"], 64 * 32, 64 * 32),  # tied: the copy is not
        ("qwen2", ["embed_tokens", "lm_head"], 2 * 64 * 32, 2 * 64 * 32),
        ("llama", ["norm"], 5 * 32, 5 * 32),  # every name that ends so, layer norms too
        ("llama", ["mlp"], 2 * 3 * 32 * 48, 2 * 3 * 32 * 48),
        # The inner match is copied out of the outer's copy, which is frozen there.
        ("llama", ["mlp", "up_proj"], 2 * 4 * 32 * 48, 2 * 3 * 32 * 48),
        ("llama", ["model.layers.0.mlp", "0.mlp.up_proj"], 4 * 32 * 48, 3 * 32 * 48),
        ("llama", ["nothing"], 0, 0),
    ],
)  # fmt: skip
def test_copies_are_counted_beside_their_originals(family, names, copied, trainable):
    values = {**QUERY, "modules_to_save": names, "task_type": "CAUSAL_LM"}
    ledger = peft_ledger(blueprint(family), AdapterConfig("LORA", **values))
    assert ledger.trainable == LLAMA + trainable
    assert ledger.total == ledger.base + LLAMA + copied
    assert live_counts(family, peft.LoraConfig(**values)) == (ledger.trainable, ledger.total)


def test_adapters_inside_a_copy_are_copied_and_frozen_where_they_were():
    # "attn" ends self_attn, but is no part of q_proj's name, which so stays a target.
    values = {**QUERY, "modules_to_save": ["attn"], "task_type": "CAUSAL_LM"}
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)
    ledger = peft_ledger(blueprint("llama"), AdapterConfig("LORA", **values))
    assert (ledger.trainable, ledger.total - ledger.base) == (
        attention + LLAMA,
        attention + 2 * LLAMA,
    )
    assert live_counts("llama", peft.LoraConfig(**values)) == (ledger.trainable, ledger.total)


INSIDE = [["output", "dense"], ["layer.0", "key"], ["layer.0.attention", "key"]]


@pytest.mark.parametrize("names", [None, ["pooler"], ["output"], ["dense"], ["layer.0"], *INSIDE])
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", None])
def test_tasks_add_their_heads_and_go_through_the_names_twice(names, task):
    values = {"target_modules": ["query"], "modules_to_save": names, "task_type": task, "r": 2}
    assert agree_on(base("bert"), "LORA", values)


def test_three_names_one_inside_the_other_are_refused():
    """PEFT copies these over each other, by the order of its passes."""
    names = ["layer.0", "0.attention", "0.attention.self.key"]
    with pytest.raises(
        ModelError, match=r"one inside the other; name only bert\.encoder\.layer\.0"
    ):
        change_of("bert", target_modules=["query"], modules_to_save=names)


def test_heads_of_tokens_are_not_kept_from_being_targets():
    """PEFT adds them too late: all-linear adapts the classifier, which it then fails to copy."""
    values = {"target_modules": "all-linear", "task_type": "TOKEN_CLS"}
    assert not agree("bert", "LORA", values)
    with pytest.raises(ModelError, match=r"classifier is adapted, and copied .* exclude_modules"):
        change_of("bert", **values)
    assert agree("bert", "LORA", {**values, "exclude_modules": ["classifier"]})
    assert agree("bert", "LORA", {**values, "task_type": "SEQ_CLS"})


class Headed(nn.Module):
    """A head that is a Sequential, and a list of heads."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(4, 2))])


@pytest.mark.parametrize(("name", "taken"), [("head", True), ("heads", False), ("heads.0", True)])
def test_a_sequential_is_copied_and_a_list_is_not(name, taken):
    values = {"target_modules": ["body"], "modules_to_save": [name]}
    assert agree_on(Headed(), "LORA", values) == taken


def test_weights_tied_inside_a_copy_are_copied_once():
    tied = nn.Module()
    tied.body = nn.Linear(4, 4)
    tied.pair = nn.Module()
    tied.pair.rows, tied.pair.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
    tied.pair.head.weight = tied.pair.rows.weight
    assert agree_on(tied, "LORA", {"target_modules": ["body"], "modules_to_save": ["pair"]})
    assert agree_on(tied, "LORA", {"target_modules": ["body"], "modules_to_save": ["head"]})


# --- biases


def test_biases_of_copied_modules_are_trained_in_the_copy_alone():
    values = {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS", "r": 2}
    change = change_of("bert", **values)
    assert "classifier.bias" not in change.unfrozen
    assert "bert.pooler.dense.bias" in change.unfrozen
    assert agree("bert", "LORA", values)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only", "vera_only"])
def test_biases_are_those_that_peft_trains(bias):
    values = {"target_modules": ["query", "value"], "bias": bias}
    assert agree("bert", "LORA", values)
    count = {"none": 0, "all": sum(p.numel() for n, p in base("bert").named_parameters()
                                   if n.endswith(".bias") and "classifier" not in n),
             "lora_only": 4 * 32, "vera_only": 4 * 32}[bias]  # fmt: skip
    plain = trained("bert", target_modules=["query", "value"], task_type="SEQ_CLS")
    assert trained("bert", **values, task_type="SEQ_CLS") == plain + count


def test_an_unknown_bias_is_named():
    with pytest.raises(ModelError, match="bias is 'some'; PEFT knows none, all and lora_only"):
        change_of("llama", **QUERY, bias="some")


# --- trained tokens and tied embeddings


@pytest.mark.parametrize(
    ("family", "tokens", "rows"),
    [
        ("llama", [1, 2, 3], 3),
        ("llama", [-1, -64], 2),
        ("qwen2", [1, 2, 3], 3),  # tied: the head follows
        ("llama", {"embed_tokens": [1], "lm_head": [1, 2]}, 3),
        ("qwen2", {"embed_tokens": [1, 2], "lm_head": [1, 2]}, 2),
        ("qwen2", {"embed_tokens": [1, 2], "lm_head": [1]}, 3),
        ("qwen2", {"lm_head": [1, 2]}, 2),
        ("qwen2", {"embed_tokens": [1, 2], "head": [1, 2]}, 4),  # not by its full name: apart
    ],
)
def test_trained_tokens_have_a_row_each(family, tokens, rows):
    values = {**QUERY, "trainable_token_indices": tokens, "task_type": "CAUSAL_LM"}
    assert trained(family, **values) == LLAMA + rows * 32
    assert agree(family, "LORA", values)


@pytest.mark.parametrize(
    ("values", "trainable"),
    [
        # Factors of the embedding (64 rows of 32) and of the head, which PEFT counts again.
        ({"target_modules": ["q_proj", "lm_head"]}, 2 * 2 * (64 + 32)),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 2 * 2 * (64 + 32)),
        ({"target_modules": r".*q_proj|lm_head"}, 2 * 2 * (64 + 32)),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 64 * 32),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, 64 * 32),
    ],
)
def test_tied_layers_follow_the_embedding(values, trainable):
    values = {**values, "r": 2, "ensure_weight_tying": True}
    assert trained("qwen2", **values) == LLAMA + trainable
    assert agree("qwen2", "LORA", values)


def test_factors_that_are_counted_twice_are_noted():
    values = {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}
    (note,) = change_of("qwen2", **values).notes
    assert "factors of lm_head are those of model.embed_tokens" in note
    assert change_of("llama", **values).notes == ()


def test_an_embedding_that_leads_must_be_a_target():
    values = {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}
    with pytest.raises(ModelError, match=r"model\.embed_tokens, which is excluded"):
        change_of("qwen2", **values, exclude_modules=["embed_tokens"])
    assert not agree("qwen2", "LORA", {**values, "exclude_modules": ["embed_tokens"]})
    ranked = {**values, "rank_pattern": {"lm_head": 3, "embed_tokens": 5}}
    assert agree("qwen2", "LORA", ranked)
