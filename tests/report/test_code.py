from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tunemath.report import example_code, loading_code

HOSTILE = 'a"; import os; os.system("x") #\n\\"""\u202e\u2028'


def assigned(code: str, name: str) -> Any:
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is not assigned")


def test_values_are_literals_whatever_they_hold() -> None:
    code = loading_code(HOSTILE, HOSTILE, messages=[{"role": "user", "content": HOSTILE}])
    assert assigned(code, "base") == HOSTILE
    assert assigned(code, "adapter") == HOSTILE
    assert assigned(code, "messages") == [{"role": "user", "content": HOSTILE}]
    assert "\u202e" not in code


def test_revision_and_length() -> None:
    code = loading_code("runs/a", "org/name", revision="abc", max_new_tokens=7)
    assert code.count('revision="abc"') == 2
    assert "max_new_tokens=7" in code


def test_a_dtype_is_a_name() -> None:
    with pytest.raises(ValueError, match="is not the name of a torch type"):
        loading_code("runs/a", "org/name", dtype="float32)")


def test_example_asks_the_first_held_out_item(sft: dict[str, Any]) -> None:
    code = example_code(sft)
    assert assigned(code, "adapter") == "runs/dates-sft/adapter"
    assert assigned(example_code(sft, "runs/x"), "adapter") == str(Path("runs/x/adapter").resolve())
    assert assigned(example_code(sft, update="."), "adapter") == "."
    assert assigned(code, "messages") == [{"role": "user", "content": "3. März 1987"}]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    sft["evaluation"]["before_after"][0]["messages"] = turns
    assert assigned(example_code(sft), "messages") == turns


def test_the_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")

    words = {word: i for i, word in enumerate(["<eos>", "user", "hello", "assistant", "[UNK]"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")
    tokenizer.pad_token = "<eos>"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "run" / "adapter")
    code = loading_code(
        tmp_path / "run" / "adapter",
        tmp_path / "base",
        messages=[{"role": "user", "content": "hello"}],
        max_new_tokens=3,
    )
    scope: dict[str, Any] = {}
    exec(compile(code, "loading_code", "exec"), scope)
    assert scope["inputs"]["input_ids"].tolist() == [[1, 2, 3]]
    assert scope["output"].shape[1] <= 6
