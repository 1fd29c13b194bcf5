"""The Python that loads what a run trained and asks it something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunemath.report.text import dig

__all__ = ["example_code", "loading_code"]

_CODE = """\
{imports}
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base}
{name} = {folder}
tokenizer = AutoTokenizer.from_pretrained(base{revision})
{load}

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


_BASE = "model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype=torch.{dtype})\n"
# Imports, the folder's name, and how it is loaded: by PEFT, as a model, by tunemath.
_PEFT = (
    "import torch\nfrom peft import PeftModel",
    "adapter",
    _BASE + "model = PeftModel.from_pretrained(model, adapter).eval()",
)
_MODEL = (
    "import torch",
    "weights",
    "model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.{dtype}).eval()",
)
_OURS = (
    "from pathlib import Path\n\nimport torch\nfrom tunemath.runner.models import load_adapter",
    "adapter",
    _BASE + "model = load_adapter(model, Path(adapter))",
)
_OUR_WEIGHTS = (_OURS[0], "weights", _OURS[2].replace("adapter))", "weights))"))
_FORMS = {
    "full": _MODEL,
    "adapter": _OURS,
    **dict.fromkeys(("last_layers", "bitfit", "layernorm", "linear_probe"), _OUR_WEIGHTS),
}


def loading_code(
    update: str | Path,
    base_id_or_path: str | Path,
    *,
    messages: Sequence[Mapping[str, str]] = ({"role": "user", "content": "…"},),
    revision: str | None = None,
    dtype: str = "float32",
    max_new_tokens: int = 32,
    method: str = "lora",
) -> str:
    """Return Python that loads base and update and generates with the base's chat template.

    Every value is written as a literal, so no path or prompt can become code.

    Args:
        update: the folder of the adapter, or of the weights, that were trained.
        base_id_or_path: what the update was trained on.
        messages: the conversation to continue; declare the system prompt of the training rows.
        revision: the hub commit of the base, when it is not a folder.
        dtype: the name of a torch floating-point type.
        max_new_tokens: the longest answer, in tokens.
        method: the contract's ``space.method``, which decides the form on disk.

    >>> print(loading_code("runs/dates/adapter", "org/model").splitlines()[5])
    adapter = "runs/dates/adapter"
    """
    if not dtype.isidentifier():
        raise ValueError(f"dtype {dtype!r} is not the name of a torch type, such as float32")
    imports, name, load = _FORMS.get(method, _PEFT)
    pinned = f", revision={_literal(revision)}" if revision else ""
    return _CODE.format(
        imports=imports,
        base=_literal(str(base_id_or_path)),
        name=name,
        folder=_literal(Path(update).as_posix()),
        load=load.format(revision=pinned, dtype=dtype),
        revision=pinned,
        messages="".join(
            f'    {{"role": {_literal(m["role"])}, "content": {_literal(m["content"])}}},\n'
            for m in messages
        ),
        max_new_tokens=int(max_new_tokens),
    )


def example_code(
    evidence: Mapping[str, Any],
    run_dir: str | Path | None = None,
    base: str | Path | None = None,
    update: str | Path | None = None,
) -> str:
    """Return the code that loads what this run trained and asks it the first held-out item.

    ``run_dir`` is the run's folder, ``runs/NAME`` if None; it is written whole, so that the code
    runs in any folder. ``update`` says instead where what was trained is, as it is to be written.
    The conversation is ``messages`` of the first before-and-after answer where it is recorded,
    and otherwise that item's prompt as one user turn.
    """
    first = next(iter(dig(evidence, "evaluation", "before_after") or []), {})
    messages = first.get("messages")
    if not messages:
        prompt = str(first.get("prompt") or "…")
        messages = [{"role": "user", "content": prompt if "<|" not in prompt else "…"}]
    name = dig(evidence, "contract", "name") or dig(evidence, "manifest", "run") or "NAME"
    method = str(dig(evidence, "contract", "space", "method") or "lora")
    folder = Path(run_dir).resolve() if run_dir else Path("runs") / str(name)
    return loading_code(
        update or folder / _FORMS.get(method, _PEFT)[1],
        base or str(dig(evidence, "contract", "model", "id") or "BASE"),
        messages=messages,
        revision=None if base else dig(evidence, "contract", "model", "revision"),
        dtype=str(dig(evidence, "training", "dtype") or "float32"),
        max_new_tokens=int(dig(evidence, "contract", "evaluation", "max_new_tokens") or 32),
        method=method,
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
