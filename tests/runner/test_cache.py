"""What is remembered between commands, and that no command fails where nothing can be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunemath.contract import ModelChoice
from tunemath.errors import StorageError
from tunemath.runner import cache, resolve
from tunemath.runner.cache import cache_folder, file_hash, keep, recall
from tunemath.runner.resolve import resolve_model


def settle() -> None:
    """Let so much time pass that a change bears another time."""
    time.sleep(0.15)


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Path:
    """An empty cache, and a process that has hashed nothing yet."""
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_hashed", {})
    return tmp_path / "cache"


def as_another_process(monkeypatch) -> None:
    monkeypatch.setattr(cache, "_hashed", {})


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    settle()
    return path


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("TUNEMATH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tunemath"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tunemath"


def test_a_file_is_read_again_only_when_it_changes(fresh, weights, monkeypatch):
    first = file_hash(weights)
    as_another_process(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "hash_file", lambda path: pytest.fail("read again"))
        assert file_hash(weights) == first
    weights.write_bytes(b"Weights")
    assert file_hash(weights) != first


def test_a_change_that_keeps_size_and_time_is_noticed(fresh, weights, monkeypatch):
    first, stat = file_hash(weights), weights.stat()
    weights.write_bytes(b"weighty")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (weights.stat().st_mtime_ns, weights.stat().st_size) == (stat.st_mtime_ns, stat.st_size)
    assert file_hash(weights) != first
    as_another_process(monkeypatch)
    assert file_hash(weights) != first


def test_a_file_put_in_another_s_place_is_noticed(fresh, weights):
    """As `rsync -t` and restored backups do: another inode, the same size and time."""
    first, stat = file_hash(weights), weights.stat()
    other = weights.with_name("other")
    other.write_bytes(b"weighty")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, weights)
    assert file_hash(weights) != first


def test_what_is_read_anew_is_not_remembered_from_before(fresh, weights, monkeypatch):
    """A failing disk changes nothing that marks a file; here its memory is forged instead."""
    truth = file_hash(weights)
    memory = fresh / "hashes.json"
    memory.write_text(memory.read_text().replace(truth, "0" * 64))
    as_another_process(monkeypatch)
    assert file_hash(weights) == "0" * 64
    as_another_process(monkeypatch)
    assert file_hash(weights, anew=True) == truth
    assert file_hash(weights) == truth  # and so for the rest of the process


def test_a_change_within_the_same_tick_is_noticed(fresh, weights):
    """Times are as coarse as the kernel's clock: two writes at once may bear the same."""
    for content in (b"one", b"two", b"six"):
        weights.write_bytes(content)
        first = file_hash(weights)
        weights.write_bytes(content[::-1])
        assert file_hash(weights) != first


