"""The cluster as a page or as text. Pure; nothing of another host is needed to look at it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

NODE_FIELDS = ("node_id", "state", "enabled", "health_status", "uptime_seconds", "last_heartbeat", "address")
TERM_FIELDS = ("term", "leader_id", "start_time", "duration_seconds", "reason")

_STYLE = """
body{font:15px system-ui,sans-serif;margin:2em;color:#222;background:#fff}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:left}
.healthy{color:#1a7f37}.warning{color:#9a6700}.critical{color:#cf222e}.leader{font-weight:bold}.offline{color:#777}
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}td,th{border-color:#333}}
"""


def as_markdown(status: Mapping[str, Any], leader: Mapping[str, Any]) -> str:
    """Return the cluster as Markdown."""
    lines = [f"# Cluster: {status['cluster_health']}", "", _sentence(status), ""]
    lines += [f"- {reason}" for reason in status["reasons"]]
    for title, fields, rows in _tables(status, leader):
        lines += ["", f"## {title}", "", f"| {' | '.join(fields)} |", "|---" * len(fields) + "|"]
        lines += [f"| {' | '.join(_cell(row[name]).replace('|', chr(92) + '|') for name in fields)} |" for row in rows]
    return "\n".join(lines) + "\n"


def as_html(status: Mapping[str, Any], leader: Mapping[str, Any]) -> str:
    """Return the cluster as a page."""
    health = status["cluster_health"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Cluster: {health}</title><style>{_STYLE}</style>",
        f"<h1>Cluster: <span class={health}>{health}</span></h1><p>{escape(_sentence(status))}</p><ul>",
        *(f"<li>{escape(reason)}</li>" for reason in status["reasons"]),
        "</ul>",
    ]
    for title, fields, rows in _tables(status, leader):
        parts.append(f"<h2>{title}</h2><table><tr>{''.join(f'<th>{name}</th>' for name in fields)}</tr>")
        for row in rows:
            kinds = " ".join(str(row[name]) for name in ("state", "health_status") if name in row)
            parts.append(
                f'<tr class="{escape(kinds)}">{"".join(f"<td>{escape(_cell(row[name]))}</td>" for name in fields)}</tr>'
            )
        parts.append("</table>")
    return "".join(parts) + "</html>\n"


def _tables(
    status: Mapping[str, Any], leader: Mapping[str, Any]
) -> list[tuple[str, tuple[str, ...], list[Mapping[str, Any]]]]:
    return [
        ("Coordinators", NODE_FIELDS, status["nodes"]),
        ("Leaderships before", TERM_FIELDS, leader["leadership_history"]),
    ]


def _sentence(status: Mapping[str, Any]) -> str:
    who = status["leader_id"] or "nobody"
    since = f" since {status['term_start_time']}" if status["term_start_time"] else ""
    quorum = f"; {status['etcd_members_answering']} of {status['etcd_members']} members of etcd answer"
    return f"{who} leads{since}, term {status['current_term']}{quorum if status['etcd_members'] else ''}."


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
