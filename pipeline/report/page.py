"""The report: one HTML file that needs nothing else, not even a network."""

from pipeline.report import sections
from pipeline.report.comparison import comparison
from pipeline.report.html import document, el
from pipeline.report.inputs import Inputs


def page(inputs: Inputs) -> str:
    """Return the whole page."""
    agent = inputs.results["protocol"].get("agent", {}).get("name", "policy")
    header = (el("h1", inputs.experiment), el("p", f"{agent} on {inputs.results['suite']}, LIBERO simulator"))
    main = (
        sections.headline(inputs),
        sections.per_task(inputs),
        sections.conditions(inputs),
        sections.episodes(inputs),
        sections.learning(inputs),
        sections.overfit(inputs),
        sections.expert(inputs),
        *(comparison(f"Compared: {name.replace('-', ' ')}", tree) for name, tree in inputs.comparisons.items()),
        sections.time_spent(inputs),
        sections.provenance(inputs),
    )
    return document(f"{inputs.experiment}: {inputs.results['suite']}, {agent}", header, main)