def test_one_file_has_one_place_in_the_memory(fresh, weights, monkeypatch):
    for content in (b"a", b"bb", b"ccc"):
        weights.write_bytes(content)
        settle()
        file_hash(weights)
    assert list(json.loads((fresh / "hashes.json").read_text())) == [str(weights.resolve())]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\xff", '{"a": "older"}', "[" * 10**5])
def test_a_damaged_memory_is_written_again(fresh, weights, monkeypatch, content):
    expected = file_hash(weights)
    (fresh / "hashes.json").write_text(content, "latin-1")
    as_another_process(monkeypatch)
    assert file_hash(weights) == expected
    assert len(json.loads((fresh / "hashes.json").read_text())) == 1


def test_what_is_kept_is_recalled_by_its_kind_and_key(fresh, tmp_path):
    assert recall("blueprints", "k") is None
    keep("blueprints", "k", "text")
    assert (recall("blueprints", "k"), recall("traces", "k")) == ("text", None)
    keep("blueprints", "k", "other", tmp_path / "own")
    assert recall("blueprints", "k", tmp_path / "own") == "other"
    (fresh / "blueprints/k.json").write_bytes(b"\xff")
    assert recall("blueprints", "k") is None


@pytest.mark.parametrize("place", ["/proc/nothing/cache", "/dev/null/cache", "/dev/full"])
def test_a_cache_that_cannot_be_is_missed_without_harm(monkeypatch, weights, place):
    if not Path(place).parent.parent.exists():
        pytest.skip(f"{place} is of Linux")
    monkeypatch.setenv("TUNEMATH_CACHE", place)
    monkeypatch.setattr(cache, "_hashed", {})
    found = file_hash(weights)
    as_another_process(monkeypatch)
    assert file_hash(weights) == found
    keep("blueprints", "k", "text")
    assert recall("blueprints", "k") is None


def nobody(*args: object) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_who_has_no_home_is_told_only_where_a_cache_is_needed(monkeypatch, weights, tiny_model):
    monkeypatch.delenv("TUNEMATH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(cache, "_hashed", {})
    with pytest.raises(StorageError, match=r"no home folder.*TUNEMATH_CACHE"):
        cache_folder()
    file_hash(weights)
    keep("traces", "k", "text")
    assert recall("traces", "k") is None
    resolve_model(ModelChoice(id=str(tiny_model))).weights_hash()


@pytest.mark.parametrize("place", ["file/cache", "/proc/cache"])
def test_where_the_packaged_model_cannot_be_converted_the_variable_is_named(
    monkeypatch, tmp_path, place
):
    (tmp_path / "file").write_text("")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / place))
    with pytest.raises(StorageError, match=r"541 MB.*Set TUNEMATH_CACHE to a folder"):
        resolve_model(ModelChoice())


AS_NOBODY = """
import pwd
def unknown(user):
    raise KeyError("getpwuid(): uid not found: 54321")
pwd.getpwuid = unknown
"""
HOMES = ["a file", "below a file", "missing", "read-only", "/proc", "no HOME, unknown user"]


@pytest.fixture
def environment(tmp_path):
    """Return the environment of a process whose home can't be written, in one of several ways."""
    mounted = []

    def make(kind: str) -> dict[str, str]:
        chosen = ("TUNEMATH_CACHE", "XDG_CACHE_HOME", "HOME", "USER", "LOGNAME", "USERNAME")
        clean = {name: value for name, value in os.environ.items() if name not in chosen}
        (tmp_path / "file").write_text("")
        home = tmp_path / "home"
        if kind == "a file":
            home = tmp_path / "file"
        elif kind == "below a file":
            home = tmp_path / "file/home"
        elif kind == "missing":
            home = Path("/proc/1/nothing")
        elif kind == "/proc":
            home = Path("/proc")
        elif kind == "read-only":
            home.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", str(home)]
            if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("only root may mount a read-only home, and not everywhere")
            mounted.append(home)
        return clean if kind.startswith("no HOME") else {**clean, "HOME": str(home)}

    yield make
    for home in mounted:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="homes as Linux has them")
@pytest.mark.parametrize("kind", HOMES)
@pytest.mark.parametrize(
    "command", [["plan", "--json"], pytest.param(["run"], marks=pytest.mark.slow)], ids=" ".join
)
def test_a_home_that_cannot_be_written_stops_no_command(tiny_job, tmp_path, environment, kind,
                                                        command):  # fmt: skip
    code = "import sys; from tunemath.cli import main; main(sys.argv[1:])"
    if kind.startswith("no HOME"):
        code = AS_NOBODY + code
    done = subprocess.run(
        [sys.executable, "-c", code, *command, str(tiny_job), "--runs", str(tmp_path / "runs")],
        env=environment(kind),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_a_name_that_is_no_utf_8_is_hashed_and_not_remembered(fresh, tmp_path):
    folder = tmp_path / "caf\udce9"
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    (folder / "a").write_bytes(b"weights")
    assert file_hash(folder / "a") == hashlib.sha256(b"weights").hexdigest()
    keep("traces", "caf\udce9", "text")


def test_a_file_that_is_gone_is_forgotten(fresh, weights):
    file_hash(weights)
    other = weights.with_name("other")
    other.write_bytes(b"x")
    weights.unlink()
    settle()
    file_hash(other)
    known = json.loads((fresh / "hashes.json").read_text("utf-8"))
    assert [*known] == [str(other)]
