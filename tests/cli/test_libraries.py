"""Libraries that are not there, or do not go together, are named: that is no fault of ours."""

from __future__ import annotations

import pytest

from tunemath.cli import app, main
from tunemath.extras import install_command


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"),
         f"this command needs torch; run: {install_command('train')}"),
        (ModuleNotFoundError("No module named 'nbformat'", name="nbformat"),
         f"this command needs nbformat; run: {install_command('learn')}"),
        (ImportError("cannot import name 'A' from 'huggingface_hub'", name="huggingface_hub"),
         "do not go together: cannot import name 'A' from 'huggingface_hub'; run: pip install "
         "--upgrade"),
        (ImportError("tokenizers>=0.23.1 is required, but found tokenizers==0.22.0"),
         "do not go together: tokenizers>=0.23.1 is required, but found tokenizers==0.22.0"),
        (ModuleNotFoundError("No module named 'peft.x'", name="peft.x"),
         "do not go together: No module named 'peft.x'"),
    ],
)  # fmt: skip
def test_they_are_named_with_what_to_install(monkeypatch, capsys, error, said):
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_module_of_ours_that_is_not_there_is_a_fault_of_ours(monkeypatch, capsys):
    def fail(**options: object) -> None:
        raise ModuleNotFoundError("No module named 'tunemath.x'", name="tunemath.x")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 70
    assert "No module named 'tunemath.x'" in capsys.readouterr().err
