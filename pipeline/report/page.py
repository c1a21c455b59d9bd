"""The report: one HTML file that needs nothing else, not even a network."""

from pipeline.report import sections
from pipeline.report.html import Markup, el
from pipeline.report.inputs import Inputs


def page(inputs: Inputs) -> str:
    """Return the whole page."""
    agent = inputs.results["protocol"].get("agent", {}).get("name", "policy")
    title = f"{inputs.experiment}: {inputs.results['suite']}, {agent}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Markup(sections.style())),
    )
    body = el(
        "body",
        el("header", el("h1", inputs.experiment), el("p", f"{agent} on {inputs.results['suite']}, LIBERO simulator")),
        el(
            "main",
            sections.headline(inputs),
            sections.per_task(inputs),
            sections.conditions(inputs),
            sections.episodes(inputs),
            sections.learning(inputs),
            sections.overfit(inputs),
            sections.expert(inputs),
            sections.time_spent(inputs),
            sections.provenance(inputs),
        ),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"
