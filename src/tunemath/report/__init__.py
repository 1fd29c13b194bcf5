"""Scorecard, checklist and figures as terminal text, HTML and a model card.

The report reads plain evidence (the JSON that the stages of a run wrote) and runs no model. What
is absent is said to be not measured.

The names below are loaded when first used: a table needs no matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunemath.lazy import lazy_names

if TYPE_CHECKING:
    from tunemath.report.card import (
        model_card,
    )
    from tunemath.report.code import (
        example_code,
        loading_code,
    )
    from tunemath.report.curves import (
        rank_figures,
    )
    from tunemath.report.html import (
        html_report,
    )
    from tunemath.report.ledger import (
        ledger_view,
    )
    from tunemath.report.notebook import (
        run_card,
        run_line,
    )
    from tunemath.report.ranks import (
        rank_advice,
        rank_page,
        rank_view,
    )
    from tunemath.report.spectra import (
        spectra_page,
        spectra_view,
    )
    from tunemath.report.stages import (
        arms_view,
        artefact_view,
        training_view,
    )
    from tunemath.report.svg import (
        standalone_svg,
    )
    from tunemath.report.terminal import (
        checklist_view,
        mask_view,
        movement_view,
        plan_view,
        scorecard_view,
        spectrum_view,
        stopped_view,
        summary_view,
        unpassed_view,
    )

__all__ = [
    "arms_view",
    "artefact_view",
    "checklist_view",
    "example_code",
    "html_report",
    "ledger_view",
    "loading_code",
    "mask_view",
    "model_card",
    "movement_view",
    "plan_view",
    "rank_advice",
    "rank_figures",
    "rank_page",
    "rank_view",
    "run_card",
    "run_line",
    "scorecard_view",
    "spectra_page",
    "spectra_view",
    "spectrum_view",
    "standalone_svg",
    "stopped_view",
    "summary_view",
    "training_view",
    "unpassed_view",
]

_HOMES = {
    "arms_view": "stages",
    "artefact_view": "stages",
    "checklist_view": "terminal",
    "example_code": "code",
    "html_report": "html",
    "ledger_view": "ledger",
    "loading_code": "code",
    "mask_view": "terminal",
    "model_card": "card",
    "movement_view": "terminal",
    "plan_view": "terminal",
    "rank_advice": "ranks",
    "rank_figures": "curves",
    "rank_page": "ranks",
    "rank_view": "ranks",
    "run_card": "notebook",
    "run_line": "notebook",
    "scorecard_view": "terminal",
    "spectra_page": "spectra",
    "spectra_view": "spectra",
    "spectrum_view": "terminal",
    "standalone_svg": "svg",
    "stopped_view": "terminal",
    "summary_view": "terminal",
    "training_view": "stages",
    "unpassed_view": "terminal",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
