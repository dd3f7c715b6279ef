"""The files that a command needs, as an archive: what `dtf farm run` takes along, and what a worker unpacks.

Rules that this file guards:
- In a git repository: files that are tracked, and those that are neither tracked nor ignored. Elsewhere: all files.
  Patterns in `.dtfignore`, in git's notation as far as `fnmatch` goes, leave out more.
- Equal files give an equal archive: names are sorted, times and owners are left out. Its name is the SHA-256 of its bytes.
- What is unpacked stays inside its folder, whatever the archive says (PEP 706).
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError

IGNORE_FILE = ".dtfignore"
MAX_BYTES = 500 * 1024 * 1024
"""Of the files together, before they are packed."""


@dataclass(frozen=True)
class Source:
    """An archive of files."""

    digest: str
    archive: bytes
    num_files: int
    folder: str
    """Where in it the command was given, relative; "": at its top."""


def pack(folder: Path) -> Source:
    """Return the files that belong to a folder: those of its whole repository, if it lies in one.

    Sockets, pipes and devices are left out. Raises `SettingsError` if they are too many bytes to take along, if one cannot
    be read, and if one becomes shorter meanwhile.
    """
    top = _repository(folder) or folder
    names = _files(top)
    data = _archive(top, names, "or run it with --no-source")
    inside = folder.resolve().relative_to(top.resolve()).as_posix()
    return Source(hashlib.sha256(data).hexdigest(), data, len(names), "" if inside == "." else inside)


def pack_commit(folder: Path, commit: str) -> Source:
    """Return all files of a commit of the repository that `folder` belongs to, and where `folder` lies among them.

    Raises `SettingsError` for what is no commit there, for a folder of no repository, and for files that are too many or too
    large.
    """
    top = _repository(folder)
    if top is None:
        raise SettingsError(
            f"{folder} belongs to no git repository (or git is not installed): there are no commits here"
        )
    if _git(folder, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") is None:
        raise SettingsError(f"{commit!r} is no commit, branch or tag of {top}")
    with tempfile.TemporaryDirectory(prefix="dtf-commit-") as made:
        place = Path(made) / "files"
        place.mkdir()
        # An index of its own: the user's stays as it is. `git archive` would leave out what is marked export-ignore.
        index = environment.for_child({"GIT_INDEX_FILE": str(Path(made) / "index")}, without_prefix="GIT_INDEX_FILE")
        for arguments in (("read-tree", commit), ("checkout-index", "--all", f"--prefix={place}/")):
            done = subprocess.run(["git", *arguments], cwd=top, env=index, capture_output=True, check=False)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip()
                raise SettingsError(f"the files of {commit} cannot be had: git {arguments[0]}: {said}")
        names = _without_ignored(place, _all_files(place))
        data = _archive(place, names, "or run the command where the repository is")
    inside = folder.resolve().relative_to(top.resolve()).as_posix()
    return Source(hashlib.sha256(data).hexdigest(), data, len(names), "" if inside == "." else inside)


def pack_input(path: Path) -> tuple[str, Source]:
    """Return a file or folder as an input of tasks: its reference (`rules.inputs`), and what is to be sent.

    Of a folder all files are taken, but for those that its `.dtfignore` names. Raises `SettingsError` for what is not there,
    cannot be read, or is too large.
    """
    try:
        if path.is_dir():
            names = _without_ignored(path, _all_files(path))
            data = _archive(path, names, "or fetch it by its URL")
            digest = hashlib.sha256(data).hexdigest()
            return f"tree:{digest}", Source(digest, data, len(names), "")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SettingsError(
                f"the input {path} has {size >> 20} MiB, {MAX_BYTES >> 20} are allowed: let workers fetch it by its URL"
            )
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"the input {path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    return f"sha256:{digest}", Source(digest, data, 1, "")


def _archive(top: Path, names: list[str], hint: str) -> bytes:
    total = 0
    body = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=body, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            path = top / name
            info = _tar_info(archive, path, name)
            if info is None:
                continue
            total += info.size
            if total > MAX_BYTES:
                raise SettingsError(
                    f"the files in {top} are more than {MAX_BYTES >> 20} MiB: name what the command does not need in "
                    f"{top / IGNORE_FILE}, one pattern a line, {hint}"
                )
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            info.type = tarfile.SYMTYPE if info.issym() else tarfile.REGTYPE
            _add(archive, info, path)
    return body.getvalue()


def _tar_info(archive: tarfile.TarFile, path: Path, name: str) -> tarfile.TarInfo | None:
    """Return what is known of a file; `None` where there is none, and for what has no content of its own."""
    try:
        info: tarfile.TarInfo | None = archive.gettarinfo(path, name)  # None for a socket, which typeshed does not know
    except FileNotFoundError:  # deleted, and not yet for git
        return None
    return info if info is not None and (info.isreg() or info.issym() or info.islnk()) else None


def _add(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    if not info.isreg():
        archive.addfile(info)
        return
    try:
        with path.open("rb") as file:
            archive.addfile(info, file)
    except OSError as error:  # tarfile raises it for a file that ends too early, too
        raise SettingsError(
            f"{path} cannot be taken along ({error.strerror or error}): if the command does not need it, name it in "
            f"{IGNORE_FILE}, or run the command with --no-source"
        ) from error


def unpack(archive: Path, folder: Path) -> None:
    """Put an archive's files into a folder. Raises `SettingsError` for an archive that would write outside of it."""
    try:
        with tarfile.open(archive, "r:gz") as files:
            files.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise SettingsError(f"the source {archive.name} cannot be unpacked: {error}") from error


def _repository(folder: Path) -> Path | None:
    told = _git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(told.rstrip(b"\n"))) if told is not None else None


def _files(top: Path) -> list[str]:
    listed = _git(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    else:
        names = _all_files(top)
    return _without_ignored(top, names)


def _all_files(top: Path) -> set[str]:
    return {os.path.relpath(os.path.join(folder, name), top) for folder, _, files in os.walk(top) for name in files}


def _without_ignored(top: Path, names: Iterable[str]) -> list[str]:
    patterns = _patterns(top / IGNORE_FILE)
    return sorted(name for name in names if not _ignored(name, patterns))


def _patterns(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _ignored(name: str, patterns: list[str]) -> bool:
    parts = name.split("/")
    folders = ["/".join(parts[: number + 1]) for number in range(len(parts))]
    return any(
        fnmatch.fnmatch(part, pattern.strip("/"))
        or ("/" not in pattern and fnmatch.fnmatch(part.split("/")[-1], pattern))
        for pattern in patterns
        for part in folders
    )


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git says; `None` where there is no repository, or no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
