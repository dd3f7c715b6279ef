"""Writes a run's account as one HTML file that needs nothing else: data, style, script and chart library are inlined."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from dtf_lightning.elastic.reports.text import LABELS, warnings
from dtf_lightning.errors import SettingsError


def page(accounts: Sequence[dict[str, Any]]) -> str:
    """Return the page of one run, or of several side by side.

    Raises `SettingsError` without plotly, whose script it inlines.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise SettingsError(
            "the HTML report draws with plotly, which is missing: pip install 'dtf-lightning[report]', or use "
            "--format text, md or json"
        ) from None
    data = {
        "labels": LABELS,
        "runs": [{**account, "warnings": warnings(account)} for account in accounts],
    }
    here = files("dtf_lightning.elastic.reports.page")
    parts = {
        "TITLE": html.escape(" and ".join(str(account["run"]["run"]) for account in accounts)),
        "STYLE": here.joinpath("report.css").read_text("utf-8"),
        # `</script>` in a string would end the script.
        "DATA": json.dumps(data, default=str).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": here.joinpath("report.js").read_text("utf-8"),
    }
    # One pass, so that what is put in is not looked at again.
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], here.joinpath("report.html").read_text("utf-8"))
