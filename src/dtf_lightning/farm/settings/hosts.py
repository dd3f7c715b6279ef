"""Which places are one machine's own, and whether coordinators on several hosts can find each other's files. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def is_remote(url: str) -> bool:
    """Whether a place is no path of this machine."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> Path:
    """Return the path that a place is which is not remote."""
    return Path(url.removeprefix("file://"))


def local_files_refusal(host: str, others: Mapping[str, str], local: Mapping[str, str], *, shared: bool) -> str:
    """Return why a coordinator must not join, and what to write; "" where it may.

    Args:
        host: this machine's name.
        others: coordinator -> its host, as far as it says so.
        local: key of a setting -> the path of this machine that it names.
        shared: whether the settings say that these paths are the same folders on all hosts.
    """
    elsewhere = {name: other for name, other in others.items() if other not in ("", host)}
    if shared or not elsewhere or not local:
        return ""
    name, other = sorted(elsewhere.items())[0]
    keys = ", ".join(f"`{key}` ({path})" for key, path in sorted(local.items()))
    return (
        f"the coordinator {name} of this farm runs on {other}, and this one on {host}: what one of them stores on a disk of its "
        f"own the other cannot serve. These are paths of this host: {keys}. Mount one folder on all hosts and write "
        "`farm: {folder: THAT, shared: true}` into the coordinator.yaml of each; `url` of the sections `artifacts` and `archive` may "
        "be any fsspec URL, such as s3://BUCKET/FOLDER"
    )
