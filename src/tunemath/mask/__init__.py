"""Choice 3, the data mask: which tokens count, and the certificate that they are the right ones."""

from __future__ import annotations

from tunemath.mask.align import (
    Encoded,
    TrainingRows,
    encode_answer,
    encode_example,
    encode_prompt,
    encode_rows,
)
from tunemath.mask.certificate import MASK_VIOLATIONS, certify, row_hash, rows_hash
from tunemath.mask.prefix import common_prefix
from tunemath.mask.record import DataMask
from tunemath.mask.refusals import Refusals
from tunemath.mask.rows import Example, Item, Message, Pair, read_rows
from tunemath.mask.template import Template
from tunemath.mask.tokenize import Tokenizer, load_tokenizer
from tunemath.mask.view import sample_rows

__all__ = [
    "MASK_VIOLATIONS",
    "DataMask",
    "Encoded",
    "Example",
    "Item",
    "Message",
    "Pair",
    "Refusals",
    "Template",
    "Tokenizer",
    "TrainingRows",
    "certify",
    "common_prefix",
    "encode_answer",
    "encode_example",
    "encode_prompt",
    "encode_rows",
    "load_tokenizer",
    "read_rows",
    "row_hash",
    "rows_hash",
    "sample_rows",
]
