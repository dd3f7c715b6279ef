"""The keys of the secrets' store, and what is sealed with them."""

from __future__ import annotations

import base64
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.sealing.ring import Owner, Sealed, WrongKey, new_key, read_ring
from dtf_lightning.farm.security.sealing.sources import KeySource, put_new_key

OWNER = Owner(farm="f", project="vision", name="HF_TOKEN")
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]
words = st.text(st.characters(codec="utf-8"), max_size=40)


@given(words, words, words, words)
def test_what_was_sealed_comes_back_and_for_its_owner_alone(value, farm, project, name):
    ring, owner = read_ring(KEYS[0], "a"), Owner(farm=farm, project=project, name=name)
    sealed = ring.seal(value, owner)
    assert ring.open(sealed, owner) == value
    for other in (Owner(farm=project, project=farm, name=name), Owner(farm=farm, project=name, name=project)):
        if other != owner:
            with pytest.raises(WrongKey, match="its record was changed"):
                ring.open(sealed, other)


@given(st.data())
def test_a_changed_record_does_not_open(data):
    """Whatever byte of it was changed, cut off or added, and in another key's name."""
    ring = read_ring("\n".join(KEYS[:2]), "a")
    sealed = ring.seal("hf_verysecret", OWNER)
    raw = bytearray(base64.b64decode(sealed.text))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    broken = data.draw(
        st.sampled_from([base64.b64encode(raw).decode(), sealed.text[:-4], sealed.text + "AAAA", "", "*", "ä"])
    )
    for one in (Sealed(text=broken, key=sealed.key), Sealed(text=sealed.text, key=ring.ids[1])):
        with pytest.raises(WrongKey) as caught:
            ring.open(one, OWNER)
        assert "verysecret" not in repr(caught.value)


def test_two_seals_of_one_value_differ():
    ring = read_ring(KEYS[0], "a")
    assert ring.seal("value", OWNER).text != ring.seal("value", OWNER).text


def test_a_wrong_key_says_which_is_wanted():
    sealed = read_ring(KEYS[0], "a").seal("value", OWNER)
    other = read_ring(f"{KEYS[1]},{KEYS[2]}", "/etc/keys")
    with pytest.raises(
        WrongKey, match=f"sealed with the key {sealed.key}, and /etc/keys has {other.ids[0]}, {other.ids[1]}"
    ):
        other.open(sealed, OWNER)


def test_no_key_is_in_a_text_of_an_object():
    ring = read_ring(KEYS[0], "a")
    assert KEYS[0] not in repr(ring.keys)
    assert repr(bytes(32)) not in repr(ring.keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key"),
        ("# only this\n\n", "has no key"),
        ("hunter2", "number 1 is no key"),
        (f"{KEYS[0]}\n{KEYS[1][:-4]}", "number 2 is no key"),
        ("ÄÖ", "number 1 is no key"),
    ],
)
def test_what_is_no_key_is_said_without_it(text, said):
    with pytest.raises(SettingsError, match=said) as caught:
        read_ring(text, "place")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__context__)


def test_a_file_of_keys(tmp_path):
    """The first seals; a new one is put before it, and what the older one has sealed still opens."""
    path = tmp_path / "keys"
    first = put_new_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    sealed = first.seal("value", OWNER)
    second = put_new_key(path)
    assert (second.ids[1:], path.stat().st_mode & 0o777) == (first.ids, 0o600)
    assert KeySource(file=path).read().open(sealed, OWNER) == "value"
    path.chmod(0o640)
    with pytest.raises(SettingsError, match=f"chmod 600 {path}"):
        KeySource(file=path).read()
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        KeySource(file=tmp_path / "none").read()


def test_a_file_of_something_else_stays(tmp_path):
    path = tmp_path / "notes"
    path.write_text("buy milk\n")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="number 1 is no key"):
        put_new_key(path)
    assert path.read_text() == "buy milk\n"


@pytest.mark.process
def test_a_command_that_prints_keys():
    """Such as one that has a key management service open a file. What it prints is in no error."""
    command = (sys.executable, "-c")
    assert KeySource(command=(*command, f"print('{KEYS[0]}')")).read().ids == read_ring(KEYS[0], "").ids
    with pytest.raises(SettingsError, match="it ended with 3: no such key") as caught:
        KeySource(
            command=(*command, f"import sys; print('{KEYS[0]}'); print('no such key', file=sys.stderr); sys.exit(3)")
        ).read()
    assert KEYS[0] not in f"{caught.value} {caught.value.__context__!r}"
    with pytest.raises(SettingsError, match="gave no key: No such file"):
        KeySource(command=("/no/such/program",)).read()


def test_no_keys_at_all_says_how_to_get_some():
    with pytest.raises(SettingsError, match="dtf farm secret new-key FILE"):
        KeySource().read()
    assert len(base64.b64decode(new_key())) == 32
