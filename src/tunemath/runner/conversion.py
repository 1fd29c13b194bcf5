"""A GGUF file to an ordinary safetensors folder, once."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from filelock import FileLock

from tunemath.errors import ModelError
from tunemath.extras import install_command
from tunemath.runner.quiet import quiet_libraries
from tunemath.storage import new_folder, storage_errors, write_text

__all__ = ["convert_gguf"]

_DIGITS_THEN_BYTES = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in ``source`` to ``folder``: float32 safetensors, tokenizer, template.

    The folder appears whole or not at all; of several processes one converts, and the others wait
    for it. What killed conversions of this model left is deleted. GGUF names its pre-tokenizer but
    does not carry it; for ``smollm`` it is restored (digits one by one, then bytes), since
    transformers' loader leaves the digit split out and runs of spaces before digits would be cut
    differently.
    """
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            for left in folder.parent.glob(f".{folder.name.partition('-')[0]}-*"):
                shutil.rmtree(left, ignore_errors=True)
            if not folder.is_dir():
                with new_folder(folder) as part:
                    _write_model(source, part)


def _write_model(source: Path, folder: Path) -> None:
    try:
        import torch
        from gguf import GGUFReader
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ModelError(
            f"converting the embedded model needs {error.name}; run: {install_command('train')}"
        ) from None
    shown = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with quiet_libraries(), shown:  # transformers' bar, which is none in a log
        names = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(**names)
        model = AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32)
        delattr(model.config, "quantization_config")
        model.config.name_or_path = ""
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    field = GGUFReader(source).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["pre_tokenizer"] = _DIGITS_THEN_BYTES
        write_text(path, json.dumps(content, ensure_ascii=False))
