"""A schema is an ordered list of migrations. A migration that was released is never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dtf_lightning.database.connection import Connection, single, transaction
from dtf_lightning.errors import SettingsError

Migration = Callable[[Connection], None]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a product keeps in a database, and what its users can do about a file that does not fit."""

    migrations: Sequence[Migration]
    """Version n of the database is what the first n of them make."""
    version_table: str
    """The table that says which migrations were applied, and when."""
    exported: tuple[str, ...]
    """Views and tables that an export writes, one file each."""
    if_older: str
    """For a reader, who changes nothing: how the file is brought up to date."""
    if_newer: str
    if_foreign: str
    if_in_use: str

    def check(self, connection: Connection, name: str) -> int:
        """The database's version. Raises `SettingsError` for one that is newer, older, or foreign."""
        version = self._version(connection, name)
        if version < len(self.migrations):
            raise SettingsError(
                f"{name} has schema version {version}, this program reads {len(self.migrations)}: {self.if_older}"
            )
        return version

    def migrate(self, connection: Connection, name: str) -> None:
        """Bring the database up to this program's version, each step whole or not at all.

        Raises `SettingsError` for a newer or a foreign database.
        """
        version = self._version(connection, name)
        for number, migration in enumerate(self.migrations[version:], start=version + 1):
            with transaction(connection):
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {self.version_table} (version INTEGER, applied TIMESTAMP)"
                )
                migration(connection)
                connection.execute(f"INSERT INTO {self.version_table} VALUES (?, now()::TIMESTAMP)", [number])

    def _version(self, connection: Connection, name: str) -> int:
        tables = {table for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        version = 0
        if self.version_table in tables:
            version = single(connection, f"SELECT coalesce(max(version), 0) FROM {self.version_table}")
        elif tables:
            raise SettingsError(f"{name} is a database of another program: {self.if_foreign}")
        if version > len(self.migrations):
            raise SettingsError(
                f"{name} has schema version {version}, this program knows {len(self.migrations)}: {self.if_newer}"
            )
        return version
