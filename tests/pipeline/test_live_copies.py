"""How many copies of the base are in memory at once, through every stage of a run."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from preference_job import DPO
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance
from tunemath.runner import loading, movement

LORA = "{rank: 4, alpha: 8}"
SPACES = {
    "lora": LORA,
    "dora": "{method: dora, rank: 4, alpha: 8}",
    "adapter": "{method: adapter, bottleneck: 16}",
    "prefix": "{method: prefix, length: 8}",
    "prompt": "{method: prompt, length: 8}",
    "layernorm": "{method: layernorm}",
    "full": "{method: full}",
}
OWN = {("full", "sft"): 4, ("full", "dpo"): 5}
"""Training in full: weights, gradients and AdamW's two moments; DPO's reference is one more."""
BY_DEFAULT = {("lora", "sft"), ("lora", "dpo"), ("full", "sft"), ("adapter", "sft")}


class Copies:
    """Counts whole copies: of every shape in the base, as many live tensors as the base has.

    Gradients and optimizer states of that shape count as well; a few tensors at a time do not.
    """

    def __init__(self, base: Path) -> None:
        shapes = (tuple(t.shape) for t in load_file(base / "model.safetensors").values())
        self.one = Counter(shape for shape in shapes if len(shape) == 2)
        self.most: dict[str, int] = defaultdict(int)
        self.stage = ""

    def look(self) -> None:
        """Count what is alive now."""
        live: dict[tuple[int, ...], set[int]] = {shape: set() for shape in self.one}
        for each in gc.get_objects():
            if type(each) in (torch.Tensor, nn.Parameter):
                found = live.get(tuple(each.shape))
                if found is not None and each.device.type == "cpu":
                    found.add(each.data_ptr())
        now = min(len(found) // self.one[shape] for shape, found in live.items())
        self.most[self.stage] = max(self.most[self.stage], now)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Iterator[Copies]:
    """Look at every load and save, every step of an optimizer, and every use of the head."""
    found = Copies(tiny_model)

    def watch(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.look()
            result = original(*args, **kwargs)
            found.look()
            return result

        monkeypatch.setattr(owner, name, watched)

    import transformers

    watch(transformers.PreTrainedModel, "save_pretrained")
    watch(transformers.AutoModelForCausalLM, "from_pretrained")
    watch(torch.optim.AdamW, "step")
    watch(movement, "kl")
    watch(loading, "read_tensors")
    gc.collect()
    gc.freeze()
    yield found
    gc.unfreeze()


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in BY_DEFAULT else pytest.mark.slow)
        for name in SPACES
        for kind in ("sft", "dpo")
    ],
)
def test_no_stage_holds_a_second_base(copies, shared_job, tmp_path, method, kind):
    more = [text.format(folder=shared_job.parent) for text in DPO] if kind == "dpo" else []
    settings = [*more, f"space={SPACES[method]}", "budget.epochs=1", "evaluation.few_shot=0"]

    def started(stage: str, skipped: bool) -> None:
        copies.stage = stage

    advance(Run(FineTune.load(shared_job, settings), tmp_path), started=started)
    assert copies.most.pop("train") == OWN.get((method, kind), 1)
    assert set(copies.most.values()) <= {0, 1}, copies.most
