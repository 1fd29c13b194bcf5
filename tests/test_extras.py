"""The command that adds an extra is right for how this package was installed."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tunemath.extras import install_command


@pytest.fixture
def installed(monkeypatch):
    """Let pip have recorded that the package came from somewhere."""

    def installed(record):
        text = None if record is None else json.dumps(record)
        found = SimpleNamespace(read_text=lambda name: text)
        monkeypatch.setattr("tunemath.extras.distribution", lambda name: found)

    return installed


def test_from_an_index_the_name_is_enough(installed):
    installed(None)
    assert install_command("train") == "pip install 'tunemath[train]'"
    assert Requirement(shlex.split(install_command("train"))[2]).extras == {"train"}


def test_from_a_clone_it_is_the_clone(installed, tmp_path):
    folder = tmp_path / "my clone"
    folder.mkdir()
    record = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    installed(record)
    assert shlex.split(install_command("learn")) == ["pip", "install", "-e", f"{folder}[learn]"]
    installed({**record, "dir_info": {}})
    assert shlex.split(install_command("learn")) == ["pip", "install", f"{folder}[learn]"]
    folder.rmdir()
    assert install_command("learn") == "pip install '.[learn]' in the repository's folder"


def test_from_a_wheel_it_is_the_wheel(installed, tmp_path):
    wheel = tmp_path / "tunemath-1-py3-none-any.whl"
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert shlex.split(install_command("train")) == ["pip", "install", f"{wheel}[train]"]


def test_from_an_address_it_is_the_address(installed):
    installed({"url": "https://host/t.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    (wanted,) = shlex.split(install_command("train"))[2:]
    assert Requirement(wanted).url == "git+https://host/t.git@abc"
    installed({"url": "https://host/t.whl", "archive_info": {}})
    assert Requirement(shlex.split(install_command("train"))[2]).url == "https://host/t.whl"


def test_run_from_its_source_it_is_the_repository(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("tunemath.extras.distribution", absent)
    assert install_command("train") == "pip install '.[train]' in the repository's folder"
