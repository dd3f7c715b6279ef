"""Where a coordinator may listen, how it is reached, and which names a request may give it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.names import EVERYWHERE, LOOPBACK, Listening, holds

CERTIFIED = ("a.lab", "*.farm.lab", "10.0.0.5", "fd00::5", "localhost")


class TestWhereOneMayListen:
    @pytest.mark.parametrize("host", LOOPBACK)
    def test_the_loopback_without_tls(self, host):
        assert Listening(host=host).warning == ""

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "a.lab", "127.0.0.2", ""])
    def test_nothing_else_without_tls(self, host):
        with pytest.raises(SettingsError, match=r"there is no TLS: .*--tls-cert FILE.*write --insecure"):
            Listening(host=host)

    @pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5"])
    def test_unless_it_is_written_out(self, host):
        assert "without TLS (--insecure)" in Listening(host=host, insecure=True).warning
        assert Listening(host="127.0.0.1", insecure=True).warning == ""

    def test_anything_with_tls(self):
        assert Listening(host="0.0.0.0", tls=True).warning == ""

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"tls": True, "insecure": True}, "leave --insecure out"),
            ({"advertise": "farm.lab:8080"}, "expected https://HOST:PORT"),
            ({"advertise": "ftp://farm.lab"}, "expected https://HOST:PORT"),
            ({"advertise": "https://farm.lab:x"}, "expected https://HOST:PORT"),
            ({"advertise": "http://farm.lab", "tls": True}, "write https://"),
        ],
    )
    def test_what_contradicts_itself(self, given, told):
        with pytest.raises(SettingsError, match=told):
            Listening(host="127.0.0.1", **given)


class TestWhereOthersReachIt:
    @pytest.mark.parametrize(
        ("given", "address"),
        [
            ({"host": "127.0.0.1"}, "http://127.0.0.1:81"),
            ({"host": "::1"}, "http://[::1]:81"),
            ({"host": "127.0.0.1", "advertise": "http://near:9/"}, "http://near:9"),
            ({"host": "10.0.0.9", "insecure": True}, "http://10.0.0.9:81"),
            ({"host": "10.0.0.5", "tls": True}, "https://10.0.0.5:81"),
            ({"host": "127.0.0.1", "tls": True}, "https://a.lab:81"),
            ({"host": "0.0.0.0", "tls": True}, "https://a.lab:81"),
            ({"host": "0.0.0.0", "tls": True, "advertise": "https://c1.farm.lab:443"}, "https://c1.farm.lab:443"),
        ],
    )
    def test_by_a_name_that_clients_can_verify(self, given, address):
        assert Listening(**given).address(81, CERTIFIED) == address

    @pytest.mark.parametrize(
        ("certified", "host"),
        [
            (("localhost", "10.0.0.5"), "10.0.0.5"),
            (("localhost", "127.0.0.1"), "localhost"),
            (("fd00::5",), "[fd00::5]"),
        ],
    )
    def test_rather_by_one_that_others_know(self, certified, host):
        assert Listening(host="0.0.0.0", tls=True).address(81, certified) == f"https://{host}:81"

    def test_where_it_listens(self):
        """Whoever has put something between needs to know where that leads to."""
        assert Listening(host="127.0.0.1", advertise="http://near:9").own_address(81, ()) == "http://127.0.0.1:81"
        assert Listening(host="::", tls=True, advertise="https://near").own_address(81, CERTIFIED) == "https://[::]:81"
        assert Listening(host="0.0.0.0", tls=True).own_address(81, CERTIFIED) == "https://a.lab:81"

    def test_what_cannot_be_known(self):
        with pytest.raises(SettingsError, match="--advertise http://HOST:81"):
            Listening(host="0.0.0.0", insecure=True).address(81, ())
        with pytest.raises(SettingsError, match="holds no whole name"):
            Listening(host="::", tls=True).address(81, ("*.lab",))


class TestWhatARequestMayName:
    @pytest.mark.parametrize(
        ("given", "good", "bad"),
        [
            ({"host": "127.0.0.1"}, [*LOOPBACK, "LOCALHOST"], ["a.lab", "10.0.0.5", "", "127.0.0.1.a.lab"]),
            ({"host": "127.0.0.1", "advertise": "http://near:9"}, LOOPBACK, ["near"]),
            ({"host": "10.0.0.9", "insecure": True}, [*LOOPBACK, "10.0.0.9"], ["a.lab", "10.0.0.5"]),
            (
                {"host": "0.0.0.0", "insecure": True, "advertise": "http://near:9"},
                [*LOOPBACK, "near", "near."],
                ["a.lab", *EVERYWHERE],
            ),
            (
                {"host": "0.0.0.0", "tls": True, "advertise": "https://near:9"},
                ["a.lab", "A.lab.", "c1.farm.lab", "10.0.0.5", "fd00:0:0::5", "near", "localhost"],
                ["127.0.0.1", "::1", "b.lab", "farm.lab", "a.b.farm.lab", ".farm.lab", *EVERYWHERE],
            ),
        ],
    )
    def test_names_of_its_own(self, given, good, bad):
        listening = Listening(**given)
        assert [name for name in good if not listening.serves(name, CERTIFIED)] == []
        assert [name for name in bad if listening.serves(name, CERTIFIED)] == []

    @given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=3))
    def test_any_text(self, name, names):
        """Nothing raises, whatever a request says."""
        assert holds(names, name) in (True, False)

    @given(
        st.lists(st.sampled_from("*aB"), max_size=3), st.lists(st.lists(st.sampled_from("*aB"), max_size=3), max_size=3)
    )
    def test_label_by_label(self, name, names):
        """`*` stands for one label, the first, before others."""

        def is_one(labels, wanted):
            small, sought = [label.lower() for label in labels], [label.lower() for label in wanted]
            return small == sought or (len(small) == len(sought) > 1 and small[0] == "*" and small[1:] == sought[1:])

        expected = bool(name) and any(is_one(labels, name) for labels in names)
        assert holds([".".join(labels) for labels in names], ".".join(name)) == expected
