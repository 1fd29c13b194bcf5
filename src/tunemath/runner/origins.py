"""Which base an update belongs to, and what is in a base already, by what is recorded of them."""

from __future__ import annotations

from pathlib import Path

from tunemath.errors import ModelError
from tunemath.runner.resolve import weights_hash
from tunemath.space.weights.provenance import Source, read_provenance
from tunemath.storage import read_json

__all__ = ["refuse_merged_before", "refuse_other_base", "trained_on"]

_OURS = "update.json"


def trained_on(update: Path) -> Source | None:
    """Return the base that an update was trained on; None where nobody wrote it down."""
    record = read_provenance(update)
    if record is not None and record.operation == "train" and record.of("base"):
        return record.of("base")[0]
    if (update / _OURS).is_file():
        about = read_json(update / _OURS)
        base = about.get("base") if isinstance(about, dict) else None
        if isinstance(base, dict) and isinstance(base.get("sha256"), str):
            return Source("base", str(base.get("id", "")), base["sha256"])
    return None


def refuse_other_base(update: Path, base: Path) -> None:
    """Raise `ModelError` where an update was trained on other weights than a base's folder has."""
    expected = trained_on(update)
    if expected is None or not (base / "config.json").is_file():
        return
    found = weights_hash(base)
    if found != expected.sha256:
        raise ModelError(
            f"{update} was trained on {expected.name or 'a base'} with SHA-256 "
            f"{expected.sha256[:12]}…, and {base} has other weights ({found[:12]}…); give the base "
            "that it was trained on"
        )


def refuse_merged_before(update: Path, base: Path) -> None:
    """Raise `ModelError` where an update is in a base's weights already, by its record."""
    record = read_provenance(base)
    if record is None:
        return
    own = weights_hash(update)
    if record.operation == "merge" and any(s.sha256 == own for s in record.of("adapter")):
        names = " and ".join(source.name for source in record.of("base"))
        raise ModelError(
            f"{update} is merged into {base} already, and would be applied twice; merge it into "
            f"{names or 'the base that it was trained on'}"
        )
