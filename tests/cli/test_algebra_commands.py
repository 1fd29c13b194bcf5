"""`tunemath extract`, `resize` and `combine`: their products, their records, what they refuse."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunemath.cli import main
from tunemath.runner import probing
from tunemath.runner.resolve import weights_hash
from tunemath.space.weights.provenance import read_provenance


@pytest.fixture
def call(capfd):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    """Return a folder with a model whose every parameter moved, without a tokenizer."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None]).logits


def test_an_adapter_is_taken_out_cut_and_stacked(call, tiny_model, tuned, tmp_path):
    whole, cut, both = (tmp_path / name for name in ("whole", "cut", "both"))
    code, out, _ = call(
        "extract", tiny_model, tuned, whole, "--rank", 64, "--rest", "none", "--json"
    )
    assert code == 0
    proof = json.loads(out)
    assert {cut["rank"] for cut in proof["modules"]} == {32, 64}
    assert proof["relative_error"] < 1e-5
    record = read_provenance(whole)
    assert (record.operation, [source.role for source in record.sources]) == (
        "extract", ["base", "tuned"])  # fmt: skip
    assert record.of("base")[0].sha256 == weights_hash(tiny_model)
    assert record.proof["relative_error"] == proof["relative_error"]
    AutoTokenizer.from_pretrained(whole)

    code, out, _ = call("resize", whole, cut, "--energy", "0.5", "--dtype", "bfloat16")
    assert code == 0
    assert "survived rounding" in out
    tensors = load_file(cut / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}

    code, _, _ = call("combine", f"{whole}:2", f"{whole}:-1.5", both, "-m", "task", "--rank", 8)
    assert code == 0
    assert read_provenance(both).of("base") == record.of("base")
    half = tmp_path / "half"
    assert call("combine", f"{whole}:0.5", half, "-m", "task", "--rank", 8)[0] == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    first = logits(PeftModel.from_pretrained(base, str(both)).merge_and_unload())
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    second = logits(PeftModel.from_pretrained(base, str(half)).merge_and_unload())
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_products_are_read_back_and_compared(call, tiny_model, tuned, tmp_path):
    """Its logits are the tuned model's where all is held; the KL to each source is PEFT's own."""
    whole, cut, both = (tmp_path / name for name in ("whole", "cut", "both"))
    options = ("--rank", 64, "--rest", "all", "--embeddings")
    code, out, _ = call("extract", tiny_model, tuned, whole, *options, "--json")
    assert code == 0
    found = json.loads(out)["logits"]
    assert found["beside"][str(tuned)]["max_logit_difference"] < 1e-3
    assert found["beside"][str(tiny_model)]["kl"] > 1e-3
    assert found["adapter_vs_added"]["max_logit_difference"] <= found["tolerance"]
    recorded = read_provenance(whole).proof["logits"]
    assert set(recorded["beside"]) == {"./model", f"./{tuned.parent.name}/model"}
    assert [*recorded["beside"].values()] == [*found["beside"].values()]

    (tmp_path / "model").symlink_to(tiny_model)  # beside the adapter, as its record calls it
    code, out, _ = call("resize", whole, cut, "--energy", "0.99")
    assert code == 0
    assert f"from {whole}, " in out
    assert "from ./model: nats a position" in out
    assert "read back by PEFT, its logits are those of base + update within" in out
    proof = read_provenance(cut).proof["logits"]
    assert 0 < proof["beside"]["./whole"]["kl"] < proof["beside"]["./model"]["kl"]

    code, out, _ = call("combine", f"{cut}:1", f"{whole}:0", both, "-m", "task", "--json")
    assert code == 2  # saved modules can't be combined
    code, out, _ = call("combine", tuned, tiny_model, both, "--json")
    assert code == 0
    assert set(json.loads(out)["logits"]["beside"]) == {str(tuned), str(tiny_model)}

    code, out, _ = call("resize", whole, tmp_path / "quick", "--rank", 1, "--no-probe", "--json")
    assert code == 0
    assert "logits" not in json.loads(out)


def test_an_adapter_whose_logits_are_others_is_not_written(
    call, tiny_model, tuned, tmp_path, monkeypatch
):
    monkeypatch.setitem(probing.TOLERANCES, "float32", -1.0)
    out = tmp_path / "out"
    options = ("extract", tiny_model, tuned, out, "--rank", 2)
    code, _, err = call(*options)
    assert code == 2
    assert "nothing was written. --no-probe" in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []
    assert call(*options, "--no-probe")[0] == 0
    assert out.is_dir()


