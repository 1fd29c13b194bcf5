"""`tunemath count`: its keys, its sums, what it reads, what it refuses, and what it imports."""

from __future__ import annotations

import doctest
import json
import re
import sys
from pathlib import Path

import peft
import pytest
import transformers as t

from processes import output_of
from tunemath.cli import main

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
MIXTURE = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], **SIZES,
    "head_dim": 8, "num_local_experts": 4,
}  # fmt: skip
ROW = {"name", "kind", "shape", "parameters", "trainable"}
PAGE = Path(__file__).parents[2] / "docs/space/ledger.md"


@pytest.fixture
def call(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["count", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def product(call):
    def product(*arguments):
        code, out, err = call(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return product


def write(path: Path, values: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), "utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    return write(tmp_path / "config.json", LLAMA)


def adapter(tmp_path, peft_type="LORA", **values) -> Path:
    path = tmp_path / "adapter" / "adapter_config.json"
    return write(path, {"peft_type": peft_type, "task_type": "CAUSAL_LM", **values})


def llama(**values) -> t.LlamaForCausalLM:
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **values))


def counts(model, config) -> tuple[int, int]:
    return peft.get_peft_model(model, config).get_nb_trainable_parameters()


# --- the product


def test_totals_are_pefts_and_rows_sum_to_them(product, config):
    found = product(config, "--method", "lora", "--set", "rank=4", "--set", "targets=[q_proj]")
    live = counts(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert (found["trainable"], found["total"]) == live
    assert found["base"] == sum(p.numel() for p in llama().parameters())
    assert found["percent"] == pytest.approx(100 * live[0] / live[1])
    rows = found["by_module"]
    assert {frozenset(row) for row in rows} == {frozenset(ROW)}
    assert all(type(row[key]) is int for row in rows for key in ("parameters", "trainable"))
    assert sum(row["parameters"] for row in rows) == found["total"]
    assert sum(row["trainable"] for row in rows) == found["trainable"]
    (row,) = (row for row in rows if row["name"] == "model.layers.1.self_attn.q_proj")
    adapted = 4 * (32 + 32)
    assert row["kind"] == "linear"
    assert row["shape"] == [32, 32]
    assert (row["parameters"], row["trainable"]) == (32 * 32 + adapted, adapted)
    assert (found["method"], found["task_type"]) == ("lora", "CAUSAL_LM")
    assert found["unmatched_targets"] == found["findings"] == found["beside"] == []
    assert found["model_type"] == "llama"
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["stacks"] == [{"stack": "model.layers", "layers": 2, "reached": [0, 1]}]


def test_a_whole_model_is_trained_unless_a_method_is_named(product, config):
    found = product(config)
    assert found["trainable"] == found["total"] == found["base"]
    assert found["percent"] == 100


def test_for_people_it_is_a_table(call, config):
    code, out, err = call(config, "--method", "lora", "--set", "rank=4")
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM, lora:" in out
    assert "model.layers.*" in out
    assert "q_proj" in out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


def test_a_prompt_says_what_it_reaches_and_not_what_it_does_not(call, config):
    _, out, _ = call(config, "--method", "prompt")
    assert "Reaches the input" in out
    assert " 0 of " not in out
    _, out, _ = call(config, "--method", "prefix")
    assert "Reaches the keys and values of every layer" in out
    assert "2 of 2" in out
    assert " 0 of " not in out


# --- where the model comes from


def test_every_form_of_a_model_gives_the_same_count(product, tmp_path):
    live, lora = llama(), ("--method", "lora", "--set", "rank=4")
    live.save_pretrained(tmp_path / "one")
    live.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    places = (
        tmp_path / "one",
        tmp_path / "one/config.json",
        tmp_path / "one/model.safetensors",
        tmp_path / "many",
        tmp_path / "many/model.safetensors.index.json",
    )
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    wanted = counts(live, config)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for place in places:
        found = product(place, *lora)
        assert (found["trainable"], found["total"]) == wanted, place
    # Without its configuration a file of weights has names and shapes alone.
    (tmp_path / "one/config.json").unlink()
    found = product(tmp_path / "one/model.safetensors", *lora)
    assert (found["trainable"], found["total"]) == wanted


def test_a_guess_and_an_index_that_does_not_fit_are_notes(call, product, tmp_path):
    folder = tmp_path / "model"
    llama().save_pretrained(folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text("utf-8"))
    index["metadata"]["total_size"] += 4
    write(path, index)
    assert [note for note in product(folder)["notes"] if "total_size" in note]
    (folder / "config.json").unlink()
    guess, size = product(folder)["notes"][:2]
    assert "names and shapes alone, and may be otherwise: there is no config.json" in guess
    assert "metadata.total_size" in size
    _, out, _ = call(folder)
    assert " ".join(f"Note: {guess}".split()) in " ".join(out.split())


def test_a_gguf_file_is_a_model_too(product, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "space/blueprint"))
    from gguf_files import model, write_gguf

    found = product(write_gguf("llama", tmp_path / "model.gguf"))
    assert found["total"] == sum(p.numel() for p in model("llama").parameters())


def test_the_task_chooses_the_class_and_trains_its_head(product, config):
    found = product(config, "--task", "SEQ_CLS", "--method", "lora", "--set", "rank=4")
    model = t.LlamaForSequenceClassification(t.LlamaConfig(**SIZES))
    wanted = peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    assert (found["trainable"], found["total"]) == counts(model, wanted)
    assert (found["architecture"], found["task_type"]) == (
        "LlamaForSequenceClassification",
        "SEQ_CLS",
    )
    write(config, {**LLAMA, "architectures": ["LlamaForSequenceClassification"]})
    again = product(config, "--method", "lora", "--set", "rank=4")
    assert again == found


# --- PEFT's own configuration


def test_pefts_own_configuration_is_read_as_it_is(product, config, tmp_path):
    wanted = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wanted.save_pretrained(tmp_path / "adapter")
    for place in (tmp_path / "adapter", tmp_path / "adapter/adapter_config.json"):
        found = product(config, "--peft-config", place)
        assert (found["trainable"], found["total"]) == counts(llama(), wanted)
        assert (found["peft_type"], found["unknown_keys"]) == ("LORA", [])
        assert found["notes"] == []
    # As PEFT's save_pretrained leaves it beside an adapter's weights.
    values = json.loads((tmp_path / "adapter/adapter_config.json").read_text("utf-8"))
    write(tmp_path / "adapter/adapter_config.json", {**values, "inference_mode": True})
    again = product(config, "--peft-config", tmp_path / "adapter")
    assert (again["trainable"], again["total"]) == (found["trainable"], found["total"])
    (note,) = again["notes"]
    frozen = counts(llama(), peft.LoraConfig.from_pretrained(tmp_path / "adapter"))
    assert frozen == (0, found["total"])
    assert note.endswith(f"PEFT freezes {found['trainable']:,} of these parameters")


def test_unknown_keys_are_named(call, config, tmp_path):
    path = adapter(tmp_path, target_modules=["q_proj"], lora_alhpa=3)
    code, out, err = call(config, "--peft-config", path, "--json")
    assert code == 0
    assert json.loads(out)["unknown_keys"] == ["lora_alhpa"]
    assert err == f"warning: {path} has lora_alhpa, which PEFT does not know\n"


@pytest.mark.parametrize("command", ["count", "memory"])
def test_an_unknown_key_is_cleaned_and_cut(capsys, config, tmp_path, command):
    path = adapter(tmp_path, target_modules=["q_proj"], **{"\x1b[31m" + "x" * 3000: 1})
    with pytest.raises(SystemExit):
        main([command, str(config), "--peft-config", str(path)])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err) < 400


