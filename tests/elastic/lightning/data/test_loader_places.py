"""The positions of several loaders, when a generation ends before all of them have theirs."""

from __future__ import annotations

from dtf_lightning.elastic.data.combined_loaders import Place
from dtf_lightning.elastic.lightning.data.loader_places import LoaderPlaces


def place(cursor: int) -> Place:
    return Place(cursor=cursor, again=False, size=64, per_batch=4, left=10, whole=16)


def position(places: LoaderPlaces):
    return places.state_dict(shards=None, streams=None)


def test_a_generation_that_ends_while_its_loaders_get_their_places():
    """A member dies when none, or one, of two loaders has its place: the former generation's position stays."""
    places = LoaderPlaces()
    places.begin_anew(None)
    for cursor in (8, 4):
        places.take(place(cursor), done=2, formed=True)
    former = position(places)
    assert [entry["cursor"] for entry in former["places"]] == [8, 4]
    places.begin_anew(former)
    assert position(places) == former
    places.take(place(20), done=5, formed=True)
    assert position(places) == former
    places.begin_anew(position(places))
    for cursor in (24, 12):
        places.take(place(cursor), done=6, formed=True)
    assert [entry["cursor"] for entry in position(places)["places"]] == [24, 12]
