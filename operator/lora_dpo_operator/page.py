"""The read-only page: all jobs, and one job, as HTML.

Pure: from statuses to text. Every word of a status may come from a stranger; the templates escape all of them.
"""

from __future__ import annotations

import datetime
import importlib.resources
import urllib.parse
from collections.abc import Mapping

import jinja2

from lora_dpo_api import durations
from lora_dpo_api.protocol import Metrics
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus, PhaseTime
from lora_dpo_operator import curves, drawing, overview
from lora_dpo_operator.overview import Key, Question

ROOT = "/ui"
REFRESH_SECONDS = 10
"""For readers who ask the page to follow; by itself it stays as it is, so that nobody loses their place."""

_METRICS = (
    ("loss", "Loss"),
    ("reward_margin", "Reward margin"),
    ("accuracy", "Accuracy"),
    ("eval_loss", "Held-out loss"),
    ("eval_accuracy", "Held-out accuracy"),
    ("margin_policy", "Policy margin"),
    ("margin_ref", "Reference margin"),
    ("chosen_reward", "Chosen reward"),
    ("rejected_reward", "Rejected reward"),
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm"),
    ("tokens_per_second", "Tokens/s"),
    ("mfu", "MFU"),
)
_TONES = {
    JobPhase.RUNNING: "busy",
    JobPhase.EXPORTING: "busy",
    JobPhase.RESTARTING: "warn",
    JobPhase.SUSPENDED: "warn",
    JobPhase.FAILED: "bad",
    JobPhase.SUCCEEDED: "good",
}


def style() -> str:
    """The style sheet."""
    return (importlib.resources.files(__package__) / "templates" / "page.css").read_text(encoding="utf-8")


def jobs(known: Mapping[Key, LoraDpoJobStatus], question: Question, *, follow: bool = False) -> str:
    """The list of jobs.

    Args:
        known: every job.
        question: what of it to show.
        follow: whether the page reads itself again and again.
    """
    page = overview.select(known, question)
    sparks = {key: drawing.spark(panels[0]) for key, status in page.rows if (panels := curves.panels(status.curve))}
    return _render("jobs.html", page=page, question=question, sparks=sparks, follow=follow, total=len(known))


def job(key: Key, status: LoraDpoJobStatus, now: datetime.datetime, *, follow: bool = False) -> str:
    """The story of one job."""
    values = status.metrics or Metrics()
    metrics = [(name, number(value)) for field, name in _METRICS if (value := getattr(values, field)) is not None]
    drawings = [drawing.draw(panel) for panel in curves.panels(status.curve)]
    phases = [(entry, _lasted(entry, now)) for entry in status.timeline]
    return _render(
        "job.html", key=key, status=status, metrics=metrics, drawings=drawings, phases=phases, follow=follow, now=now
    )


def missing(key: Key) -> str:
    """What is said of a job that isn't there."""
    return _render("missing.html", key=key, follow=False)


def elsewhere(leader: str) -> str:
    """What a replica says that knows no jobs."""
    return _render("elsewhere.html", leader=leader, follow=False)


def number(value: float | None) -> str:
    """A metric: 4 significant digits, large ones with thousands apart."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def link(question: Question, **changes: object) -> str:
    """The address of the list with changes to what was asked."""
    asked = {"q": question.words, "phase": question.phase or "", "page": question.page} | changes
    kept = {name: value for name, value in asked.items() if value not in ("", None, 1, False)}
    return f"{ROOT}?{urllib.parse.urlencode(kept)}" if kept else ROOT


def job_link(key: Key) -> str:
    """The address of a job."""
    return f"{ROOT}/{'/'.join(urllib.parse.quote(word, safe='') for word in key)}"


def _lasted(entry: PhaseTime, now: datetime.datetime) -> str:
    end = entry.ended or (None if entry.phase.finished else now)
    return durations.text((end - entry.started).total_seconds()) if end else ""


def _ago(moment: datetime.datetime, now: datetime.datetime) -> str:
    return f"{durations.text((now - moment).total_seconds())} ago"


def _clock(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _render(template: str, **values: object) -> str:
    return _TEMPLATES.get_template(template).render(**values)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals.update(
    ROOT=ROOT,
    REFRESH_SECONDS=REFRESH_SECONDS,
    WIDTH=drawing.WIDTH,
    HEIGHT=drawing.HEIGHT,
    LEFT=drawing.LEFT,
    RIGHT=drawing.RIGHT,
    ago=_ago,
    clock=_clock,
    job_link=job_link,
    link=link,
    number=number,
    phases_of=tuple(JobPhase),
    tone=lambda phase: _TONES.get(phase, "calm"),
)