@pytest.mark.parametrize(
    ("values", "field", "near"),
    [
        ({"target_modules": ["q_proj", "v_prj"]}, "target_modules", "v_proj"),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["experts.down_prj"]},
            "target_parameters",
            "experts.down_proj",
        ),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_hed"]},
            "modules_to_save",
            "lm_head",
        ),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_with_those_near_it(
    call, tmp_path, values, field, near
):
    model = write(tmp_path / "config.json", MIXTURE)
    path = adapter(tmp_path, **values)
    code, out, err = call(model, "--peft-config", path, "--json")
    assert code == 2
    wrong = values[field][-1]
    assert json.loads(out)["unmatched_targets"] == [wrong]
    assert err.startswith(
        f"error: {field} has {wrong!r}, which matches nothing in this model; near"
    )
    assert near in err
    assert err.endswith("correct it or leave it out\n")


def test_settings_without_effect_are_findings(call, config, tmp_path):
    path = adapter(
        tmp_path, target_modules=["q_proj"], rank_pattern={"k_prj": 4}, layers_to_transform=[1, 9]
    )
    code, out, err = call(config, "--peft-config", path, "--json")
    assert (code, err) == (0, "")
    layers, ranks = json.loads(out)["findings"]
    assert layers.startswith("layers_to_transform has 9, and the model's layers are 0 to 1")
    assert ranks.startswith("rank_pattern has 'k_prj', which matches nothing that is adapted")
    _, out, _ = call(config, "--peft-config", path)
    assert "! rank_pattern has 'k_prj'" in " ".join(out.split())


