"""`dtf report`: makes a page or a text from the folders of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dtf_lightning.elastic.reports.page.html import page
from dtf_lightning.elastic.reports.report_data import gather
from dtf_lightning.elastic.reports.run_folder import find_run
from dtf_lightning.elastic.reports.store import ResultsStore
from dtf_lightning.elastic.reports.text import Style, comparison, lines
from dtf_lightning.errors import SettingsError


def write_report(run_dirs: Sequence[Path], form: str, output: Path | None, *, width: int | None = None) -> str:
    """Write the report of one run, or of several side by side; return what to print: the page's path, or the text.

    Args:
        form: `html`, `text`, `md` or `json`.
        width: columns of the terminal that a text is to fit into; `None`: as wide as it takes.
        output: the file to write; `None` writes a page into the first run's folder, and a text nowhere.

    Raises `SettingsError` (no run's folder, newer events, plotly missing, the file cannot be written).
    """
    with ResultsStore() as store:
        accounts = [gather(store, store.sync(run_dir).run) for run_dir in run_dirs]
    match form:
        case "html":
            text, output = page(accounts), output or find_run(run_dirs[0]) / "report.html"
        case "json":
            text = json.dumps(accounts if len(accounts) > 1 else accounts[0], default=str, indent=2)
        case _:
            style = Style(markdown=form == "md", width=width)
            body = lines(accounts[0], style=style) if len(accounts) == 1 else None
            text = "\n".join(body or comparison(accounts, style=style))
    if output is None:
        return text
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"the report cannot be written to {output}: {error.strerror}; name a file with --output"
        ) from None
    return f"{output}"
