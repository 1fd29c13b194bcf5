"""The model's own tokenizer, read from its folder, and the ids that have a meaning in it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.errors import ModelError
from tunemath.reading import LONGEST_JSON, parse_json, read_file
from tunemath.shown import one_line, shown

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Tokenizer", "load_tokenizer", "read_model_json", "special_tokens"]

_OLDER = "special_tokens_map.json"
_LONGEST = 2**29
_MOST_TOKENS = 2**31


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with its special ids; text is encoded as it stands, nothing is added or cut.

    ``eos_ids`` are the ids at which generation stops, the model's own first; ``pad_id`` is only
    ever a filler, since masks go by position and never by id.
    """

    backend: tokenizers.Tokenizer
    eos_ids: tuple[int, ...]
    pad_id: int
    bos_id: int | None
    sha256: str

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (a run has one tokenizer)
    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of ``text``; special tokens written in it become their ids."""
        return tuple(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens included."""
        return self.backend.decode([int(token) for token in ids], skip_special_tokens=False)

    def text_of(self, token: int) -> str | None:
        """Return the vocabulary's entry for an id."""
        return self.backend.id_to_token(token)

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether this tokenizer puts a beginning-of-sequence id before plain text."""
        ids = self.backend.encode("a").ids
        return self.bos_id is not None and ids[:1] == [self.bos_id]

    @functools.cached_property
    def specials(self) -> re.Pattern[str]:
        """Match any special token: text that means structure, which no message may contain."""
        return _any_of(self._added(""))

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def controls(self, template: str) -> re.Pattern[str]:
        """Match a special token, or an added one that the source of a chat template writes."""
        return _any_of(self._added(template))

    def _added(self, template: str) -> tuple[str, ...]:
        stops = {self.backend.id_to_token(token) for token in self.eos_ids}
        return tuple(
            entry.content
            for entry in self.backend.get_added_tokens_decoder().values()
            if entry.content.strip()
            and (entry.special or entry.content in stops or entry.content in template)
        )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read ``tokenizer.json`` and the ids that the model's configuration names.

    Padding and truncation stored in the file are switched off. Raises `ModelError` when the folder
    has no readable tokenizer.json or names no end-of-sequence token.
    """
    folder = Path(folder)
    backend, sha256 = _backend(folder)
    names = special_tokens(folder)
    configs = [read_model_json(folder, name) for name in ("generation_config.json", "config.json")]

    def named(kind: str) -> list[int]:
        token = names.get(f"{kind}_token")
        return _ids(backend.token_to_id(token) if token is not None else None)

    def configured(kind: str) -> list[int]:
        found = [token for config in configs for token in _ids(config.get(f"{kind}_token_id"))]
        wrong = [token for token in found if not -1 <= token < _MOST_TOKENS]
        if wrong:
            raise ModelError(
                f"{folder} has {kind}_token_id {shown(wrong[0])} in generation_config.json or "
                "config.json, which is no token's number; correct it"
            )
        return [token for token in found if token >= 0]  # -1 stands for none

    eos = [*configured("eos"), *named("eos")]
    if not eos:
        raise ModelError(f"{folder} names no eos token; set eos_token in tokenizer_config.json")
    return Tokenizer(
        backend=backend,
        eos_ids=tuple(dict.fromkeys(eos)),
        pad_id=[*named("pad"), *configured("pad"), *eos][0],
        bos_id=next(iter([*named("bos"), *configured("bos")]), None),
        sha256=sha256,
    )


def _backend(folder: Path) -> tuple[tokenizers.Tokenizer, str]:
    """Read tokenizer.json, with nothing padded or cut, and hash it."""
    import tokenizers

    path = folder / "tokenizer.json"
    try:
        if not os.path.lexists(path):
            raise ModelError(
                f"{folder} has no tokenizer.json; save the model's fast tokenizer there "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
            )
        data = read_file(path, ModelError, _LONGEST)
        backend = tokenizers.Tokenizer.from_str(data.decode())
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} is not a readable tokenizer: {one_line(error, 300)}; download it again"
        ) from None
    backend.no_padding()
    backend.no_truncation()
    return backend, hashlib.sha256(data).hexdigest()


def special_tokens(folder: str | Path) -> dict[str, str]:
    """Return the named special tokens of a model folder: ``{"eos_token": "</s>", …}``."""
    folder, found = Path(folder), {}
    config = read_model_json(folder, "tokenizer_config.json")
    older = {} if "added_tokens_decoder" in config else read_model_json(folder, _OLDER)
    for values in (config, older):
        for key, value in values.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def read_model_json(folder: Path, name: str) -> dict[str, Any]:
    """Read one JSON file of a model folder; an absent one is an empty record."""
    path = Path(folder) / name
    if not os.path.lexists(path):
        return {}
    values = parse_json(read_file(path, ModelError, LONGEST_JSON), path, ModelError)
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object, got a {type(values).__name__}")
    return values


def _ids(value: Any) -> list[int]:
    """Return an id, a list of ids, or nothing, as a list."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]


@functools.lru_cache(maxsize=32)
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Match any of ``texts``, the longest first; no text matches nothing."""
    ordered = sorted(set(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