def test_a_contracts_target_that_matches_nothing_is_an_error(call, config):
    code, out, err = call(config, "--method", "lora", "--set", "targets=[q_prj]")
    assert (code, out) == (2, "")
    assert "'q_prj' matches no layer" in err
    assert "q_proj" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "lora"), "--method has no meaning beside --peft-config"),
        (("-m", "full"), "--method has no meaning beside --peft-config"),
        (("--set", "rank=4"), "--set has no meaning beside --peft-config"),
        (("--task", "SEQ_CLS"), "--task is SEQ_CLS, and {path} has task_type CAUSAL_LM"),
    ],
)
def test_options_that_would_be_ignored_are_refused(call, config, tmp_path, options, words):
    path = adapter(tmp_path, target_modules=["q_proj"])
    code, out, err = call(config, "--peft-config", path, *options)
    assert (code, out) == (2, "")
    assert words.format(path=path) in err


def test_a_task_that_peft_does_not_have_is_refused(call, config):
    code, out, err = call(config, "--task", "CAUSAL")
    assert (code, out) == (2, "")
    assert "task_type 'CAUSAL' is none of PEFT's; known: CAUSAL_LM, " in err


def test_the_same_task_said_twice_is_one(product, config, tmp_path):
    path = adapter(tmp_path, target_modules=["q_proj"])
    found = product(config, "--peft-config", path, "--task", "CAUSAL_LM")
    assert found == product(config, "--peft-config", path)


# --- what was meant


HYBRID = ["linear_attention", "full_attention", "full_attention", "linear_attention"]


@pytest.fixture
def hybrid(tmp_path):
    return write(
        tmp_path / "hybrid/config.json",
        {
            "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], **SIZES,
            "num_hidden_layers": 4, "layer_types": HYBRID, "head_dim": 8,
            "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    "more", [{}, {"layers_to_transform": []}], ids=["all layers", "an empty list"]
)
def test_layers_that_are_passed_over_are_a_finding(product, hybrid, tmp_path, more):
    path = adapter(tmp_path, target_modules=["q_proj"], **more)
    (finding,) = product(hybrid, "--peft-config", path)["findings"]
    assert finding.startswith("model.layers: 2 of 4 layers are reached; the others have in_proj")
    assert "name them in target_modules too" in finding


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["out_proj"], "layers_to_transform": 0},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.2.self_attn.q_proj"]},
        {"target_modules": r".*\.q_proj"},
        {"target_modules": ["model.layers.1.self_attn.q_proj"]},
    ],
)
def test_layers_that_are_left_out_on_purpose_are_none(product, hybrid, tmp_path, values):
    found = product(hybrid, "--peft-config", adapter(tmp_path, **values))
    assert found["findings"] == []
    assert 0 < len(found["stacks"][0]["reached"]) < 4


