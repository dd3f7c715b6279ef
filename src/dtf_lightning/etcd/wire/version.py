"""This module knows which releases of etcd this package works with, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.errors import SettingsError


class Support(Enum):
    FULL = "supported"
    LOCAL = "for local runs and tests only"
    """It works, but the release has known defects that can lose or reorder data when members crash."""
    NONE = "too old"


@dataclass(frozen=True, slots=True, order=True)
class EtcdVersion:
    major: int
    minor: int
    patch: int

    @property
    def support(self) -> Support:
        # 3.5.0 to 3.5.2 could corrupt data when a member crashed under load; until 3.5.8 a progress reply could overtake
        # events (etcd #15220). 3.5.13 and 3.4.22 are the oldest that we have reason to trust on a cluster.
        if self < EtcdVersion(3, 4, 0):
            return Support.NONE
        oldest_sound = EtcdVersion(3, 4, 22) if (self.major, self.minor) == (3, 4) else EtcdVersion(3, 5, 13)
        return Support.FULL if self >= oldest_sound else Support.LOCAL

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def parse_version(text: str) -> EtcdVersion:
    """Return the version in etcd's words, such as `3.5.13` or `3.6.0-rc.0`. Raises `SettingsError` for anything else."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise SettingsError(f"a server that says it runs version {text!r} is not an etcd; expected one like 3.5.13")
    return EtcdVersion(*map(int, match.groups()))


def version_warning(version: EtcdVersion) -> str | None:
    """Return what to tell the user about a version that works but is not sound; `None` if it is."""
    if version.support is not Support.LOCAL:
        return None
    return (
        f"etcd {version} is for local runs and tests only: releases below 3.5.13 (or 3.4.22) can lose data when a "
        "member crashes. Use 3.5.13 or newer for real runs."
    )


def version_advice(version: EtcdVersion) -> list[tuple[str, str]]:
    """Return what a farm's operator has to know of a version: pairs of what is wrong with it, and what to do."""
    found = []
    if EtcdVersion(3, 5, 0) <= version <= EtcdVersion(3, 5, 2):
        told = "members that are killed under load can lose consistency (etcd #13766)"
        found.append((told, "use 3.5.13 or newer wherever results matter, and always with several members"))
    elif version.support is Support.LOCAL:
        told = "it can lose or reorder data when a member crashes"
        found.append((told, "use 3.5.13 or newer, or 3.4.22 or newer of 3.4"))
    fixed = {(3, 4): 42, (3, 5): 28, (3, 6): 9}.get((version.major, version.minor))
    if version < EtcdVersion(3, 4, 0) or (fixed is not None and version.patch < fixed):
        told = (
            "permissions of etcd's users do not hold inside nested transactions (CVE-2026-33343): whoever may speak to it may "
            "read and write all of it"
        )
        found.append((told, "let nobody but coordinators reach it, or use 3.4.42, 3.5.28, 3.6.9 or newer"))
    return found
