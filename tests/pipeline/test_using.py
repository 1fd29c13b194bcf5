"""What is done with a finished run: asking it, merging it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bound_products import bind
from tunemath.errors import ModelError, RunError
from tunemath.pipeline import Run
from tunemath.pipeline.using import ask, merge
from tunemath.runner import verifying


def test_ask_gives_both_answers(sft_run):
    answer = ask(sft_run, "red 5000")
    assert answer["tuned"] == "yes"
    assert answer["base"] != "yes"


def test_ask_uses_the_system_prompt_of_the_training_rows(sft_run):
    assert ask(sft_run, "red 1") == ask(sft_run, "red 1", system="S")


def test_ask_is_what_transformers_and_peft_say(sft_run):
    tokenizer = AutoTokenizer.from_pretrained(sft_run.model.folder)
    model = AutoModelForCausalLM.from_pretrained(sft_run.model.folder)
    model = PeftModel.from_pretrained(model, sft_run.folder.path / "adapter").eval()
    messages = [{"role": "system", "content": "Z"}, {"role": "user", "content": "what?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    text = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ask(sft_run, "what?", system="Z")["tuned"] == text.strip()


@pytest.mark.parametrize("use", [lambda run: ask(run, "red"), merge])
def test_a_run_without_an_adapter_is_told_so(shared_job, tmp_path, use):
    from tunemath.contract import FineTune

    with pytest.raises(RunError, match="no trained adapter yet; `tunemath run` trains it"):
        use(Run(FineTune.load(shared_job), tmp_path))


def test_the_merged_folder_is_an_ordinary_model_that_answers_like_the_adapter(sft_run, tmp_path):
    proof = merge(sft_run, tmp_path / "merged")
    found = proof["adapter_vs_reloaded_merged"]
    assert found["max_logit_difference"] <= proof["tolerance"] == 1e-3
    assert proof["positions"] > 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    original = AutoTokenizer.from_pretrained(sft_run.model.folder)
    assert tokenizer.chat_template == original.chat_template
    messages = [{"role": "user", "content": "green 12"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert inputs["input_ids"].tolist()[0] == original.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    base = AutoModelForCausalLM.from_pretrained(sft_run.model.folder)
    tuned = PeftModel.from_pretrained(base, sft_run.folder.path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        expected, found = tuned(**inputs).logits, merged(**inputs).logits
        with tuned.disable_adapter():
            before = tuned(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 1  # so the test could fail
    assert not list(tmp_path.glob(".merged*"))
    assert not any("lora" in path.name for path in (tmp_path / "merged").iterdir())


def test_merge_writes_into_the_run_when_no_place_is_given(sft_run, copied):
    run = Run(sft_run.contract, copied(sft_run))
    assert merge(run)["folder"] == str(run.folder.path / "merged")
    config = json.loads((run.folder.path / "merged/config.json").read_text())
    assert config["model_type"] == "llama"


def test_merge_does_not_touch_a_folder_that_exists(sft_run, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="exists already"):
        merge(sft_run, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_merged_model_that_differs_is_not_written(sft_run, tmp_path, monkeypatch):
    monkeypatch.setitem(verifying.TOLERANCES, "float32", 0.0)
    with pytest.raises(ModelError, match=r"differs from the adapter by .* nothing was written"):
        merge(sft_run, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_the_merged_model_gives_the_same_answers_to_every_item(sft_run, tmp_path):
    items = merge(sft_run, tmp_path / "merged", items=True)["items"]
    for name, of_run in sft_run.items.items():
        assert items[name] == {"items": len(of_run), "same": len(of_run), "apart": []}


def test_an_answer_that_differs_is_named(sft_run, copied, tmp_path):
    run = Run(sft_run.contract, copied(sft_run))
    path = run.folder.path / "items/tuned.task.jsonl"
    first, *rest = path.read_text("utf-8").splitlines()
    changed = json.dumps({**json.loads(first), "output": "something else"})
    path.write_text("\n".join([changed, *rest]) + "\n", "utf-8")
    bind(run.folder.path, "evaluate", "items/tuned.task.jsonl")
    task = merge(run, tmp_path / "merged", items=True)["items"]["task"]
    assert task["same"] == task["items"] - 1
    (apart,) = task["apart"]
    assert apart["id"] == json.loads(first)["id"]
    item = run.items["task"][0]
    prompt, answer = run.prompt_ids(item), run.answer_ids(item, "something else")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    worst = 0.0
    with torch.no_grad():
        for place, token in enumerate(answer):
            logits = model(input_ids=torch.tensor([[*prompt, *answer[:place]]])).logits[0, -1]
            worst = max(worst, float(logits.max() - logits[token]))
    assert apart["gap"] == pytest.approx(worst, rel=1e-4)
    assert worst > 1


def test_a_choice_that_differs_is_named_with_what_it_lost_by(sft_run, copied, tmp_path):
    run = Run(sft_run.contract, copied(sft_run))
    path = run.folder.path / "items/tuned.retention.jsonl"
    first, *rest = path.read_text("utf-8").splitlines()
    row = json.loads(first)
    other = next(each for each in run.items["retention"][0].choices if each != row["output"])
    path.write_text("\n".join([json.dumps({**row, "output": other}), *rest]) + "\n", "utf-8")
    bind(run.folder.path, "evaluate", "items/tuned.retention.jsonl")
    found = merge(run, tmp_path / "merged", items=True)["items"]["retention"]
    (apart,) = found["apart"]
    lost = max(row["logprobs"]) - row["logprobs"][run.items["retention"][0].choices.index(other)]
    assert apart == {"id": row["id"], "gap": pytest.approx(lost, rel=1e-3)}
