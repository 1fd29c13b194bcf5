"""The contract: a model and the five choices, in one file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from tunemath.budget.record import Budget
from tunemath.errors import ContractError, ModelError
from tunemath.evaluation.record import Evaluation
from tunemath.mask.record import DataMask
from tunemath.objective.record import Objective
from tunemath.plain_yaml import YamlProblemError, load_yaml
from tunemath.reading import read_text
from tunemath.record import Record, explain
from tunemath.shown import clip, shown
from tunemath.space.record import LoraSpace, UpdateSpace

__all__ = ["FineTune", "ModelChoice", "contract_schema", "name_of"]

_PATHS = (("mask", "train"), ("evaluation", "task"), ("evaluation", "retention"))
_LONGEST = 2**20


class ModelChoice(Record):
    """Which base model, and from which revision of it."""

    id: str = Field(default="smollm2-135m", min_length=1, max_length=4096)
    """`smollm2-135m`, a local Hugging Face folder, or a hub id such as org/name."""
    revision: str | None = Field(default=None, max_length=255)
    """The hub revision; it is pinned to a commit when the run first gets the model."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off, and the report says so when it is on."""

    @classmethod
    def named(cls, name: str) -> ModelChoice:
        """Return the model of a name; `ModelError` where none can be called so."""
        try:
            return cls(id=name)
        except ValidationError as error:
            raise ModelError(
                f"{shown(name)} is no model's name ({explain(error, cls)}); give a folder, or an "
                "id such as org/name"
            ) from None


class FineTune(Record):
    """A fine-tune: a model and five choices.

    ``FineTune.load("finetune.yaml")`` reads one; relative paths in the file are relative to it.
    """

    name: str = Field(default="finetune", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """The run's name, the file's own when not given; its folder is runs/NAME."""
    model: ModelChoice = ModelChoice()
    """The base model: an id, or a record of id and revision."""
    space: UpdateSpace = LoraSpace()
    """1 What may change: `method` chooses, and each has options of its own."""
    objective: Objective = Objective()
    """2 What is minimised."""
    mask: DataMask
    """3 Which tokens count."""
    budget: Budget = Budget()
    """4 What it costs."""
    evaluation: Evaluation
    """5 What would change our mind."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the adapter's initialisation, the order of rows, the few-shot choice."""

    @field_validator("model", mode="before")
    @classmethod
    def _model_from_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _data_sets_differ(self) -> FineTune:
        task, retention = self.evaluation.task, self.evaluation.retention
        if self.mask.train == task:
            raise ValueError(
                f"evaluation.task is the training file itself ({task}); give held-out items"
            )
        if retention == self.mask.train:
            raise ValueError(
                f"evaluation.retention is the training file itself ({retention}); "
                "give items of general ability"
            )
        if retention == task:
            raise ValueError(
                f"evaluation.retention is evaluation.task itself ({task}); "
                "give items of general ability"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> FineTune:
        """Read a contract from YAML, apply overrides such as ``"space.rank=16"``, validate it."""
        path = Path(path)
        values = _read_yaml(path)
        values.setdefault("name", name_of(path))
        for section, key in _PATHS:
            _anchor(values, section, key, path.parent)
        for override in overrides:
            _apply(values, override)
        return cls.parse(values, where=str(path))

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], where: str = "contract", folder: Path | None = Path()
    ) -> FineTune:
        """Validate a mapping; an error names the field, and the nearest key for an unknown one.

        Relative paths are taken from ``folder``, the working one; None leaves them as they are.
        """
        values = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
        if folder is not None:
            for section, key in _PATHS:
                _anchor(values, section, key, folder)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ContractError(f"{where}: " + explain(error, cls)) from None

    def resolved(self) -> dict[str, Any]:
        """Return every field, defaults included, as JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved contract as YAML that `load` reads back to an equal contract."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


def name_of(path: Path) -> str:
    """Return the run's name when the contract in ``path`` gives none.

    >>> name_of(Path("jobs/my job.yaml"))
    'my-job'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")[:200] or "run"


def contract_schema() -> dict[str, Any]:
    """Return the JSON Schema of the contract file (a bare model id is allowed for ``model``)."""
    schema = FineTune.model_json_schema()
    model = schema["properties"]["model"]
    reference = model.pop("$ref", None) or model.pop("allOf", [{}])[0].get("$ref")
    model["anyOf"] = [{"type": "string"}, {"$ref": reference}]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tunemath contract"
    return schema


def _read_yaml(path: Path) -> dict[str, Any]:
    init = f"`tunemath init {path}` writes a commented contract"
    text = read_text(path, ContractError, _LONGEST, absent=f"does not exist; {init}")
    try:
        values = load_yaml(text)
    except YamlProblemError as problem:
        line = f"{path}:{problem.line}" if problem.line else str(path)
        raise ContractError(f"{line}: not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise ContractError(
            f"{path}: expected keys such as model, space, mask, evaluation; "
            f"got {'an empty file' if values is None else type(values).__name__}"
        )
    return values


def _anchor(values: dict[str, Any], section: str, key: str, folder: Path) -> None:
    """Make a relative path absolute, as seen from a folder."""
    holder = values.get(section)
    if isinstance(holder, dict) and isinstance(holder.get(key), str | Path):
        try:
            holder[key] = str((folder / holder[key]).resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, NUL, half a letter
            raise ContractError(
                f"{section}.{key} is {shown(holder[key])}, which is no path ({error})"
            ) from None


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one value from ``section.key=value``; the value is read as YAML."""
    dotted, sign, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not sign or not all(keys):
        raise ContractError(
            f"--set {clip(override, 80)}: expected section.key=value, as in space.rank=16"
        )
    try:
        value = load_yaml(text)
    except YamlProblemError:
        value = text
    holder = values
    for key in keys[:-1]:
        inner = holder.get(key)
        if isinstance(inner, str) and key == "model":
            inner = {"id": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ContractError(f"--set {clip(override, 80)}: {key} is a value, not a section")
        holder[key] = dict(inner)
        holder = holder[key]
    holder[keys[-1]] = value
