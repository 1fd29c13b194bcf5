from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tunemath.report import model_card


def front_matter(card: str) -> dict[str, Any]:
    opening, yaml_text, _ = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    assert opening == ""
    return yaml.safe_load(yaml_text)


def test_front_matter(sft: dict[str, Any]) -> None:
    assert front_matter(model_card(sft)) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tunemath", "lora", "sft"],
    }


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/home/user/model", "model"),
        ("../other/model", "model"),
        ("src/tunemath", "tunemath"),
        ("C:\\other\\a b", "a b"),
    ],
)
def test_a_folder_is_no_base_model(sft: dict[str, Any], folder: str, name: str) -> None:
    sft["contract"]["model"]["id"] = folder
    card = model_card(sft)
    assert "base_model" not in front_matter(card)
    assert folder not in card
    assert f'base = "./{name}"' in card
    assert f"with the base model as `./{name}` in it" in card


def test_a_hub_id_is_kept(sft: dict[str, Any]) -> None:
    sft["contract"]["model"]["id"] = "org/name-1.0"
    assert front_matter(model_card(sft))["base_model"] == "org/name-1.0"
    assert front_matter(model_card(sft, "other/name"))["base_model"] == "other/name"


def test_front_matter_of_anything(any_run: dict[str, Any]) -> None:
    card = model_card(any_run)
    values = front_matter(card)
    assert values["library_name"] == "peft"
    assert "license" not in values
    assert "None" not in card


def test_it_has_choices_results_limits_and_code(dpo: dict[str, Any]) -> None:
    card = model_card(dpo)
    for words in (
        "### 1. Update space: what may change",
        "### 5. Evaluation contract: what would change our mind",
        "68.7 % [61.2, 76.1]",
        "−18.0 points [−23.1, −12.9]",
        "KL(tuned ‖ base) on retention answers: 0.112 [0.096, 0.129] nats per answer token",
        "PeftModel.from_pretrained",
        "## Limits",
        "✗ Fail",
        "executed code that came with the model",
    ):
        assert words in card
    assert "/home/user" not in card


def test_text_from_models_stays_text(sft: dict[str, Any]) -> None:
    sft["evaluation"]["before_after"][0]["tuned"] = "a|b\n---\n[x](javascript:1) ```"
    card = model_card(sft)
    prose = re.sub(r"^(`{3,})python\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in prose
    assert "<img" not in prose
    assert r"a\|b --- \[x\](javascript:1) \`\`\`" in prose


def poisoned(value: Any) -> Any:
    """Return the same evidence with markup in front of every string."""
    if isinstance(value, str):
        return "<svg onload=alert(1)>|\n\n# " + value
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return [poisoned(item) for item in value] if isinstance(value, list) else value


def test_no_string_of_the_evidence_can_become_markup(sft: dict[str, Any]) -> None:
    evil = poisoned(sft)
    evil["training"]["dtype"] = "float32"
    card = model_card(evil)
    prose = re.sub(r"^(`{3,})python\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    front, body = prose.removeprefix("---\n").split("\n---\n", maxsplit=1)
    assert "<svg" in front
    assert "<svg" not in body
    assert {line for line in body.split("\n") if line.startswith("# ")} == {
        line for line in body.split("\n")[:2] if line.startswith("# ")
    }


def test_tables_have_as_many_cells_as_heads(sft: dict[str, Any]) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", model_card(sft), re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().split("\n")}
        assert len(cells) == 1
