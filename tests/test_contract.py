"""The contract's file: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tunemath.commented import commented_contract
from tunemath.contract import FineTune, ModelChoice, contract_schema
from tunemath.elsewhere import FIELDS, NOT_HERE
from tunemath.errors import ContractError, ModelError
from tunemath.space.record import METHODS

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml"))
SMALL = "mask: {train: train.jsonl}\nevaluation: {task: test.jsonl}\n"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ContractError) as caught:
        FineTune.load(path, overrides)
    return str(caught.value)


def test_the_smallest_contract_has_every_default(write):
    contract = FineTune.load(write(SMALL))
    assert contract.name == "job"
    assert contract.model.id == "smollm2-135m"
    assert (contract.space.rank, contract.space.alpha, contract.space.scale) == (8, 16.0, 2.0)
    assert (contract.objective.kind, contract.objective.beta) == ("sft", None)
    assert contract.evaluation.weights.model_dump() == {"task": 0.7, "retention": 0.3}
    assert contract.seed == 0


def test_paths_are_relative_to_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    contract = FineTune.load(write("mask: {train: data/a.jsonl}\nevaluation: {task: ../b.jsonl}"))
    assert contract.mask.train == tmp_path / "data/a.jsonl"
    assert contract.evaluation.task == tmp_path.parent / "b.jsonl"


def test_paths_of_overrides_are_relative_to_where_one_stands(write, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    contract = FineTune.load(write(SMALL), ["mask.train=mine.jsonl"])
    assert contract.mask.train == tmp_path / "here/mine.jsonl"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_resolved_contract_reads_back_to_itself(path, tmp_path):
    contract = FineTune.load(path)
    (tmp_path / "again.yaml").write_text(contract.to_yaml(), encoding="utf-8")
    assert FineTune.load(tmp_path / "again.yaml") == contract
    assert json.loads(json.dumps(contract.resolved())) == contract.resolved()


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("space.rank=16", lambda c: c.space.rank == 16),
        ("space.targets=[q_proj, v_proj]", lambda c: c.space.targets == ["q_proj", "v_proj"]),
        ("budget.learning_rate=5e-4", lambda c: c.budget.learning_rate == 5e-4),
        ("space.rslora=true", lambda c: c.space.scale == 16 / 8**0.5),
        ("model=org/name", lambda c: c.model.id == "org/name"),
        ("model.revision=v2", lambda c: (c.model.id, c.model.revision) == ("smollm2-135m", "v2")),
        ("evaluation.retention=null", lambda c: c.evaluation.retention is None),
        ("evaluation.weights.task=0.7", lambda c: c.evaluation.weights.task == 0.7),
        ("name=a=b", None),
        ("seed=3", lambda c: c.seed == 3),
        ("objective.kind=dpo", lambda c: c.objective.beta == 0.1),
        ("space={method: adapter, style: parallel}", lambda c: c.space.scale == 4.0),
        ("space.method=dora", lambda c: (c.space.method, c.space.rank) == ("dora", 8)),
        ("space.method=full", lambda c: c.space.model_dump() == {"method": "full"}),
    ],
)
def test_overrides(write, override, read):
    path = write(SMALL)
    if read is None:
        assert "name" in refused(path, override)
    else:
        assert read(FineTune.load(path, [override]))


def test_later_overrides_win(write):
    assert FineTune.load(write(SMALL), ["space.rank=2", "space.rank=3"]).space.rank == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("space.rank", "expected section.key=value, as in space.rank=16"),
        ("=3", "expected section.key=value"),
        ("space..rank=3", "expected section.key=value"),
        ("seed.x=3", "seed is a value, not a section"),
        ("space.rnk=3", "unknown key space.rnk; did you mean rank?"),
        ("space.rank=many", "space.rank"),
        ("space.rank=[1", "space.rank"),
    ],
)
def test_overrides_that_mean_nothing(write, override, words):
    assert words in refused(write(SMALL + "seed: 1\n"), override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("- a\n- b\n", "got list"),
        ("mask: {train: a\n", ":2: not valid YAML"),
        ("a: 1\nb: c: 2\nd: 3\n", ":2: not valid YAML"),
        (SMALL + "seed: 1\nseed: 2\n", ":4: not valid YAML: the key 'seed' is given twice"),
        ("mask: {train: a, train: b}\n", ":1: not valid YAML: the key 'train' is given twice"),
        ("mask: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("\tmask: 1\n", ":1: not valid YAML"),
        ("evaluation: {task: test.jsonl}\n", "mask is missing"),
        ("mask: {}\nevaluation: {task: t}\n", "mask.train is missing; it has no default"),
        (SMALL + "buget: {epochs: 1}\n", "unknown key buget; did you mean budget?"),
        (SMALL + "space: {rnak: 8}\n", "unknown key space.rnak; did you mean rank?"),
        (SMALL + "space: {zzz: 8}\n", "unknown key space.zzz; valid: method, rank, alpha"),
        (SMALL + "model: {idd: x}\n", "unknown key model.idd; did you mean id?"),
        (SMALL + "space: {rank: two}\n", "space.rank: Input should be a valid integer"),
        (SMALL + "space: {rank: 0}\n", "space.rank: Input should be greater than or equal to 1"),
        (SMALL + "space: {rank: 1.5}\n", "space.rank"),
        (SMALL + "space: {targets: q_proj}\n", "space.targets"),
        (SMALL + "space: {method: lorra}\n", "space: method 'lorra' is not known; did you mean l"),
        (
            SMALL + "space: {method: prefix, rank: 8}\n",
            "space.rank has no meaning for method: prefix; valid: length, projection, hidden, init",
        ),
        (SMALL + "space: {method: adapter, stile: x}\n", "unknown key space.stile; did you mean"),
        (SMALL + "space: {method: adapter, bottleneck: 0}\n", "space.bottleneck: Input should be"),
        (SMALL + "space: {method: adapter, kronecker: 2}\n", "space: kronecker has no meaning for"),
        (SMALL + "space: full\n", "space: "),
        (SMALL + "budget: {learning_rate: -1}\n", "budget.learning_rate"),
        (SMALL + "budget: {schedule: sine}\n", "budget.schedule"),
        (SMALL + "seed: -1\n", "seed"),
        (SMALL + "name: ../escape\n", "name"),
        (SMALL + "name: a/b\n", "name"),
        (
            SMALL + "budget: {batch_size: 16, micro_batch_size: 5}\n",
            "budget: micro_batch_size 5 does not divide batch_size 16; choose a divisor",
        ),
        (SMALL + "objective: {kind: sft, beta: 0.1}\n", "objective: beta has no meaning"),
        (
            "mask: {train: a}\nevaluation: {task: a}\n",
            "evaluation.task is the training file",
        ),
        (
            "mask: {train: a}\nevaluation: {task: b, weights: {task: 0.9}}\n",
            "evaluation.weights: task + retention is 1.2; it must be 1",
        ),
    ],
)
def test_refusals(write, text, words):
    path = write(text)
    message = refused(path)
    assert words in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_several_problems_are_all_named(write):
    message = refused(write(SMALL + "space: {rank: 0, alpha: -1}\nseeed: 1\n"))
    assert all(word in message for word in ("space.rank", "space.alpha", "seeed"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("list=1", "unknown key list; valid: name"),
        ("str=1", "unknown key str; "),
        ("space={str: 1}", "unknown key space.str; valid: method"),
        ("budget={list: 1}", "unknown key budget.list; valid: epochs"),
        ("budget={literal: 1}", "unknown key budget.literal; "),
    ],
)
def test_a_key_that_is_called_as_a_kind_of_value_is_named(write, override, words):
    with pytest.raises(ContractError) as told:
        FineTune.load(write(SMALL), [override])
    assert words in str(told.value)


def test_relative_paths_are_whole_wherever_they_come_from(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(SMALL)
    contract = FineTune.load(path, ["mask={train: other.jsonl}"])
    assert contract.mask.train == tmp_path / "other.jsonl"
    parsed = FineTune.parse({**contract.resolved(), "mask": {"train": "other.jsonl"}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/contract.yaml").write_text(parsed.to_yaml(), "utf-8")
    assert FineTune.load(tmp_path / "run/contract.yaml") == parsed == contract


@pytest.mark.parametrize("name", ["", "a" * 5000, "caf\udce9"])
def test_what_no_model_is_called(name):
    with pytest.raises(ModelError, match="is no model's name"):
        ModelChoice.named(name)


def test_files_that_cannot_be_read(tmp_path):
    assert "does not exist; `tunemath init" in refused(tmp_path / "none.yaml")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refused(tmp_path / "binary.yaml")


def test_a_name_is_made_from_the_file_when_none_is_given(tmp_path):
    path = tmp_path / "my job (2).yaml"
    path.write_text(SMALL)
    assert FineTune.load(path).name == "my-job--2-"


def test_records_are_frozen(write):
    contract = FineTune.load(write(SMALL))
    with pytest.raises(ValueError, match="frozen"):
        contract.space.rank = 3  # pyright: ignore[reportAttributeAccessIssue]


# --- the schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = contract_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_shipped_contracts_are_valid(path, validator):
    validator.validate(yaml.safe_load(path.read_text("utf-8")))
    validator.validate(FineTune.load(path).resolved())


BROKEN: list[dict[str, Any]] = [
    {"buget": {}},
    {"space": {"rnk": 1}},
    {"space": {"rank": 0}},
    {"space": {"method": "full", "rank": 8}},
    {"space": {"method": "none"}},
    {"space": {"length": 3}},
    {"model": {"idd": "x"}},
    {"model": 3},
    {"objective": {"kind": "ppo"}},
    {"mask": {}},
]


@pytest.mark.parametrize("broken", BROKEN)
def test_the_schema_refuses_what_the_contract_refuses(broken, validator, write):
    values = yaml.safe_load(SMALL) | broken
    assert not validator.is_valid(values)
    refused(write(yaml.safe_dump(values)))


def test_every_field_of_the_schema_says_what_it_is():
    schema = contract_schema()
    records = [schema, *schema["$defs"].values()]
    for record in records:
        for name, field in record["properties"].items():
            assert field.get("description"), f"{record['title']}.{name}"


# --- the commented contract


def fields_of(record: Any, prefix: str = "") -> list[str]:
    """Every key of a resolved contract, by section."""
    if not isinstance(record, dict) or prefix.count(".") == 2:
        return []
    return [
        name
        for key, value in record.items()
        for name in (f"{prefix}{key}", *fields_of(value, f"{prefix}{key}."))
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_satisfies_the_schema(method, validator):
    values = yaml.safe_load(SMALL) | {"space": {"method": method}}
    validator.validate(values)
    validator.validate(FineTune.parse(values).resolved())


@pytest.mark.parametrize(
    ("kind", "method"), [("sft", "lora"), ("dpo", "lora"), *(("sft", m) for m in METHODS[1:])]
)
def test_the_commented_contract_reads_back_and_explains_each_field(tmp_path, kind, method):
    values = {
        "name": "mine",
        "space": {"method": method},
        "objective": {"kind": kind},
        "mask": {"train": str(tmp_path / "a: b #c.jsonl")},
        "evaluation": {"task": str(tmp_path / "t.jsonl")},
    }
    contract = FineTune.parse(values)
    text = commented_contract(contract.resolved())
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert FineTune.load(path) == contract
    lines = text.splitlines()
    for record in (contract, contract.space, contract.budget, contract.evaluation, contract.mask):
        for key in type(record).model_fields:
            line = next((one for one in lines if one.lstrip(" #").startswith(f"{key}:")), None)
            assert line is not None, key
            assert " # " in line, line


# --- names of other trainers

THEIRS = {
    "space": {
        "r": "did you mean space.rank?",
        "lora_alpha": "did you mean space.alpha?",
        "lora_dropout": "did you mean space.dropout?",
        "target_modules": "did you mean space.targets?",
        "use_rslora": "did you mean space.rslora?",
    },
    "budget": {
        "num_train_epochs": "did you mean budget.epochs?",
        "per_device_train_batch_size": "did you mean budget.micro_batch_size?",
        "gradient_accumulation_steps": "did you mean budget.batch_size?",
        "lr_scheduler_type": "did you mean budget.schedule?",
        "warmup_steps": "did you mean budget.warmup_ratio?",
        "save_steps": "did you mean budget.save_every?",
        "report_to": "a run reports into its own folder",
        "max_steps": "is budget.epochs",
        "optim": "every run uses AdamW",
        "deepspeed": "a run uses one device",
    },
    "mask": {"packing": "rows are never packed"},
    "evaluation": {"eval_strategy": "is evaluated before and after training"},
}


@pytest.mark.parametrize("section", THEIRS)
def test_the_names_of_peft_and_trl_are_answered_with_ours(write, section):
    """The names are read from their classes, so that none is made up."""
    from peft import LoraConfig
    from trl import SFTConfig

    fields = {*LoraConfig.__dataclass_fields__, *SFTConfig.__dataclass_fields__}
    for name, words in THEIRS[section].items():
        assert name in fields
        said = refused(write(SMALL), f"{section}.{name}=1")
        assert f"unknown key {section}.{name}; " in said
        assert words in said


def test_a_flat_contract_is_told_where_its_keys_belong(write):
    said = refused(write(SMALL + "learning_rte: 1\nlr: 1e-4\nload_in_4bit: true\n"))
    assert "unknown key lr; did you mean budget.learning_rate?" in said
    assert "unknown key load_in_4bit; a run's base is not quantised" in said


def test_every_hint_names_a_field_that_there_is_and_no_name_of_ours():
    definitions = contract_schema()["$defs"]
    known = {name for each in definitions.values() for name in each.get("properties", {})}
    known |= contract_schema()["properties"].keys()
    said = " ".join([*FIELDS, *NOT_HERE.values()])
    for field in re.findall(r"(?:model|space|objective|mask|budget|evaluation)\.(\w+)", said):
        assert field in known
    names = " ".join([*FIELDS.values(), *NOT_HERE]).split()
    assert len(names) == len(set(names))
    assert not known & set(names)
