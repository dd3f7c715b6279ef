"""What must hold for every report and every database of a run."""

from __future__ import annotations

BALANCE = """
    SELECT worker, wall, total FROM (
        SELECT worker, wall, list_sum([productive, data_wait, validation, checkpoint, startup, waiting, rescale_unwind,
            rescale_group, rescale_state, rescale_wrap, rescale_first_step, lost]) AS total FROM goodput
    ) WHERE abs(total - wall) > 0.01 * wall
"""

LOOK = """(() => ({
    charts: [...document.querySelectorAll(".chart")].map((chart) => ({
        title: chart.parentElement.querySelector("h2").textContent,
        marks: chart.querySelectorAll(".cartesianlayer .point, .cartesianlayer .js-line").length,
        width: chart.querySelector(".main-svg") ? chart.querySelector(".main-svg").getBoundingClientRect().width : 0,
    })),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    wide: [...document.querySelectorAll("body *")].filter((node) => !node.closest(".scroll, svg")
        && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((node) => node.outerHTML.slice(0, 80)),
    small: [...document.querySelectorAll("p, td, th, .label, button")].filter(
        (node) => parseFloat(getComputedStyle(node).fontSize) < 12).length,
    theme: document.documentElement.dataset.theme,
    text: document.body.innerText,
}))()"""
"""What must be right about a page, asked of the page itself."""

TITLES = [
    "Workers and generations", "Loss", "Validation", "Throughput", "Where the time went", "Pauses by phase",
]  # fmt: skip
"""Of the charts of a run with rescales and validations, in order."""
