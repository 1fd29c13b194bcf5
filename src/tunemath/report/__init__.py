"""Scorecard, checklist and figures as terminal text, HTML and a model card.

The report reads plain evidence (the JSON that the stages of a run wrote) and runs no model. What
is absent is said to be not measured.
"""

from __future__ import annotations

from tunemath.report.card import model_card
from tunemath.report.code import example_code, loading_code
from tunemath.report.figures import Figure, figures
from tunemath.report.html import html_report
from tunemath.report.stages import arms_view, training_view
from tunemath.report.terminal import (
    checklist_view,
    mask_view,
    movement_view,
    plan_view,
    scorecard_view,
    spectrum_view,
    summary_view,
)

__all__ = [
    "Figure",
    "arms_view",
    "checklist_view",
    "example_code",
    "figures",
    "html_report",
    "loading_code",
    "mask_view",
    "model_card",
    "movement_view",
    "plan_view",
    "scorecard_view",
    "spectrum_view",
    "summary_view",
    "training_view",
]