def test_a_base_that_is_not_here_is_said_and_not_fetched(
    call, tiny_model, tuned, tmp_path, monkeypatch
):
    import huggingface_hub

    def fetched(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "HfApi", fetched)
    adapter = tmp_path / "adapter"
    options = ("--rank", 2, "--rest", "none", "--no-probe")
    assert call("extract", tiny_model, tuned, adapter, *options)[0] == 0
    (adapter / "tunemath.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name, words in (
        ("org/name", "org/name is not on this machine"),
        (str(tmp_path / "gone"), "is neither a folder"),
        (None, "names no base"),
    ):
        config["base_model_name_or_path"] = name
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        code, out, _ = call("resize", adapter, tmp_path / f"out {words}", "--rank", 1)
        assert code == 0
        assert f"logits not compared: {'' if name else adapter}" in out
        assert words in out
        assert "--base gives the model to compare on" in out
    code, out, _ = call("resize", adapter, tmp_path / "out", "--rank", 1, "--base", tiny_model)
    assert code == 0
    assert f"from {tiny_model}: nats a position" in out


def test_a_base_that_has_changed_since_is_not_compared_on(call, tiny_model, tuned, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_model, base)
    options = ("--rank", 2, "--rest", "none", "--no-probe")
    assert call("extract", base, tuned, adapter, *options)[0] == 0
    shutil.copyfile(tuned / "model.safetensors", base / "model.safetensors")
    code, out, _ = call("resize", adapter, tmp_path / "one", "--rank", 1)
    assert code == 0
    assert f"logits not compared: {base} has other weights now" in out
    code, _, err = call("resize", adapter, tmp_path / "two", "--rank", 1, "--base", base)
    assert code == 2
    assert "was made from" in err
    code, out, _ = call("resize", adapter, tmp_path / "two", "--rank", 1, "--base", tiny_model)
    assert code == 0
    assert f"from {tiny_model}: nats" in out


def test_a_budget_is_kept_to(call, tiny_model, tuned, tmp_path):
    code, out, _ = call("extract", tiny_model, tuned, tmp_path / "out", "--parameters", "6K")
    assert code == 0
    assert "not held: model.embed_tokens.weight" in out
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert 5500 < sum(t.numel() for key, t in tensors.items() if "lora_" in key) <= 6000


def test_models_are_combined_and_load(call, tiny_model, tuned, tmp_path):
    out = tmp_path / "out"
    options = ("--base", tiny_model, "-m", "ties", "--density", "0.5")
    code, text, _ = call("combine", f"{tuned}:1", f"{tuned}:0.5", out, *options)
    assert code == 0
    assert "survived rounding" in text
    AutoTokenizer.from_pretrained(out)
    before, after, got = (load_file(f / "model.safetensors") for f in (tiny_model, tuned, out))
    for name, tensor in got.items():
        delta = after[name] - before[name]
        least = delta.abs().flatten().sort(descending=True).values[delta.numel() // 2 - 1]
        expected = before[name] + delta * (delta.abs() >= least)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size > 0


def test_another_base_is_refused(call, tiny_model, tuned, tmp_path):
    adapter, moved = tmp_path / "adapter", tmp_path / "moved"
    assert call("extract", tiny_model, tuned, adapter, "--rank", 2, "--rest", "none")[0] == 0
    shutil.copytree(tiny_model, moved)
    assert call("combine", f"{tuned}:1", moved / "x", "--base", tiny_model, "-m", "task")[0] == 0
    code, _, err = call("extract", tuned, moved / "x", tmp_path / "y", "--rank", 2)
    assert code == 2
    assert "has other weights" in err
    code, _, err = call("combine", adapter, adapter, tmp_path / "z", "--base", tuned)
    assert code == 2
    assert "was made from" in err
    assert not (tmp_path / "z").exists()


def test_bad_input_is_said(call, tiny_model, tuned, tmp_path):
    out = tmp_path / "out"
    for arguments, words in (
        (("extract", tiny_model, tuned, out), "no rank is given"),
        (("extract", tiny_model, tuned, out, "--rank", 2, "--energy", 1), "give one of them"),
        (("extract", tiny_model, tuned, out, "--rank", 2, "--rest", "most"), "none, small or all"),
        (("extract", tiny_model, tuned, out, "--parameters", "many"), "such as 5M"),
        (("extract", tiny_model, tiny_model, out, "--rank", 2), "differ in no matrix"),
        (("extract", tiny_model, tuned, out, "--rank", 2, "--dtype", "int8"), "bfloat16"),
        (("resize", tiny_model, out, "--rank", 2), "no adapter_config.json"),
        (("combine", f"{tuned}:half", out), "expected a number after the colon"),
        (("combine", tuned, out, "-m", "mean"), "expected one of linear"),
        (("combine", tuned, out, "-m", "task"), "give --base"),
        (("combine", tuned, out, "--rank", 2), "a rank is for adapters"),
        (("combine", tmp_path / "nowhere", out), "is neither a folder"),
    ):
        code, _, err = call(*arguments)
        assert (code, words in err) == (2, True), err
        assert not out.exists()
