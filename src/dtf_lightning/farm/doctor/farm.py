"""Looks at a farm from where it runs, and says of what is wrong what to do.

What is looked at is gathered first; what follows from it is decided by pure functions, one for each check.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from dtf_lightning import __version__
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.etcd.wire.version import parse_version, version_advice
from dtf_lightning.farm.doctor.findings import Finding, Level
from dtf_lightning.farm.home import FarmAddress, FarmHome, FarmNotFound, find_farm
from dtf_lightning.farm.http import Connection, FarmRefused, FarmUntrusted
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.farm.settings.coordinator import SKEW
from dtf_lightning.farm.tokens import read_token

PATIENCE = 2.0
"""Seconds for which a coordinator is asked."""
CLOCK = 5.0
"""Seconds of difference between two clocks that are worth a word; the answer's time has whole seconds."""
FREE, FREE_SHARE = 1 << 30, 0.05
"""Bytes, and the share of a disk, below which it is nearly full."""
MEBIBYTE = 1 << 20


def examine(url: str | None = None, token_file: Path | None = None, ca: Path | None = None) -> list[Finding]:
    """Check the farm that is meant, as `find_farm` finds it. Raises nothing for what may be wrong with it."""
    home = FarmHome.default()
    findings = [*check_home(home.folder), *check_disk(home.folder)]
    try:
        address = find_farm(url, token_file, Trust(ca=ca))
    except (FarmNotFound, SettingsError) as error:
        return [
            *findings,
            Finding(what="address", level=Level.BAD, told=str(error), remedy="run `dtf farm up`, or give --farm"),
        ]
    findings += check_token(address.token_file)
    findings += _ask_coordinators(address)
    return findings


def _ask_coordinators(address: FarmAddress) -> Iterator[Finding]:
    try:
        token = read_token(address.token_file)
    except SettingsError:
        return  # that is told already
    answered = False
    for url in address.urls:
        connection = Connection((url,), token, patience=PATIENCE, trust=address.trust)
        try:
            answer, chunks = connection.stream("/api/status")
            status = _parsed(b"".join(chunks))
        except FarmRefused as refusal:
            remedy = f"the token in {address.token_file} is not that of this farm" if refusal.status == 401 else ""
            yield Finding(what=f"coordinator {url}", level=Level.BAD, told=str(refusal), remedy=remedy)
            continue
        except FarmUntrusted as error:
            yield Finding(what=f"coordinator {url}", level=Level.BAD, told=str(error))  # which says what to do
            continue
        except (DtfError, OSError, ValueError) as error:
            remedy = "start it (`dtf farm up`, `dtf farm coordinator`), or mend the address (--farm, $DTF_FARM_URL)"
            yield Finding(what=f"coordinator {url}", level=Level.BAD, told=str(error), remedy=remedy)
            continue
        finally:
            connection.close()
        yield from check_coordinator(url, status)
        yield from check_clock(url, answer.headers.get("Date"), time.time())
        if not answered:
            yield from check_etcd((status.get("room") or {}).get("etcd") or {})
        answered = True


def _parsed(text: bytes) -> dict[str, Any]:
    import json

    told: dict[str, Any] = json.loads(text)
    return told


# --- the checks ------------------------------------------------------------------------------------------------------


def check_home(folder: Path) -> Iterator[Finding]:
    """Whether others may look into the farm's home."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        yield Finding(what="home", level=Level.GOOD, told=f"{folder} is not there: no farm was started here")
        return
    except OSError as error:
        yield Finding(
            what="home",
            level=Level.BAD,
            told=f"{folder} cannot be looked at: {error.strerror}",
            remedy=f"ls -ld {folder}",
        )
        return
    if status.st_uid != os.geteuid():
        told = f"{folder} belongs to user {status.st_uid}, and you are {os.geteuid()}"
        yield Finding(
            what="home", level=Level.BAD, told=told, remedy="run as its owner, or give another with $DTF_FARM_HOME"
        )
    elif status.st_mode & 0o077:
        told = f"others may look into {folder} (mode {stat.S_IMODE(status.st_mode):o})"
        yield Finding(what="home", level=Level.WARNING, told=told, remedy=f"chmod 700 {folder}")
    else:
        yield Finding(what="home", level=Level.GOOD, told=f"{folder} is its owner's alone")


def check_token(path: Path) -> Iterator[Finding]:
    """Whether the token is there, and its owner's alone."""
    try:
        read_token(path)
    except SettingsError as error:
        remedy = f"chmod 600 {path}" if path.exists() else "copy it from the farm's home, or give --token-file"
        yield Finding(what="token", level=Level.BAD, told=str(error), remedy=remedy)
    else:
        yield Finding(what="token", level=Level.GOOD, told=f"{path} is its owner's alone")


