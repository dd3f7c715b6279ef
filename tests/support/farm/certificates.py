"""A lab's authority, as `dtf farm cert` makes it, and certificates by it that are good, old or early."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from dtf_lightning.farm.security.authority import Issued, issue, make_authority
from dtf_lightning.farm.security.trust import Trust


class Lab:
    """The authority of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now = dt.datetime.now(dt.UTC)
        self.ca = make_authority(folder, name="lab", days=10, now=now - dt.timedelta(days=5)).cert

    @property
    def trust(self) -> Trust:
        return Trust(ca=self.ca)

    def issue(
        self, name: str = "farm", *hosts: str, days: float = 1.0, before: float = 0.0, client: bool = False
    ) -> Issued:
        """A certificate that was made some days before now, in place of the one that is there."""
        now = dt.datetime.now(dt.UTC) - dt.timedelta(days=before)
        hosts = hosts or ("localhost", "127.0.0.1")
        return issue(self.folder, name, hosts=hosts, client=client, days=days, now=now, replace=True)

    def client(self, name: str = "worker") -> Trust:
        made = self.issue(name, client=True)
        return Trust(ca=self.ca, cert=made.cert, key=made.key)


def tls_settings(issued: Issued) -> dict[str, str]:
    return {"security.tls_cert": str(issued.cert), "security.tls_key": str(issued.key)}
