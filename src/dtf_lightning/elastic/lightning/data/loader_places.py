"""`LoaderPlaces` keeps each training loader's position at a generation's start; later positions follow from it.

Until all loaders of a generation have their places, the position is still that of the former one: a member may die in
between, while the others agree on their loaders.
"""

from __future__ import annotations

from typing import Any

from dtf_lightning.elastic.data.combined_loaders import MODES, SHORTEST, Place
from dtf_lightning.errors import SettingsError


class LoaderPlaces:
    """Keep the place of each of one worker's loaders, and the places of the former generation."""

    def __init__(self) -> None:
        self.mode = MODES[0]
        """Lightning's mode of combining several loaders."""
        self.done = 0
        """Number of the epoch's batches that were done when the places were taken."""
        self._places: list[Place] = []
        self._former: dict[str, Any] | None = None
        """`state_dict` of the previous generation, or of a checkpoint."""
        self._bound = False

    def __len__(self) -> int:
        return len(self._places)

    def begin_anew(self, former: dict[str, Any] | None) -> None:
        """Prepare for the first loader of a generation; `former`: the loaders' position until then."""
        self._former, self._places, self._bound = former, [], False

    def take(self, place: Place, *, done: int, formed: bool) -> None:
        """Add the place of the next loader after `done` batches of the epoch; provisional until a world is `formed`."""
        self._places.append(place)
        self.bound(done=done, formed=formed)

    def bound(self, *, done: int, formed: bool) -> None:
        num_loaders = len(self._former["places"]) if self._former is not None else 0
        self._bound, self.done = formed and len(self._places) >= num_loaders, done

    def where_next_stood(self, cursor: int, *, done: int, in_epoch: bool, sharded: bool) -> tuple[int, bool]:
        """Return the next loader's cursor, and whether it repeats its data in this epoch.

        Args:
            cursor: number of samples that a single loader has consumed.
            done: number of the epoch's batches that are done.
            in_epoch: whether the epoch has begun.
            sharded: whether the loader's data is in shards, whose owners are in the former position.

        Raises `SettingsError` for a former position that does not contain this loader's.
        """
        former, index = self._former if in_epoch else None, len(self._places)
        if index and done and (former is None or index >= len(former["places"])):
            raise SettingsError(
                f"the position in mid-epoch does not say where training loader number {index + 1} stands; resume from a "
                "checkpoint of a run with the same loaders, or of an epoch's end"
            )
        if done and former is not None and not sharded:
            for kind in ("shards", "streams"):
                if former[kind] is not None:
                    raise SettingsError(
                        f"the position in mid-epoch is one of {kind}, the training loader has a plain data set; resume with "
                        "the same data set, or from a checkpoint of an epoch's end"
                    )
        if former is not None and len(former["places"]) > 1:
            return Place(**former["places"][index]).after(done - former["done"], former["mode"])
        return cursor, False

    def seen(self, done: int) -> list[int]:
        """Return how many samples of each loader are consumed when `done` batches of the epoch are done."""
        return [place.seen(done - self.done) for place in self._places]

    def seen_at_end(self) -> list[int]:
        """Return the same for an epoch that is trained to its end."""
        shortest = min(place.left for place in self._places)
        return [
            place.seen(shortest if self.mode == SHORTEST and len(self._places) > 1 else place.left)
            for place in self._places
        ]

    def former_part(self, name: str) -> dict[str, Any] | None:
        """Return the entry for `"shards"` or `"streams"` in the former position, or `None`."""
        part: dict[str, Any] | None = self._former[name] if self._former is not None else None
        return part

    def state_dict(self, *, shards: dict[str, Any] | None, streams: dict[str, Any] | None) -> dict[str, Any] | None:
        if not self._bound:
            return self._former
        return {
            "done": self.done,
            "mode": self.mode,
            "places": [place.to_json() for place in self._places],
            "shards": shards,
            "streams": streams,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self._former, self._bound = state, False