def check_disk(folder: Path) -> Iterator[Finding]:
    """Whether there is room where the farm keeps its things."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    told = f"{usage.free / (1 << 30):.1f} GiB of {usage.total / (1 << 30):.1f} GiB are free at {folder}"
    if usage.free < FREE or usage.free < FREE_SHARE * usage.total:
        remedy = "make room, or keep less: `retention` and `artifacts.url` in coordinator.yaml, `execution.cache_limit` in worker.yaml"
        yield Finding(what="disk", level=Level.WARNING, told=told, remedy=remedy)
    else:
        yield Finding(what="disk", level=Level.GOOD, told=told)


def check_coordinator(url: str, status: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether it is of this release, somebody leads, and there are workers."""
    what, version = f"coordinator {url}", status.get("version")
    if version != __version__:
        told = f"it runs dtf-lightning {version}, and this is {__version__}"
        yield Finding(
            what=what, level=Level.WARNING, told=told, remedy="install the same release on all machines of the farm"
        )
    else:
        yield Finding(what=what, level=Level.GOOD, told=f"it answers, and runs dtf-lightning {version}")
    if not status.get("leader"):
        remedy = "look at etcd below: nobody is elected while it has no quorum, or its alarm for space is on"
        yield Finding(what="leader", level=Level.BAD, told="nobody leads: nothing is started", remedy=remedy)
    if not status.get("workers"):
        remedy = "start one: `dtf farm worker --coordinator URL --token-file FILE`"
        yield Finding(what="workers", level=Level.WARNING, told="there are none: nothing can run", remedy=remedy)


def check_clock(url: str, date: str | None, now: float) -> Iterator[Finding]:
    """Whether this machine's clock is that of a coordinator. `date`: of its answer, `now`: seconds since the epoch."""
    if date is None:
        return
    try:
        apart = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return
    told = f"this machine's is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} that of {url}"
    remedy = "set both by NTP (`timedatectl set-ntp true`)"
    if abs(apart) > SKEW:
        told += f": tasks that are submitted here are refused beyond {SKEW:.0f} s"
        yield Finding(what="clock", level=Level.BAD, told=told, remedy=remedy)
    elif abs(apart) > CLOCK:
        yield Finding(what="clock", level=Level.WARNING, told=told, remedy=remedy)
    else:
        yield Finding(what="clock", level=Level.GOOD, told=f"it is that of {url}")


def check_etcd(etcd: Mapping[str, Any]) -> Iterator[Finding]:
    """Members, quorum, versions, alarms and size, as a coordinator has seen them (`room.etcd` of its status)."""
    members: Sequence[Mapping[str, Any]] = etcd.get("members") or []
    away: Mapping[str, str] = etcd.get("unreachable") or {}
    if etcd.get("problem"):
        remedy = "is etcd running, and does the coordinator's `etcd.endpoint` name it?"
        yield Finding(what="etcd", level=Level.BAD, told=str(etcd["problem"]), remedy=remedy)
    if not members:
        return
    total = len(members) + len(away)
    if len(members) <= total // 2:
        told = f"{len(members)} of {total} members answer, {total // 2 + 1} are the quorum"
        yield Finding(what="etcd", level=Level.BAD, told=told, remedy=f"start {', '.join(away)} again")
    elif away:
        told = f"{len(members)} of {total} members answer; missing: {', '.join(away)}"
        yield Finding(
            what="etcd", level=Level.WARNING, told=told, remedy="start them again: one more that fails stops the farm"
        )
    else:
        yield Finding(what="etcd", level=Level.GOOD, told=f"{total} of {total} members answer")
    for version in sorted({str(member["version"]) for member in members}):
        yield from _check_version(version)
    if etcd.get("alarm"):
        remedy = "a coordinator switches it off once there is room; where it stays, end tasks, shorten `retention`, or raise the quota"
        yield Finding(what="etcd's alarm", level=Level.BAD, told=str(etcd.get("refuses")), remedy=remedy)
    elif etcd.get("refuses"):
        remedy = "shorten `retention`, or raise etcd's --quota-backend-bytes and `etcd.quota`"
        yield Finding(what="etcd's size", level=Level.BAD, told=str(etcd["refuses"]), remedy=remedy)
    if etcd.get("ids"):
        yield Finding(
            what="etcd's size", level=Level.WARNING, told="the ids of archived tasks fill it", remedy=str(etcd["ids"])
        )


def _check_version(version: str) -> Iterator[Finding]:
    try:
        advice = version_advice(parse_version(version))
    except SettingsError:
        return  # the in-memory twin
    for told, remedy in advice:
        yield Finding(what=f"etcd {version}", level=Level.WARNING, told=told, remedy=remedy)
    if not advice:
        yield Finding(what=f"etcd {version}", level=Level.GOOD, told="no defect is known that matters to a farm")
