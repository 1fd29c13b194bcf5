from __future__ import annotations

import dataclasses

import pytest
from peft.tuners.lora import config as classes
from peft_models import agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change
from tunemath.space.peft.nested import NESTED

QUERY = {"target_modules": ["q_proj"], "r": 8}
CLASSES = {
    "arrow_config": classes.ArrowConfig,
    "corda_config": classes.CordaConfig,
    "eva_config": classes.EvaConfig,
    "kasa_config": classes.KasaConfig,
    "loftq_config": classes.LoftQConfig,
    "lora_ga_config": classes.LoraGAConfig,
    "monteclora_config": classes.MontecloraConfig,
    "use_bdlora": classes.BdLoraConfig,
    "velora_config": classes.VeloraConfig,
}


@pytest.mark.parametrize("field", NESTED)
def test_the_settings_and_their_defaults_are_those_of_pefts_classes(field):
    fields = {each.name: each.default for each in dataclasses.fields(CLASSES[field])}
    ours = {key: setting.default or None for key, setting in NESTED[field].items()}
    assert ours == {key: default or None for key, default in fields.items()}
    assert len(CLASSES) == len(NESTED)


def bd(**more) -> dict:
    return {"use_bdlora": {"target_modules_bd_a": ["q_proj"], **more}}


# Settings, and whether PEFT takes them.
CASES = {
    "block-diagonal": (bd(nblocks=2), True),
    "blocks-of-a-fraction": (bd(nblocks=2.0), False),
    "blocks-null": (bd(nblocks=None), False),
    "no-blocks": (bd(nblocks=0), False),
    "unknown-block": (bd(nblock=2), True),
    "both-sides": (bd(target_modules_bd_b=["q_proj"]), False),
    "no-side": ({"use_bdlora": {"match_strict": False}}, True),
    "null-sides": ({"use_bdlora": {"target_modules_bd_b": None, "match_strict": False}}, True),
    "no-mapping": ({"use_bdlora": True}, False),
    "kasa": ({"kasa_config": {"beta": 0, "gamma": 0.5}}, True),
    "kasa-negative": ({"kasa_config": {"beta": -0.1}}, False),
    "kasa-unknown": ({"kasa_config": {"delta": 2}}, True),
    "samples": ({"monteclora_config": {"num_samples": 3, "buffer_size": 2}}, True),
    "samples-of-a-fraction": ({"monteclora_config": {"num_samples": 3.0}}, False),
    "no-samples": ({"monteclora_config": {"num_samples": 0}}, False),
    "buffer-of-a-fraction": ({"monteclora_config": {"buffer_size": 2.5}}, False),
    "prior": ({"monteclora_config": {"dirichlet_prior": 0}}, False),
    "samples-unknown": ({"monteclora_config": {"samples": 3}}, False),
    "velora": ({"velora_config": {"num_groups": 4, "init_type": "random"}}, True),
    "velora-groups-of-a-fraction": ({"velora_config": {"num_groups": 4.0}}, False),
    "velora-scale": ({"velora_config": {"scale": 0}}, False),
    "velora-start": ({"velora_config": {"init_type": "mean"}}, False),
    "velora-unknown": ({"velora_config": {"groups": 4}}, True),
    "eva": ({"init_lora_weights": "eva", "eva_config": {"rho": 1, "tau": 1.0}}, True),
    "eva-rho": ({"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}, False),
    "eva-tau": ({"eva_config": {"tau": 1.5}}, False),
    "eva-text": ({"eva_config": {"rho": "2"}}, False),
    "eva-list": ({"eva_config": [2.0]}, False),
    "corda-unused": ({"corda_config": {"corda_method": "kpm"}}, True),
    "lora-ga": ({"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "unit"}}, True),
    "loftq-null": ({"loftq_config": None}, True),
    "loftq-unused": ({"loftq_config": {"loftq_bits": 4}}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_what_peft_takes_is_counted_and_what_it_refuses_is_refused(case):
    values, taken = CASES[case]
    assert agree("llama", "LORA", {**QUERY, **values}) == taken


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (bd(nblocks=2.0), r"use_bdlora has nblocks 2\.0; set it to a whole number of 1 or more"),
        (bd(target_modules_bd_a="q_proj"), "target_modules_bd_a 'q_proj'; set it to a list of"),
        ({"kasa_config": {"beta": -1}}, "kasa_config has beta -1; set it to a number of 0 or more"),
        ({"velora_config": {"scale": 0}}, "velora_config has scale 0; set it to a number above 0"),
        ({"eva_config": {"tau": 2}}, "eva_config has tau 2; set it to a number from 0 to 1"),
        ({"eva_config": 2}, "eva_config is 2; set it to a mapping"),
        ({"velora_config": {"init_type": "x"}}, "set it to one of batch_average, batch_average_o"),
        ({"monteclora_config": {"samples": 3}}, "has samples, which PEFT refuses; known: num_samp"),
        (bd(target_modules_bd_b=["q_proj"]), "q_proj in both target_modules_bd_a and"),
    ],
)
def test_refusals_say_what_was_given_and_what_to_do(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("LORA", **QUERY, **values))


def test_keys_that_peft_leaves_out_are_named():
    config = AdapterConfig("LORA", **QUERY, **bd(nblock=2), eva_config={"ro": 1}, rank=3)
    assert config.unknown == ("eva_config.ro", "rank", "use_bdlora.nblock")
    assert AdapterConfig("LORA", use_bdlora=5, eva_config=None).unknown == ()
