"""The model's chat template, rendered without transformers and byte for byte as it renders it.

A template is a Jinja program that comes with a model, so it runs in Jinja's immutable sandbox. A
model without one gets `PLAIN`: contents joined by newlines, each answer ended by the model's eos.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.errors import DataError, ModelError
from tunemath.mask.rows import Message
from tunemath.mask.tokenize import load_tokenizer, read_model_json, special_tokens
from tunemath.patience import patience
from tunemath.reading import read_text
from tunemath.shown import clip, one_line, shown

if TYPE_CHECKING:
    import jinja2

    from tunemath.mask.effort import LimitedSandbox

__all__ = ["PLAIN", "Template"]

_LONGEST = 2**22
_PATIENCE = 20.0
# What Python raises for the code that a template becomes, where it is nested beyond all use.
_NOT_COMPILED = (ValueError, SyntaxError, RecursionError, MemoryError)

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"
)
"""The template of a model that has none."""


@dataclass(frozen=True)
class Template:
    """A chat template: its source, the special tokens that it may write, and a clock.

    >>> source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    >>> source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    >>> Template(source).prompt([Message("user", "Hi")])
    '<user>Hi</s><assistant>'
    """

    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False
    clock: Callable[[], datetime] = field(default=datetime.now, compare=False)

    @classmethod
    def load(cls, folder: str | Path) -> Template:
        """Read the template of a model folder, or `PLAIN` when it has none.

        Looked for in chat_template.jinja, then chat_template.json, then tokenizer_config.json,
        where it may be a string or a list of named templates, of which "default" is taken.
        """
        folder = Path(folder)
        variables = special_tokens(folder)
        source = _find_source(folder)
        if source is not None:
            return cls(source, variables)
        tokenizer = load_tokenizer(folder)
        eos, bos = tokenizer.text_of(tokenizer.eos_ids[0]), tokenizer.bos_id
        starts = tokenizer.text_of(bos) if bos is not None and tokenizer.adds_bos else ""
        plain = {"eos_token": variables.get("eos_token", eos or ""), "bos_token": starts or ""}
        return cls(PLAIN, {**variables, **plain}, plain=True)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the source and the special tokens."""
        text = json.dumps([self.source, dict(self.variables)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return what the model is given to answer: the messages and the start of its turn."""
        return self._render(messages, add_generation_prompt=True)

    def full(self, messages: Sequence[Message]) -> str:
        """Return the whole conversation."""
        return self._render(messages, add_generation_prompt=False)

    def at(self, moment: datetime) -> Template:
        """Return this template with its clock stopped at ``moment``."""
        return replace(self, clock=lambda: moment)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            sandbox, template = self._compiled
            sandbox.renew()
            with patience(_PATIENCE):
                return template.render(
                    **self.variables,
                    messages=turns,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                )
        except ModelError:
            raise
        except Exception as error:
            reason = one_line(" ".join(str(error).split()) or type(error).__name__, 300)
            roles = clip(", ".join(message.role for message in messages), 200)
            raise DataError(
                f"the model's chat template refuses a conversation of {roles}: {reason}"
            ) from None

    @functools.cached_property
    def _compiled(self) -> tuple[LimitedSandbox, jinja2.Template]:
        from jinja2 import TemplateError

        from tunemath.mask.sandbox import sandbox

        try:
            environment = sandbox(self.clock)
            return environment, environment.from_string(self.source)
        except (TemplateError, *_NOT_COMPILED) as error:
            raise ModelError(
                f"the model's chat template is not valid Jinja: {one_line(error, 300)}"
            ) from None


def _find_source(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file, ModelError, _LONGEST)
    for name in ("chat_template.json", "tokenizer_config.json"):
        given = _default(read_model_json(folder, name).get("chat_template"), folder / name)
        if given is not None:
            return given
    return None


def _default(given: Any, path: Path) -> str | None:
    """Return the one template, or the one called default of several."""
    if isinstance(given, list):
        pairs = [each for each in given if isinstance(each, dict)]
        if len(pairs) < len(given) or not all(
            {"name", "template"} <= each.keys() for each in pairs
        ):
            raise ModelError(
                f"{path} has {shown(given)} as chat_template; expected a template, or a list of "
                "objects with name and template"
            )
        given = {str(each["name"]): each["template"] for each in pairs}
    if isinstance(given, dict):
        if "default" not in given:
            names = clip(", ".join(sorted(given)), 200)
            raise ModelError(f"{path} has chat templates {names}, none called default")
        given = given["default"]
    if given is None or isinstance(given, str):
        return given
    raise ModelError(f"{path} has {shown(given)} as chat_template; expected a template's text")