def test_fused_experts_that_are_passed_over_are_a_finding(product, tmp_path):
    model = write(tmp_path / "config.json", MIXTURE)
    (finding,) = product(model, "--method", "lora")["findings"]
    assert "2 blocks of experts" in finding
    assert "--peft-config" in finding
    path = adapter(tmp_path, target_modules="all-linear")
    (finding,) = product(model, "--peft-config", path)["findings"]
    assert "name in target_parameters experts.gate_up_proj, experts.down_proj" in finding
    named = ["experts.gate_up_proj", "experts.down_proj"]
    path = adapter(tmp_path, target_modules="all-linear", target_parameters=named)
    assert product(model, "--peft-config", path)["findings"] == []


# --- help, imports, the page


def test_help_has_examples(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    flat = " ".join(out.replace("│", " ").split())
    assert "Example: tunemath count path/to/model --method lora --set rank=16" in flat
    assert "tunemath count config.json --peft-config" in flat


RUN = """
import json, sys
from tunemath.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
"""
LIBRARY = """
import json, sys
from tunemath.space import coverage_of, read_blueprint
from tunemath.space.peft import AdapterConfig, peft_ledger
blueprint, config = read_blueprint(sys.argv[1]), AdapterConfig.read(sys.argv[2])
ledger = peft_ledger(blueprint, config)
assert ledger.trainable and coverage_of(blueprint, ledger.change)
"""


def loaded(code: str, *arguments) -> set[str]:
    """Return the heavy libraries that a process of its own has loaded at the end."""
    names = ("torch", "transformers", "peft", "numpy", "pydantic")
    report = f"\nprint(json.dumps([name for name in {names} if name in sys.modules]))"
    out = output_of([sys.executable, "-c", code + report, *arguments])
    return set(json.loads(out.splitlines()[-1]))


def test_counting_a_configuration_loads_no_training_library(config, tmp_path):
    path = adapter(tmp_path, target_modules="all-linear")
    assert loaded(LIBRARY, config, path) == set()
    # Typer itself loads pydantic to read the options.
    assert loaded(RUN, "count", config, "--peft-config", path, "--json") <= {"pydantic"}
    assert loaded(RUN, "count", config, "--method", "lora") <= {"pydantic"}


def test_the_test_above_can_fail(tmp_path):
    config = write(tmp_path / "config.json", {"model_type": "xglm", **XGLM})
    assert {"torch", "transformers"} <= loaded(RUN, "count", config, "--json")


XGLM = {
    "architectures": ["XGLMForCausalLM"], "vocab_size": 64, "d_model": 32, "ffn_dim": 48,
    "num_layers": 1, "attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip


def test_the_page_has_every_tuner_type():
    _, _, section = PAGE.read_text("utf-8").partition("\n## PEFT's tuner types\n")
    types = re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert sorted(types) == sorted(kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)


def test_the_pages_example_is_what_is_printed(call, tmp_path, monkeypatch):
    """The model's configuration and the command's output, as the page has them."""
    blocks = PAGE.read_text("utf-8").split("```")[1::2]
    config = next(block for block in blocks if block.startswith("json\n{"))
    write(tmp_path / "config.json", json.loads(config.removeprefix("json\n")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shown = [block.strip("\n") for block in blocks if block.startswith("\n$ tunemath count")]
    assert shown
    for block in shown:
        command, _, wanted = block.partition("\n")
        _, out, _ = call(*command.removeprefix("$ tunemath count ").split())
        assert lines(out) == lines(wanted)


def test_the_pages_python_is_right():
    assert doctest.testfile(str(PAGE), module_relative=False) == (0, 6)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
