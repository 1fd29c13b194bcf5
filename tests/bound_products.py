"""A product changed as if its stage had written it so: the manifest is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def bind(run: Path, stage: str, name: str) -> None:
    """Record a product of a run's folder as it is now."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    products = manifest["stages"][stage]["products"]
    products[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest), "utf-8")
