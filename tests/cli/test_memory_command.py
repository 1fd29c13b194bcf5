"""`tunemath memory`: what it prints, what fits, what it refuses, and what it imports."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from processes import output_of
from tunemath.cli import main
from tunemath.space import read_blueprint

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64,
         "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
GIB = 2**30


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), "utf-8")
    return path


@pytest.fixture
def call(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["memory", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def product(call, *arguments):
    code, out, _ = call(*arguments, "--json")
    return code, json.loads(out)


def terms(found):
    return {term["name"]: term for term in found["terms"]}


def test_terms_of_an_8b_model_by_hand(call, config):
    code, found = product(call, config, "--set", "rank=16", "--device", "cuda", "--batch", 1)
    assert code == 0
    base, lora = 8_030_261_248, 41_943_040  # published counts, and r (d_in + d_out) summed
    sizes = {name: term["bytes"] for name, term in terms(found).items()}
    assert sizes["base weights"] == 2 * base
    assert sizes["added weights"] == sizes["gradients"] == 4 * lora
    assert sizes["optimizer state"] == 8 * lora + 4 * 2 * 7 * 32
    assert found["peak_bytes"] == sum(term["at_peak"] for term in found["terms"])
    assert found["trainable"] == lora
    assert found["activations"] == "closed form"


def test_four_bits_take_what_their_blocks_take(call, config):
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    others = 8_030_261_248 - linears
    asked = (config, "--quantise", "nf4-double", "--device", "cuda")
    # PEFT's prepare_model_for_kbit_training casts all that is not quantised to float32.
    for precision, width in (("autocast", 4), ("plain", 2), ("pure", 2)):
        _, found = product(call, *asked, "--precision", precision)
        low = width * others + linears / 2 + linears / 64 + linears / 4096
        assert low < terms(found)["base weights"]["bytes"] < low + 7 * 32 * 1200
        assert any("prepare_model_for_kbit" in note for note in found["notes"]) == (width == 4)


def test_what_does_not_fit_says_what_would(call, config):
    common = (config, "--set", "rank=16", "--length", 2048, "--batch", 16, "--device", "cuda")
    code, found = product(call, *common, "--fit", "24GiB")
    assert code == 1
    assert found["fits"] is False
    assert found["largest"]["micro_batch"] == 0
    changes = {change["set"]: change for change in found["changes"]}
    assert changes["--checkpointing"]["peak_bytes"] < found["peak_bytes"]
    assert "% more operations" in changes["--checkpointing"]["cost"]
    taken = [part for change in found["cheapest"] for part in change["set"].split()]
    code, again = product(call, *common, *taken, "--fit", "24GiB")
    assert code == 0
    assert again["fits"] is True
    assert again["peak_bytes"] <= 24 * GIB


def test_the_largest_settings_fit_and_the_next_do_not(call, config):
    common = [config, "--device", "cuda", "--fit", "48GiB", "--checkpointing", "--length", 1024]
    _, found = product(call, *common, "--batch", 1)
    most = found["largest"]
    for option, key, step in (("--batch", "micro_batch", 1), ("--length", "tokens", 8)):
        other = [] if option == "--batch" else ["--batch", 1]
        for more, code in ((0, 0), (step, 1)):
            assert product(call, *common, *other, option, most[key] + more)[0] == code
    assert product(call, *common, "--batch", 1, "--set", f"rank={most['rank']}")[0] == 0


def test_the_largest_length_is_not_beyond_the_models_positions(call, config):
    _, found = product(call, config, "--device", "cuda", "--fit", "9000GiB", "--batch", 1)
    assert found["largest"]["tokens"] == LLAMA["max_position_embeddings"]


def test_the_table_names_terms_and_changes(call, config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = call(config, "--method", "full", "--device", "cuda", "--fit", "80GiB")
    assert code == 1
    for words in ("optimizer state", "exact", "does not fit in 80.00 GiB", "The cheapest way",
                  "--checkpointing", "LoRA of rank 8", "highest in the"):  # fmt: skip
        assert words in out
    code, out, _ = call(config, "--device", "cuda", "--batch", 1)
    assert code == 0
    assert "fit" not in out


def test_dpo_pays_for_two_rows_and_a_reference(call, config):
    sft = product(call, config, "--device", "cuda", "--batch", 2)[1]
    dpo = product(call, config, "--device", "cuda", "--batch", 1, "--objective", "dpo")[1]
    assert sft["rows"] == dpo["rows"] == 2
    assert dpo["step_flops"] > 1.3 * sft["step_flops"]
    copied = product(call, config, "--device", "cuda", "--objective", "dpo", "--reference", "copy")[
        1
    ]
    assert terms(copied)["reference"]["bytes"] == 2 * 8_030_261_248
    full = product(call, config, "--method", "full", "--objective", "dpo")[1]
    assert terms(full)["reference"]["bytes"] == 4 * 8_030_261_248


def test_only_the_trained_tensors_of_the_base_are_float32(call, config):
    base, norms = 8_030_261_248, 65 * 4096
    _, found = product(call, config, "--method", "layernorm", "--device", "cuda")
    assert terms(found)["base weights"]["bytes"] == 2 * (base - norms) + 4 * norms
    assert terms(found)["gradients"]["bytes"] == 4 * norms
    _, found = product(call, config, "--method", "full", "--device", "cuda")
    assert terms(found)["base weights"]["bytes"] == 4 * base


def test_pure_half_precision_holds_all_in_it(call, config):
    base = 8_030_261_248
    asked = (config, "--method", "full", "--device", "cuda", "--precision", "pure", "--batch", 1)
    _, found = product(call, *asked)
    sizes = {name: term["bytes"] for name, term in terms(found).items()}
    assert sizes["base weights"] == sizes["gradients"] == 2 * base
    assert sizes["optimizer state"] == 4 * base + 4 * (9 * 32 + 3)  # and each tensor's counter
    assert found["dtype"] == "bfloat16"
    assert found["saved_bytes"] == 2 * base


def test_a_prompt_has_logits_where_all_are_held(call, config):
    found = [
        terms(
            product(
                call, config, "--method", "prompt", "--set", f"length={length}", "--logits", "all",
                "--device", "cuda", "--batch", 4, "--length", 256,
            )[1]
        )["output layer"]["bytes"]
        for length in (16, 200)
    ]  # fmt: skip
    # The logits in bfloat16; their log-softmax and the gradients of both in float32.
    assert found == [(2 + 3 * 4) * 4 * (256 + length) * 128_256 for length in (16, 200)]


SMALLER = {**LLAMA, "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 6,
           "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


@pytest.mark.parametrize("precision", ["autocast", "plain", "pure"])
def test_a_trace_and_the_closed_form_agree_in_bfloat16(call, tmp_path, monkeypatch, precision):
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALLER), "utf-8")
    asked = (path, "--dtype", "bfloat16", "--precision", precision, "--length", 256, "--device",
             "cuda", "--batch", 4)  # fmt: skip
    closed, traced = (product(call, *asked, *more)[1] for more in ((), ("--trace",)))
    assert (closed["activations"], traced["activations"]) == ("closed form", "traced")
    found, other = (terms(one)["activations"]["bytes"] for one in (closed, traced))
    assert found == pytest.approx(other, rel=0.05)
    assert closed["peak_bytes"] == pytest.approx(traced["peak_bytes"], rel=0.05)


def test_why_a_trace_failed_is_said(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    path, adapter = tmp_path / "config.json", tmp_path / "adapter_config.json"
    path.write_text(json.dumps(SMALLER), "utf-8")
    adapter.write_text(
        json.dumps({"peft_type": "SHIRA", "task_type": "CAUSAL_LM", "r": 4,
                    "target_modules": ["q_proj"]}),
        "utf-8",
    )  # fmt: skip
    _, found = product(call, path, "--peft-config", adapter)
    assert found["activations"] == "rough"
    assert "can't be traced" in found["why_rough"]
    assert any(found["why_rough"] in note for note in found["notes"])
    _, out, _ = call(path, "--peft-config", adapter)
    assert "the activations are a guess" in " ".join(out.split())


def test_a_peft_configuration_is_foretold_as_the_same_method_is(call, config, tmp_path):
    adapter = tmp_path / "adapter_config.json"
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32,
              "target_modules": ["q_proj", "v_proj"]}  # fmt: skip
    adapter.write_text(json.dumps(values), "utf-8")
    same = ("--set", "rank=16", "--set", "targets=[q_proj,v_proj]")
    ours = product(call, config, *same, "--device", "cuda", "--fit", "80GiB")[1]
    theirs = product(call, config, "--peft-config", adapter, "--device", "cuda", "--fit", "80GiB")[
        1
    ]
    assert theirs["method"] == "LORA"
    for key in ("terms", "peak_bytes", "trainable", "step_flops", "largest"):
        assert theirs[key] == ours[key]
    adapter.write_text(json.dumps({**values, "target_modules": ["q_proj", "q_porj"]}), "utf-8")
    code, out, err = call(config, "--peft-config", adapter)
    assert (code, out) == (2, "")
    assert "'q_porj', which matches nothing" in " ".join(err.split())


def test_copies_of_modules_stay_in_the_bases_dtype(call, config, tmp_path, monkeypatch):
    # PEFT casts its tuners' layers to float32, and no module that is saved whole.
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    path, adapter = tmp_path / "config.json", tmp_path / "adapter_config.json"
    path.write_text(json.dumps(SMALLER), "utf-8")
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"],
              "modules_to_save": ["lm_head"]}  # fmt: skip
    adapter.write_text(json.dumps(values), "utf-8")
    asked = (path, "--peft-config", adapter, "--dtype", "bfloat16", "--length", 64, "--batch", 1)
    _, found = product(call, *asked)
    head, lora = 256 * 512, 6 * 4 * (256 + 8 * 32)
    sizes = {name: term["bytes"] for name, term in terms(found).items()}
    assert found["activations"] == "traced"
    assert sizes["added weights"] == sizes["gradients"] == 4 * lora + 2 * head
    assert sizes["optimizer state"] == 8 * lora + 4 * head + 4 * (12 + 1)


# What PEFT publishes of training meta-llama/Llama-3.2-3B on a GPU: the most that torch reserved,
# and what was trained; bfloat16 without autocast, 4 rows of up to 768 tokens, all logits held.
# https://github.com/huggingface/peft, method_comparison/MetaMathQA/results, of July 2026
LLAMA_3B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072,
    "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
QV = {"target_modules": ["q_proj", "v_proj"]}
MLP = {"target_modules": ["up_proj", "gate_proj", "down_proj"]}
PUBLISHED = [
    ({"peft_type": "LORA", "r": 32, **QV}, 9_175_040, 22_292_725_760),
    ({"peft_type": "LORA", "r": 64, "use_rslora": True, **QV}, 18_350_080, 22_561_161_216),
    ({"peft_type": "LORA", "r": 32, "use_dora": True, **QV}, 9_289_728, 24_532_484_096),
    ({"peft_type": "LORA", "r": 10, **MLP}, 9_461_760, 24_698_159_104),
    ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 200}, 614_400, 24_394_072_064),
    ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 200}, 11_468_800, 21_952_987_136),
    (None, 3_212_749_824, 38_868_615_168),
]


@pytest.mark.parametrize(("adapter", "trained", "reserved"), PUBLISHED)
def test_peaks_that_others_measured_on_a_gpu(call, tmp_path, adapter, trained, reserved):
    path, file = tmp_path / "config.json", tmp_path / "adapter_config.json"
    path.write_text(json.dumps(LLAMA_3B), "utf-8")
    how = ["--method", "full", "--precision", "pure"]
    if adapter:
        file.write_text(json.dumps({"task_type": "CAUSAL_LM", **adapter}), "utf-8")
        how = ["--peft-config", file, "--precision", "plain"]
    asked = ("--length", 768, "--batch", 4, "--masked", "--logits", "all", "--device", "cuda")
    _, found = product(call, path, *how, *asked)
    assert (found["trainable"], found["activations"]) == (trained, "closed form")
    context = terms(found)["device context"]["bytes"]  # which torch does not count
    assert found["peak_bytes"] - context == pytest.approx(reserved, rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "adamww"], "--optimizer adamww: expected one of adamw, adamw_8bit"),
        (["--quantise", "int3"], "--quantise int3: expected one of nf4"),
        (["--reference", "copy"], "has no meaning for --objective sft"),
        (["--batch", "6", "--micro-batch", "4"], "--micro-batch 4 does not divide --batch 6"),
        (["--supervised", "9", "--length", "8"], "--supervised 9 is more than --length 8"),
        (["--precision", "bf16"], "--precision bf16: expected one of autocast, plain, pure"),
        (["--precision", "pure", "--dtype", "float32"], "has no meaning for --dtype float32"),
        (["--precision", "plain", "--method", "full"], "has no meaning for --method full"),
        (["--peft-config", "x.json", "--set", "rank=2"], "no meaning beside --peft-config"),
        (["--peft-config", "none.json"], "none.json does not exist"),
        (["--fit", "24 gigs"], "'24 gigs' is no size; expected one such as 24GiB"),
        (["--method", "lorra"], "did you mean lora?"),
        (["--set", "targets=[q_porj]"], "'q_porj' matches no layer"),
    ],
)
def test_bad_input_is_said_in_a_line(call, config, arguments, words):
    code, out, err = call(config, *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_a_closed_form_needs_no_torch(config):
    code = (
        "import sys\n"
        "from tunemath.cli import main\n"
        "try:\n"
        f"    main(['memory', {str(config)!r}, '--fit', '80GiB', '--json'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'torch was imported'\n"
    )
    output_of([sys.executable, "-c", code])


def test_a_family_without_a_closed_form_is_traced_once(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2,
                    "n_embd": 64, "n_head": 4, "vocab_size": 96, "n_positions": 128}),
        "utf-8",
    )  # fmt: skip
    arguments = (path, "--method", "full", "--length", 64, "--fit", "1GiB")
    code, found = product(call, *arguments)
    assert code == 0
    assert found["activations"] == "traced"
    assert found["largest"]["micro_batch"] > 8
    assert "rank" not in found["largest"]
    assert product(call, *arguments)[1] == found


def test_an_index_that_does_not_fit_its_files_is_noted(call, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **SMALL}), "utf-8")
    blueprint = read_blueprint(tmp_path / "config.json")
    tensors = {name: np.zeros(shape, np.float16) for name, shape in blueprint.tensors()}
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    index = {
        "metadata": {"total_size": 12},
        "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors"),
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    _, found = product(call, tmp_path, "--method", "lora")
    (note,) = found["notes"]
    assert "total_size" in note
    _, out, _ = call(tmp_path, "--method", "lora")
    assert "Note: " in out
