"""Which code made a product."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tunemath.storage import canonical_json, hash_bytes, hash_file

__all__ = ["__version__", "code_hash"]

__version__ = "0.1.0"


@cache
def code_hash() -> str:
    """Return one SHA-256 over the package's source files."""
    root = Path(__file__).parent
    files = {p.relative_to(root).as_posix(): hash_file(p) for p in sorted(root.rglob("*.py"))}
    return hash_bytes(canonical_json(files))
