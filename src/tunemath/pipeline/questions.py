"""Items as a model is asked them: through one template and tokenizer, by ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from tunemath.evaluation import Evaluation
from tunemath.mask import (
    Item,
    Message,
    Template,
    Tokenizer,
    encode_answer,
    encode_prompt,
    load_tokenizer,
    read_rows,
)
from tunemath.runner.progress import Progress, silent

__all__ = ["Questions"]


class Questions:
    """The items of an evaluation, and the codec through which a model reads and answers them."""

    def __init__(
        self, codec: Callable[[], Path], evaluation: Evaluation, progress: Progress = silent
    ) -> None:
        self._codec = codec
        self.evaluation = evaluation
        self.progress = progress

    @cached_property
    def template(self) -> Template:
        """The model's chat template."""
        return Template.load(self._codec())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return load_tokenizer(self._codec())

    @cached_property
    def task(self) -> list[Item]:
        """The task items."""
        return read_rows(self.evaluation.task, "evaluation")

    @cached_property
    def retention(self) -> list[Item] | None:
        """The retention items, when there are any."""
        path = self.evaluation.retention
        return None if path is None else read_rows(path, "evaluation")

    @cached_property
    def items(self) -> dict[str, list[Item]]:
        """The evaluation items by set; retention is absent when there is none."""
        sets = {"task": self.task, "retention": self.retention}
        return {name: items for name, items in sets.items() if items is not None}

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generated answer: the model's own, and the one trained on."""
        turn = [Message("user", "?")]
        trained = encode_answer(self.template, self.tokenizer, turn, "!")[-1]
        return tuple(dict.fromkeys((*self.tokenizer.eos_ids, trained)))

    def prompt_ids(self, item: Item) -> tuple[int, ...]:
        """Return an item's prompt."""
        return encode_prompt(self.template, self.tokenizer, item.prompt, item.where)

    def answer_ids(self, item: Item, answer: str) -> tuple[int, ...]:
        """Return an answer to an item with its terminator."""
        return encode_answer(self.template, self.tokenizer, item.prompt, answer, item.where)

    @cached_property
    def prompts(self) -> dict[str, list[tuple[int, ...]]]:
        """The items' prompts by set, as the base and the tuned model read them."""
        return {name: [self.prompt_ids(i) for i in items] for name, items in self.items.items()}

    def choice_ids(self, item: Item) -> list[tuple[int, ...]]:
        """Return the ids by which an item's choices are compared.

        A pair's sides are scored as they are trained, terminator included. Other choices are
        scored without it, so that having learned to stop does not pass for knowing more; only
        where one choice begins another is the terminator needed to tell them apart.
        """
        whole = [self.answer_ids(item, choice) for choice in item.choices or ()]
        if item.is_pair:
            return whole
        bare = [ids[:-1] for ids in whole]
        nested = any(a != b and b[: len(a)] == a for a in bare for b in bare)
        return whole if nested else bare
