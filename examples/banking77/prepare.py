"""Make a contract and its data from Banking77 and ARC-Easy.

    python examples/banking77/prepare.py DATA_DIR OUT_DIR
    tunemath run OUT_DIR/banking77.yaml

DATA_DIR holds banking77_train.jsonl and banking77_test.jsonl (rows of ``text`` and ``label``) and
arc_easy_test.jsonl (rows of ``question``, ``choices`` and ``answer``, an index). README.md says
where they come from, and what is chosen. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INTENTS = (
    "activate_my_card",
    "age_limit",
    "apple_pay_or_google_pay",
    "cancel_transfer",
    "card_about_to_expire",
    "card_arrival",
    "change_pin",
    "edit_personal_details",
    "exchange_rate",
    "lost_or_stolen_phone",
    "passcode_forgotten",
    "terminate_account",
)
TRAIN_ROWS, TEST_ITEMS, RETENTION_ITEMS = 480, 150, 300
LONGEST_QUESTION = 40
SEED = 0
INTENT_PROMPT = "Name the customer's intent."
QUESTION_PROMPT = "Answer the question."

CONTRACT = f"""\
# Banking77 (12 intents) with ARC-Easy as retention; made by prepare.py.
name: banking77
model: smollm2-135m

space:            # 1  what may change
  method: lora
  rank: 8
  alpha: 16
  targets: all-linear

objective:        # 2  what is minimised
  kind: sft

mask:             # 3  which tokens count: the answers and their end-of-turn token
  train: train.jsonl
  max_length: 128

budget:           # 4  what it costs
  epochs: 2
  batch_size: 16
  learning_rate: 2.0e-3
  schedule: cosine
  warmup_ratio: 0.05

evaluation:       # 5  what would change our mind
  task: test.jsonl
  retention: retention.jsonl
  few_shot: {len(INTENTS)}    # one example of each intent, if seed stays as it is
  max_new_tokens: 16
  retention_margin: 0.10
  weights: {{task: 0.7, retention: 0.3}}

seed: {SEED}
"""

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Return the rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def normalised(text: str) -> str:
    """Return the letters and digits of a text, case folded, with single spaces between words.

    >>> normalised("  I haven’t  got my CARD?? ")
    'i haven t got my card'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def by_intent(rows: Iterable[Row], without: Iterable[Row] = ()) -> dict[str, list[str]]:
    """Return the distinct texts of each chosen intent that are not among ``without``."""
    seen = {normalised(row["text"]) for row in without}
    texts: dict[str, list[str]] = {intent: [] for intent in INTENTS}
    for row in rows:
        key = normalised(row["text"])
        if row["label"] in texts and key not in seen:
            seen.add(key)
            texts[row["label"]].append(" ".join(row["text"].split()))
    return texts


def sample(texts: dict[str, list[str]], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Draw ``count`` (intent, text) pairs, equally many of each intent or one more, shuffled."""
    drawn = []
    for place, intent in enumerate(INTENTS):
        share = count // len(INTENTS) + (place < count % len(INTENTS))
        drawn += [(intent, text) for text in rng.sample(texts[intent], share)]
    rng.shuffle(drawn)
    return drawn


def show_each_intent_once(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Reorder the training rows so that the prompt-only baseline is shown every intent.

    tunemath draws its examples as ``random.Random(seed).sample(rows, few_shot)``. The order of the
    rows has no other effect: training shuffles them.
    """
    first = [next(row for row in rows if row[0] == intent) for intent in INTENTS]
    rest = iter([row for row in rows if row not in first])
    shown = random.Random(SEED).sample(range(len(rows)), len(INTENTS))
    placed = dict(zip(shown, first, strict=True))
    return [placed.get(index) or next(rest) for index in range(len(rows))]


def intent_row(split: str, number: int, intent: str, text: str, answer: str) -> Row:
    """Return a row in which the intent in words stands under ``answer``."""
    words = intent.replace("_", " ")
    return {
        "id": f"{split}-{number:03d}-{intent}",
        "system": INTENT_PROMPT,
        "prompt": text,
        answer: words,
    }


def short(question: Row) -> bool:
    """Say whether a question has four distinct choices and few words, choices included."""
    choices = [choice.strip() for choice in question["choices"]]
    words = " ".join([question["question"], *choices]).split()
    return len(set(choices)) == len(choices) == 4 and len(words) <= LONGEST_QUESTION


def retention(questions: Iterable[Row], rng: random.Random) -> list[Row]:
    """Draw the retention items among the short questions."""
    distinct = {normalised(q["question"]): q for q in questions if short(q)}
    return [
        {
            "id": f"arc-easy-{number:03d}",
            "system": QUESTION_PROMPT,
            "prompt": question["question"],
            "choices": question["choices"],
            "answer": question["answer"],
        }
        for number, question in enumerate(rng.sample(list(distinct.values()), RETENTION_ITEMS))
    ]


def prepare(data: Path, out: Path) -> None:
    """Write banking77.yaml, train.jsonl, test.jsonl and retention.jsonl into ``out``."""
    rng = random.Random(f"banking77-{SEED}")
    train, test = read(data / "banking77_train.jsonl"), read(data / "banking77_test.jsonl")
    rows = show_each_intent_once(sample(by_intent(train, without=test), TRAIN_ROWS, rng))
    items = sample(by_intent(test), TEST_ITEMS, rng)
    questions = retention(read(data / "arc_easy_test.jsonl"), rng)
    out.mkdir(parents=True, exist_ok=True)
    write(
        out / "train.jsonl",
        [intent_row("train", n, *row, "completion") for n, row in enumerate(rows)],
    )
    write(
        out / "test.jsonl", [intent_row("test", n, *row, "answer") for n, row in enumerate(items)]
    )
    write(out / "retention.jsonl", questions)
    (out / "banking77.yaml").write_text(CONTRACT, encoding="utf-8", newline="\n")


def main() -> int:
    """Read the arguments, write the files, say what to do next."""
    parser = argparse.ArgumentParser(description="Make a contract from Banking77 and ARC-Easy.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="where the three files are")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="where to write")
    arguments = parser.parse_args()
    try:
        prepare(arguments.data, arguments.out)
    except FileNotFoundError as error:
        print(f"error: {error.filename} does not exist; README.md says where", file=sys.stderr)
        return 2
    print(f"next: tunemath run {arguments.out / 'banking77.yaml'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
