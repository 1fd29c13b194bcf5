"""The commented contract that ``tunemath init`` writes, generated from the records themselves."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunemath.contract import FineTune
from tunemath.record import records_of

__all__ = ["commented_contract"]

_WIDTH = 34
_NEEDS_QUOTES = set(":#{}[],&*!|>'\"%@` ")


def commented_contract(values: dict[str, Any]) -> str:
    """Return a contract as YAML with every field, its meaning as a comment beside it.

    ``values`` are the resolved values of a `FineTune`; fields that are None are commented out.
    """
    lines = [
        "# yaml-language-server: $schema=finetune.schema.json",
        "# A fine-tune is a model and five choices. Check it with `tunemath plan`.",
    ]
    for name, field in FineTune.model_fields.items():
        record = _record(field, values[name])
        if record is None or (name == "model" and _is_bare_id(values["model"])):
            value = values[name]["id"] if record else values[name]
            lines.append(_line(name, value, field.description, ""))
            continue
        lines += ["", f"{name}:{'':{_WIDTH - len(name) - 1}}# {field.description}"]
        for key, inner in record.model_fields.items():
            lines.append(_line(key, values[name][key], inner.description, "  "))
    return "\n".join(lines) + "\n"


def _is_bare_id(model: dict[str, Any]) -> bool:
    return model["revision"] is None and not model["trust_remote_code"]


def _record(field: FieldInfo, values: Any) -> type[BaseModel] | None:
    """Return the record of a field; of several, the one that has these values."""
    records = records_of(field)
    return next((one for one in records if set(one.model_fields) == set(values)), None)


def _line(key: str, value: Any, description: str | None, indent: str) -> str:
    text = f"{indent}{'# ' if value is None else ''}{key}: {_scalar(value)}"
    return f"{text:<{_WIDTH}} # {description}" if description else text


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, bool | int | float | list):
        return json.dumps(value)
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & _NEEDS_QUOTES else text
