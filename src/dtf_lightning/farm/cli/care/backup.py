"""`dtf farm backup` and `dtf farm restore`."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands, add_connection
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.cli import serve
from dtf_lightning.farm.cli.options import add_farm_command, add_json

if TYPE_CHECKING:
    from dtf_lightning.etcd.store import Store
    from dtf_lightning.farm.backup.backup_file import Manifest
    from dtf_lightning.farm.backup.places import FarmPlaces
    from dtf_lightning.farm.home import FarmHome, RunningFarm

_OPTIONS = (
    *("farm_name", "folder", "archive", "token_file"),
    *("endpoint", "ca_cert", "cert", "key", "server_name", "user", "password_file"),
)
"""Of those of a coordinator."""


def add_backup(actions: Commands) -> None:
    """Add the commands."""
    backup = add_farm_command(
        actions,
        "backup",
        _backup,
        "write all that a farm knows into one file: what it has accepted, results and their archive, schedules, tokens",
    )
    backup.add_argument(
        "file", type=Path, metavar="FILE", help="or a folder that is there: then the file's name is by the time"
    )
    backup.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="of the backups of this farm in the folder keep the newest N, this one among them",
    )
    backup.add_argument(
        "--without-token",
        action="store_true",
        help="leave the farm's own token out: keep it elsewhere, or no token that the farm has signed is good after a restore",
    )
    backup.set_defaults(goes_on=True)
    _add_places(backup)

    restore = add_farm_command(
        actions,
        "restore",
        _restore,
        "put a backup into an etcd that has nothing of this farm, while no coordinator runs",
    )
    restore.add_argument("file", type=Path, metavar="FILE")
    restore.add_argument("--check", action="store_true", help="only read all of the file, and say what it holds")
    restore.add_argument(
        "--forget-tokens",
        action="store_true",
        help="end all tokens that the farm has signed: some may have been revoked since the backup",
    )
    restore.set_defaults(goes_on=False)
    _add_places(restore)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="coordinator.yaml; options win over it")
    parser.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="of a farm of `dtf farm up`: takes the place of all options below",
    )
    parser.add_argument("--farm-name", metavar="NAME", help="as for coordinator (default: farm)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="as for coordinator: of the farm's files")
    parser.add_argument("--archive", metavar="URL", help="as for coordinator (default: DIR/archive)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="as for coordinator: the farm's own token")
    add_json(parser)
    add_connection(parser)


def _backup(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.backup.making import make_backup
    from dtf_lightning.farm.backup.places import file_name, superfluous

    path, now = Path(arguments.file), time.time()
    if arguments.keep is not None and (arguments.keep < 1 or not path.is_dir()):
        raise SettingsError(f"--keep wants 1 or more, and a folder that is there; got {arguments.keep} and {path}")
    folder = path if path.is_dir() else None
    with _farm(arguments) as (store, told):
        places = replace(told, token_file=None) if arguments.without_token else told
        file = path / file_name(places.farm, now) if folder else path
        manifest = make_backup(store, places, file, now=now)
    gone = []
    if folder is not None and arguments.keep is not None:
        for name in superfluous((one.name for one in folder.iterdir()), places.farm, arguments.keep):
            (folder / name).unlink(missing_ok=True)
            gone.append(name)
    if arguments.json:
        print(json.dumps({"file": str(file), **_told(manifest), "removed": gone}))
        return DONE
    print(f"{file}: {_words(manifest)}")
    if not arguments.without_token:
        print(
            "  it holds the farm's own token, and is its owner's alone (mode 600): whoever reads it is the farm's admin"
        )
    for name in manifest.missing:
        print(f"  warning: {name} is not in the farm's folder, and a task that is open begins with it")
    for name in gone:
        print(f"  removed: {name}")
    return DONE


def _restore(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.backup.backup_file import TOKEN, BackupFile
    from dtf_lightning.farm.backup.restoring import restore_backup

    if arguments.check:
        with BackupFile(arguments.file) as backup:
            backup.verify()
            manifest = backup.manifest
        print(json.dumps(_told(manifest)) if arguments.json else f"{arguments.file} is whole: {_words(manifest)}")
        return DONE
    with _farm(arguments) as (store, places):
        done = restore_backup(store, places, arguments.file, now=time.time(), forget_tokens=arguments.forget_tokens)
    told = done.returning
    if arguments.json:
        counts = {
            "records": dict(told.kinds),
            "open": told.waiting,
            "again": told.again,
            "ended_since": told.ended_since,
        }
        print(
            json.dumps(
                {
                    **_told(done.manifest),
                    **counts,
                    "files": done.files,
                    "unknown": told.unknown,
                    "damaged": done.damaged,
                }
            )
        )
        return DONE
    print(f"restored as {places.farm!r}: {_words(done.manifest)}")
    print(f"  {told.waiting} tasks are open; {len(told.again)} of them were running, and run again from their start")
    if told.ended_since:
        print(f"  {len(told.ended_since)} tasks had ended by the time the archive was read: their results are there")
    if told.unknown:
        print(
            f"  warning: {len(told.unknown)} keys are unknown to this release and were left out, such as {told.unknown[0]}"
        )
    for one in done.damaged:
        print(f"  warning: {one}")
    if TOKEN not in done.manifest.parts:
        print(
            f"  warning: the backup has no token: put the farm's own into {places.token_file} before a coordinator starts"
        )
    print("  start the coordinators now; workers that had joined join anew")
    return DONE


@contextlib.contextmanager
def _farm(arguments: argparse.Namespace) -> Iterator[tuple[Store, FarmPlaces]]:
    """The farm's etcd and places, as the options or the home say."""
    from dtf_lightning.farm.backup.places import FarmPlaces
    from dtf_lightning.farm.home import FarmHome
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

    if arguments.home is not None:
        home = FarmHome(folder=arguments.home.absolute())
        with _store_at_home(home, running=arguments.goes_on) as store:
            folder = home.folder / "files"
            yield (
                store,
                FarmPlaces(farm="farm", folder=folder, archive=str(folder / "archive"), token_file=home.token),
            )
        return
    options = {name: serve.COORDINATOR_OPTIONS[name] for name in _OPTIONS}
    settings = CoordinatorSettings.load(arguments.config, serve.given_settings(arguments, options))
    if settings.farm.folder is None:
        raise SettingsError(
            "where the farm's files lie is not said: give --config FILE or --folder DIR; for a farm of `dtf farm up` --home DIR"
        )
    folder = settings.path(settings.farm.folder)
    if settings.security.token_file is None and not getattr(arguments, "without_token", False):
        raise SettingsError(
            "no file for the farm's token: give --token-file FILE, or `token_file` in the section `security`"
        )
    with serve.connect_etcd(settings) as store:
        yield (
            store,
            FarmPlaces(
                farm=settings.farm.name,
                folder=folder,
                archive=settings.places(folder)["archive.url"],
                token_file=settings.path(settings.security.token_file) if settings.security.token_file else None,
                database=settings.database_file,
            ),
        )


