"""A git repository of a row of commits, each of which holds what a test says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class Repository:
    """Made in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q")

    def git(self, *words: str) -> str:
        variables = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "e", "GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "e",
        }  # fmt: skip
        done = subprocess.run(["git", *words], cwd=self.folder, check=True, capture_output=True, env=variables)
        return done.stdout.decode().strip()

    def commit(self, subject: str, files: Mapping[str, str]) -> str:
        """Returns its digest."""
        for name, text in files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)
        self.git("add", "--all")
        self.git("commit", "-q", "-m", subject)
        return self.git("rev-parse", "HEAD")

    def row(self, texts: Sequence[str], name: str = "run.sh") -> list[str]:
        """One commit for each text of one file, numbered from 0."""
        return [self.commit(f"commit {at}", {name: text, "number.txt": str(at)}) for at, text in enumerate(texts)]
