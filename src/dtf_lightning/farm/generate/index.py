"""`TemplateIndex`: the templates that were last seen, in DuckDB: id, version, digest, inputs. The files are the truth.

Rules that this file guards:
- The index can be deleted at any time: it is made anew from the files.
- A template that changes without its version is told apart by its digest; both stand in the index's history.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dtf_lightning.database.connection import Connection, transaction
from dtf_lightning.database.database import Database
from dtf_lightning.database.schema import Schema
from dtf_lightning.farm.generate.templates import Template
from dtf_lightning.farm.home import FarmHome


def _tables(connection: Connection) -> None:
    connection.execute("""
        CREATE SCHEMA farm;
        CREATE TABLE farm.templates (
            id VARCHAR, version BIGINT, digest VARCHAR, inputs VARCHAR[] NOT NULL, title VARCHAR NOT NULL,
            file VARCHAR NOT NULL, seen TIMESTAMP NOT NULL, here BOOLEAN NOT NULL, PRIMARY KEY (id, digest)
        );
    """)


_TEMPLATES = Schema(
    migrations=(_tables,),
    version_table="dtf_templates_schema",
    exported=("farm.templates",),
    if_older="`dtf farm generate --list-templates` brings it up to date",
    if_newer="use a newer dtf-lightning, or delete the file: it is made anew from the templates",
    if_foreign="move it away, or name another folder by $DTF_FARM_HOME",
    if_in_use="Another dtf farm generate, or whoever reads it, has it open: wait for its end",
)


class TemplateIndex:
    """The index in a file, which is created.

    Raises `SettingsError` for a file of another program or a newer version, or one that stays in use.
    """

    def __init__(self, path: Path | str) -> None:
        if isinstance(path, Path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = Database(_TEMPLATES, path)

    @classmethod
    def of_this_machine(cls) -> TemplateIndex:
        """Return the one in the farm's home."""
        return cls(FarmHome.default().folder / "templates.duckdb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def update(self, templates: Iterable[Template]) -> None:
        """Have the index say what these files say; those that are not among them are no longer `here`."""
        connection = self._database.connection
        with self._database.in_words("the templates cannot be noted"), transaction(connection):
            connection.execute("UPDATE farm.templates SET here = false")
            for template in templates:
                title = template.check.title if template.check is not None else template.name
                connection.execute(
                    "INSERT INTO farm.templates VALUES (?, ?, ?, ?, ?, ?, now()::TIMESTAMP, true) ON CONFLICT (id, digest) "
                    "DO UPDATE SET here = true, file = excluded.file, seen = excluded.seen",
                    [
                        template.name,
                        template.version,
                        template.digest,
                        list(template.inputs),
                        title,
                        str(template.path),
                    ],
                )

    def rows(self, *, history: bool = False) -> list[dict[str, Any]]:
        """Return the templates that are here, by id; with `history` those that were, too."""
        return self._database.rows(
            "SELECT id, version, digest, inputs, title, file FROM farm.templates WHERE here OR ? ORDER BY id, seen",
            [history],
        )
