"""`VerdictBook`: comparisons and all of their samples in DuckDB, from which any verdict is recomputed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dtf_lightning.database.connection import transaction
from dtf_lightning.database.database import Database
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.session import Compared
from dtf_lightning.farm.results.schema import RESULTS
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison
from dtf_lightning.farm.verdicts.pairs.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One verdict as it is kept."""

    verdict: str
    """Its id."""
    made: float
    """Seconds since the epoch."""
    base: str
    candidate: str
    machine: str
    """Where it was measured, as JSON."""
    sentence: str
    compared: Compared


class VerdictBook:
    """The verdicts that were made here.

    Args:
        path: of the database, which is created.

    Raises `SettingsError` for a file of another program or a newer version, or one that stays in use.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = Database(RESULTS, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def keep(self, kept: Kept) -> None:
        """Store a verdict with its samples, whole or not at all. Raises `SettingsError` if it cannot be written."""
        comparison, verdict = kept.compared.comparison, kept.compared.verdict
        body = comparison.to_json()
        samples = body.pop("samples")
        connection = self._database.connection
        with self._database.in_words("the verdict cannot be kept"), transaction(connection):
            connection.execute(
                "INSERT INTO farm.verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    kept.verdict,
                    datetime.fromtimestamp(kept.made, UTC).replace(tzinfo=None),
                    kept.base,
                    kept.candidate,
                    comparison.metric,
                    comparison.unit,
                    verdict.state.value,
                    verdict.p_value,
                    verdict.num_pairs,
                    kept.sentence,
                    kept.machine,
                    json.dumps(body),
                    json.dumps(verdict.to_json(), allow_nan=False),
                ],
            )
            if samples:
                places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(samples))
                values: list[Any] = []
                for place, sample in enumerate(samples):
                    values += [kept.verdict, place, *sample]
                connection.execute(f"INSERT INTO farm.samples VALUES {places}", values)

    def verdicts(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the newest ones, without their samples."""
        return self._database.rows(
            "SELECT verdict, made, base, candidate, metric, state, num_pairs, sentence FROM farm.verdicts "
            "ORDER BY made DESC, verdict DESC LIMIT ?",
            [limit],
        )

    def read(self, verdict: str) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Return comparison, verdict and sentence as they are stored. Raises `SettingsError` for an unknown id.

        The beginning of an id will do where only one begins so.
        """
        found = self._database.rows(
            "SELECT verdict, comparison, told, sentence FROM farm.verdicts WHERE starts_with(verdict, ?)", [verdict]
        )
        if len(found) != 1 or not verdict:
            raise SettingsError(
                f"{len(found) or 'no'} verdicts begin with {verdict!r}; `dtf farm verdict list` shows those that are kept here"
            )
        (row,) = found
        samples = self._database.query(
            "SELECT pair, side, process, value FROM farm.samples WHERE verdict = ? ORDER BY place", [row["verdict"]]
        ).fetchall()
        comparison = {**json.loads(row["comparison"]), "samples": [list(sample) for sample in samples]}
        return comparison, json.loads(row["told"]), str(row["sentence"])

    def replay(self, verdict: str) -> tuple[Comparison, Verdict, str]:
        """Recompute a verdict from its samples. Raises what `read` and `Verdict.replay` raise."""
        comparison, told, sentence = self.read(verdict)
        again = Verdict.replay(comparison, told)
        return Comparison.from_json(comparison), again, sentence
