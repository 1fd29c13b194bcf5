"""The Python that loads a run's adapter and asks it something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunemath.report.text import dig

__all__ = ["example_code", "loading_code"]

_CODE = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base}
adapter = {adapter}
tokenizer = AutoTokenizer.from_pretrained(base{revision})
model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype=torch.{dtype})
model = PeftModel.from_pretrained(model, adapter).eval()

messages = [
{messages}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
with torch.inference_mode():
    output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
answer = output[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""


def loading_code(
    run_dir: str | Path,
    base_id_or_path: str | Path,
    *,
    messages: Sequence[Mapping[str, str]] = ({"role": "user", "content": "…"},),
    revision: str | None = None,
    dtype: str = "float32",
    max_new_tokens: int = 32,
) -> str:
    """Return Python that loads base and adapter and generates with the base's chat template.

    Every value is written as a literal, so no path or prompt can become code.

    Args:
        run_dir: the run's folder; the adapter is its folder ``adapter``.
        base_id_or_path: what the adapter was trained on.
        messages: the conversation to continue; declare the system prompt of the training rows.
        revision: the hub commit of the base, when it is not a folder.
        dtype: the name of a torch floating-point type.
        max_new_tokens: the longest answer, in tokens.

    >>> print(loading_code("runs/dates", "org/model").splitlines()[5])
    adapter = "runs/dates/adapter"
    """
    if not dtype.isidentifier():
        raise ValueError(f"dtype {dtype!r} is not the name of a torch type, such as float32")
    return _CODE.format(
        base=_literal(str(base_id_or_path)),
        adapter=_literal((Path(run_dir) / "adapter").as_posix()),
        revision=f", revision={_literal(revision)}" if revision else "",
        dtype=dtype,
        messages="".join(
            f'    {{"role": {_literal(m["role"])}, "content": {_literal(m["content"])}}},\n'
            for m in messages
        ),
        max_new_tokens=int(max_new_tokens),
    )


def example_code(
    evidence: Mapping[str, Any], run_dir: str | Path | None = None, base: str | Path | None = None
) -> str:
    """Return the code that loads this run's adapter and asks it the first held-out item.

    The conversation is ``messages`` of the first before-and-after answer where it is recorded,
    and otherwise that item's prompt as one user turn.
    """
    first = next(iter(dig(evidence, "evaluation", "before_after") or []), {})
    messages = first.get("messages")
    if not messages:
        prompt = str(first.get("prompt") or "…")
        messages = [{"role": "user", "content": prompt if "<|" not in prompt else "…"}]
    name = dig(evidence, "contract", "name") or dig(evidence, "manifest", "run") or "NAME"
    return loading_code(
        run_dir or Path("runs") / str(name),
        base or str(dig(evidence, "contract", "model", "id") or "BASE"),
        messages=messages,
        revision=None if base else dig(evidence, "contract", "model", "revision"),
        dtype=str(dig(evidence, "training", "dtype") or "float32"),
        max_new_tokens=int(dig(evidence, "contract", "evaluation", "max_new_tokens") or 32),
    )


def _literal(text: str) -> str:
    r"""Return a double-quoted Python literal; what does not print is escaped.

    >>> _literal('say "hi"\n')
    '"say \\"hi\\"\\n"'
    """
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else repr(character)[1:-1]
