"""A run's products as records and data frames, for whoever works with them in Python.

The products stay what a run is judged by; these records are what most readers want of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunemath.contract import FineTune
from tunemath.errors import ContractError, RunError
from tunemath.findings import Finding, Status, Verdict
from tunemath.storage import read_json, read_jsonl

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Answer",
    "ArmScore",
    "LoggedStep",
    "Movement",
    "PairedDifference",
    "Results",
    "holds_another",
    "products_in",
]


Made = TypeVar("Made")


@dataclass(frozen=True)
class ArmScore:
    """The share of items that an arm answers rightly, with its 95 % interval."""

    arm: str
    set: str
    score: float
    low: float
    high: float
    correct: int
    items: int


@dataclass(frozen=True)
class PairedDifference:
    """How much more often the tuned model is right than another arm, on the same items."""

    set: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int


@dataclass(frozen=True)
class Answer:
    """What an arm answered to an item; ``score`` is 1 where it is right."""

    arm: str
    set: str
    id: str
    prompt: str
    reference: str
    output: str
    score: int
    finished: bool


@dataclass(frozen=True)
class LoggedStep:
    """An optimizer step: its loss in nats, its rate, its gradient's norm; of DPO the margin too."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    margin: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Movement:
    """KL(tuned ‖ base) where the model answers, in nats per answer token, with its interval."""

    set: str
    kl: float
    low: float
    high: float
    positions: int
    rows: int


class Results:
    """What a run found, read from its folder when it is asked for.

    Raises `RunError` where the stage that finds it has not been run, or ran for another contract.
    """

    TABLES = ("scores", "differences", "findings", "items", "log", "movement")

    def __init__(self, folder: Path, contract: FineTune) -> None:
        self.folder, self._contract = folder, contract

    @property
    def verdict(self) -> Verdict:
        """The worst required finding; ``verdict.exit_code`` is the command's."""
        return Verdict(self._product("checklist", "check")["verdict"])

    @property
    def scores(self) -> tuple[ArmScore, ...]:
        """Every arm's score on every set of items."""
        arms = self._product("scorecard", "check")["arms"]
        return tuple(
            _made(ArmScore, found, arm=arm, set=name)
            for arm, sets in arms.items()
            for name, found in sets.items()
            if found
        )

    @property
    def differences(self) -> tuple[PairedDifference, ...]:
        """The paired differences of the tuned model from each other arm."""
        sets = self._product("scorecard", "check")["differences"]
        return tuple(
            _made(PairedDifference, found, set=name, other=pair.removeprefix("tuned - "))
            for name, pairs in sets.items()
            for pair, found in (pairs or {}).items()
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What every check said."""
        found = self._product("checklist", "check")["findings"]
        return tuple(
            _made(Finding, each, status=Status(each["status"]), covers=tuple(each["covers"]))
            for each in found
        )

    @property
    def items(self) -> tuple[Answer, ...]:
        """Every arm's answer to every item: of the base before training, of all three after it."""
        arms = dict(self._product("baselines", "baselines")["arms"])
        if (self.folder / "evaluation.json").is_file():
            arms |= self._product("evaluation", "evaluate")["arms"]
        return tuple(self._answers(arms))

    @property
    def log(self) -> tuple[LoggedStep, ...]:
        """Every optimizer step."""
        return tuple(_made(LoggedStep, each) for each in self._product("training", "train")["log"])

    @property
    def movement(self) -> tuple[Movement, ...]:
        """How far the tuned model is from its base, on every set of items."""
        found = self._product("movement", "movement")
        sets = [name for name in ("task", "retention") if found.get(name)]
        return tuple(_made(Movement, found[name], set=name) for name in sets)

    def frame(self, table: str) -> pandas.DataFrame:
        """Return one of `Results.TABLES` as a pandas data frame, a row a record."""
        if table not in self.TABLES:
            raise RunError(f"no table {table!r}; expected one of {', '.join(self.TABLES)}")
        try:
            import pandas
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "a data frame needs pandas; install it with: pip install pandas", name="pandas"
            ) from None
        return pandas.DataFrame([asdict(record) for record in getattr(self, table)])

    def __repr__(self) -> str:
        return f"<Results of {self.folder}: {', '.join(self.TABLES)}>"

    def _repr_html_(self) -> str:
        from tunemath.report import run_card

        return run_card(products_in(self.folder, self._contract), self.folder)

    def _answers(self, arms: Mapping[str, Any]) -> Iterator[Answer]:
        for arm, sets in arms.items():
            for name, found in sets.items():
                for row in read_jsonl(self.folder / found["file"]) if found else ():
                    yield _made(Answer, row, arm=arm, set=name)

    def _product(self, name: str, stage: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if holds_another(self.folder, self._contract):
            raise RunError(
                f"{self.folder} holds the results of another contract; `tunemath.advance(run)` "
                "finds this one's"
            )
        if not path.is_file():
            raise RunError(
                f"{self.folder} has no {path.name} yet; `tunemath.advance(run, {stage!r})` makes it"
            )
        return read_json(path)


def products_in(folder: Path, contract: FineTune) -> dict[str, Any]:
    """Return the products that a run's folder has of a contract, by name, for a view of them."""
    found: dict[str, Any] = {"contract": contract.resolved()}
    if not holds_another(folder, contract):
        for name in ("manifest", "baselines", "evaluation", "scorecard", "checklist", "plan"):
            if (folder / f"{name}.json").is_file():
                found[name] = read_json(folder / f"{name}.json")
    return found


def holds_another(folder: Path, contract: FineTune) -> bool:
    """Whether a run's folder was last used for another contract than the one that is given."""
    saved = folder / "contract.yaml"
    try:
        return saved.is_file() and FineTune.load(saved) != contract
    except ContractError:
        return True


def _made(kind: type[Made], found: Mapping[str, Any], **more: Any) -> Made:
    """Return a record from the keys of a product that it has."""
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{**{key: found[key] for key in names & found.keys()}, **more})
