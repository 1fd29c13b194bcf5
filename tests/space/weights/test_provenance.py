import json

import pytest

from tunemath.errors import ModelError
from tunemath.space.weights.provenance import FILE, Provenance, Source, read_provenance


def test_it_is_read_as_it_was_written(tmp_path):
    base = Source("base", "smollm2", "ab" * 32)
    made = Provenance("merge", (base, Source("adapter", "a", "cd" * 32)), {"dtype": "bfloat16"})
    made.write(tmp_path)
    assert read_provenance(tmp_path) == made
    assert made.of("base") == (base,)


def test_nothing_recorded_is_none_and_something_else_is_named(tmp_path):
    assert read_provenance(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({"format": "tunemath provenance 9"}))
    with pytest.raises(ModelError, match="expected format 'tunemath provenance 1'"):
        read_provenance(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"operation": 3},
        {"sources": [{"role": "base", "name": "smollm2", "sha256": 0}]},
        {"sources": [{"role": "base", "name": None, "sha256": "ab"}]},
        {"sources": 3},
        {"settings": []},
        {"proof": "none"},
    ],
)
def test_a_record_with_a_value_of_another_kind_is_refused(tmp_path, change):
    Provenance("train", (Source("base", "smollm2", "ab" * 32),)).write(tmp_path)
    written = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**written, **change}))
    with pytest.raises(ModelError, match="is not what this version writes"):
        read_provenance(tmp_path)