@contextlib.contextmanager
def _store_at_home(home: FarmHome, *, running: bool) -> Iterator[Store]:
    """The etcd of a farm of `dtf farm up`: the one that runs, if it may, or one that is started for us."""
    from dtf_lightning.etcd import connect
    from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
    from dtf_lightning.farm.home import RunningFarm

    farm = RunningFarm.read(home.running)
    if farm is not None and farm.is_alive:
        if not running:
            raise SettingsError(
                f"the farm in {home.folder} runs: end it with `dtf farm down` first, or name another --home"
            )
        with connect(_etcd_of(farm), quiet=True) as store:
            yield store
        return
    home.make()
    with EmbeddedEtcd(data_dir=home.folder / "etcd") as etcd, connect(etcd.endpoint, quiet=True) as store:
        yield store


def _etcd_of(farm: RunningFarm) -> str:
    """Where the etcd of a farm that runs listens. Raises `DtfError` where its coordinator does not tell."""
    from dtf_lightning.farm.http import Connection
    from dtf_lightning.farm.security.trust import Trust
    from dtf_lightning.farm.tokens import read_token

    trust = Trust(ca=Path(farm.ca) if farm.ca else None)
    with contextlib.closing(Connection((farm.url,), read_token(Path(farm.token_file)), trust=trust)) as connection:
        members = ((connection.ask("GET", "/api/status").get("room") or {}).get("etcd") or {}).get("members") or []
    if not members:
        raise DtfError(
            "the farm's coordinator has not looked at its etcd yet, or cannot reach it: try again in some seconds"
        )
    return str(members[0]["endpoint"])


def _words(manifest: Manifest) -> str:
    parts = manifest.parts
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest.made))
    files = sum(name.startswith("archive/") for name in parts)
    size = sum(part.size for part in parts.values())
    return f"the farm {manifest.farm!r} as of {made}, {manifest.tasks} open tasks, {files} files of the archive, {size / (1 << 20):.1f} MiB"


def _told(manifest: Manifest) -> dict[str, object]:
    return {
        "backup": manifest.id,
        "farm": manifest.farm,
        "version": manifest.version,
        "made": manifest.made,
        "revision": manifest.revision,
        "tasks": manifest.tasks,
        "missing": list(manifest.missing),
        "bytes": sum(part.size for part in manifest.parts.values()),
        "token": "token" in manifest.parts,
    }
