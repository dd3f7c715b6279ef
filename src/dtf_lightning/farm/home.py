"""Where a farm that `dtf farm up` has started keeps its things, and how other commands find it.

    $DTF_FARM_HOME, else $XDG_STATE_HOME/dtf-farm, else ~/.local/state/dtf-farm:
        farm.json     address, token file and process of the farm that runs here
        token         the farm's token; its owner alone may read it
        secrets.key   with which the farm seals the secrets that it keeps; likewise
        etcd/  worker/  coordinator.log  worker.log
        files/        of the farm, with `audit-<coordinator>.jsonl`

A command finds its farm by `--farm`, else `DTF_FARM_URL`, else `farm.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.security.names import scheme_of
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.whole_files import write_whole


class FarmNotFound(DtfError):
    """Nothing says which farm is meant."""


@dataclass(frozen=True, kw_only=True)
class FarmHome:
    """The folder of a farm on this machine."""

    folder: Path

    @classmethod
    def default(cls) -> FarmHome:
        """Return the one that the environment says."""
        if named := environment.read(environment.FARM_HOME):
            return cls(folder=Path(named).absolute())
        state = environment.read(environment.STATE_HOME)
        return cls(folder=(Path(state) if state else Path.home() / ".local" / "state") / "dtf-farm")

    def make(self) -> None:
        """Make the folder, for its owner alone."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def running(self) -> Path:
        return self.folder / "farm.json"

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def secrets_key(self) -> Path:
        """Of the keys with which the farm seals the secrets that it keeps."""
        return self.folder / "secrets.key"

    def known_token(self, running: RunningFarm | None) -> Path:
        """Return the token's file where nobody says which: the environment's, or that of the farm that runs here."""
        named = environment.read(environment.FARM_TOKEN_FILE)
        return Path(named or (running.token_file if running else self.token))


@dataclass(frozen=True, kw_only=True)
class RunningFarm:
    """The farm that runs here, as `farm.json` tells."""

    url: str
    token_file: str
    pid: int
    """Of `dtf farm up`."""
    ca: str | None = None
    """File of the authority of its certificate; `None`: one that this machine knows, or there is no certificate."""

    def write(self, path: Path) -> None:
        """Tell other commands of it."""
        write_whole(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> RunningFarm | None:
        """Return what the file tells; `None` without one. Raises `SettingsError` for one that cannot be read."""
        try:
            body = json.loads(path.read_text())
            return cls(
                url=str(body["url"]),
                token_file=str(body["token_file"]),
                pid=int(body["pid"]),
                ca=body.get("ca") or None,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{path} does not say where a farm is ({error!r}): remove it, or run dtf farm up"
            ) from error

    @property
    def is_alive(self) -> bool:
        """Whether its process is there, and not only still to be waited for."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state not in "ZX"


@dataclass(frozen=True, kw_only=True)
class FarmAddress:
    """How to reach a farm."""

    urls: tuple[str, ...]
    """Of its coordinators, all alike."""
    token_file: Path
    trust: Trust = field(default_factory=Trust)


def find_farm(url: str | None = None, token_file: str | Path | None = None, trust: Trust | None = None) -> FarmAddress:
    """Return which farm is meant. Raises `FarmNotFound`, and `SettingsError` for a file that cannot be read.

    Args:
        url: of one coordinator or more, with commas between them; `None`: what the environment says, or the farm that
            runs here.
        token_file: likewise.
        trust: by which files client and farm know each other; where it names no authority: likewise.
    """
    home = FarmHome.default()
    running = RunningFarm.read(home.running)
    url = url or environment.read(environment.FARM_URL)
    if not url and running is not None and not running.is_alive:
        raise FarmNotFound(
            "the farm that ran here has ended without a word: `dtf farm up` starts it again, with all that it had accepted"
        )
    url = url or (running.url if running else None)
    if not url:
        raise FarmNotFound(
            f"no farm is known here: start one with `dtf farm up`, or say which is meant with --farm URL or ${environment.FARM_URL}"
        )
    token = token_file or home.known_token(running)
    trust = trust or Trust()
    ca = environment.read(environment.FARM_CA) or (running.ca if running else None)
    if trust.ca is None and ca:
        trust = replace(trust, ca=Path(ca))
    urls = tuple(one.strip().rstrip("/") for one in url.split(",") if one.strip())
    for one in urls:
        if scheme_of(one) not in ("http", "https"):
            raise SettingsError(
                f"the farm's address {one!r} must look like http://127.0.0.1:8080 or https://farm.lab:8080"
            )
    return FarmAddress(urls=urls, token_file=Path(token), trust=trust)
