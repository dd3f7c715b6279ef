"""Settings of another product than ours take the same fields, checks, files and tables."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.fields import check, check_types, setting, settings_table
from dtf_lightning.settings.keys import SettingKeys


@dataclass(frozen=True, kw_only=True)
class Oven:
    heat: float = setting(200.0, "How hot.", unit="degrees")
    door: bool = setting(False, "Whether it is open.")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.heat < 300, f"heat must be below 300 degrees, got {self.heat:g}")


@dataclass(frozen=True, kw_only=True)
class Bakery:
    oven: Oven
    loaves: int = setting(MISSING, "A day.", unit="loaves")
    name: str | None = setting(None, "On the sign.")


KEYS = SettingKeys(Oven, Bakery, foreign={"temperature": "heat"})


def read(tmp_path, text, **without):
    path = tmp_path / "bakery.yaml"
    path.write_text(text)
    return KEYS.read_yaml(path, **without)


def test_from_a_file(tmp_path):
    """Keys of both classes in one file; each class takes its own."""
    parsed = KEYS.parse(read(tmp_path, "heat: 220\nloaves: '40'\nname: null\ndoor: 'on'\n"), "bakery.yaml")
    bakery = Bakery(oven=Oven(**KEYS.of(Oven, parsed)), **KEYS.of(Bakery, parsed))
    assert bakery == Bakery(oven=Oven(heat=220.0, door=True), loaves=40, name=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "temperature: 1",
            r"bakery.yaml: unknown key 'temperature' \(did you mean 'heat'\?\); known keys: door, heat, l",
        ),
        ("loafs: 1", r"unknown key 'loafs' \(did you mean 'loaves'\?\)"),
        ("3: 1", r"unknown key 3; known keys"),
        ("oven: 1", r"unknown key 'oven'"),
        ("- heat", r"expected a mapping of settings \(key: value\), got list"),
        ("{", r"the settings file .*bakery.yaml is not YAML"),
    ],
)
def test_wrong_files(tmp_path, text, said):
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, text)


def test_a_key_that_belongs_elsewhere(tmp_path):
    with pytest.raises(SettingsError, match="unknown key 'name'; known keys: door, heat, loaves"):
        read(tmp_path, "name: x", without=frozenset({"name"}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"heat": "hot"}, "day.conf: heat must be a number of degrees, got 'hot'"),
        ({"loaves": 1.5}, "day.conf: loaves must be a whole number of loaves, got 1.5"),
        ({"door": "ajar"}, "day.conf: door must be true or false, got 'ajar'"),
        ({"name": 3}, "day.conf: name must be text, got 3"),
    ],
)
def test_wrong_values(values, said):
    with pytest.raises(SettingsError, match=said):
        KEYS.parse(values, "day.conf")


def test_checks_of_the_class():
    with pytest.raises(SettingsError, match="heat must be below 300 degrees, got 400"):
        Oven(heat=400.0)
    with pytest.raises(SettingsError, match="door must be True or False, got 1"):
        Oven(door=1)


def test_table():
    """Fields that are no settings have no row."""
    assert settings_table(Bakery) == [
        "| key | type | default | unit | meaning |",
        "|---|---|---|---|---|",
        "| `loaves` | int | required | loaves | A day. |",
        "| `name` | str | none | - | On the sign. |",
    ]
