"""Signed tokens: what is good, and that nothing else is."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import ProtocolError, SettingsError
from dtf_lightning.farm.security.identity import Identity, Unauthorised
from dtf_lightning.farm.security.keys import LONGEST_LIFE, SETTLING, Sealer, SharedSecret, past, signer
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.security.tokens import MAX_LENGTH, is_signed, make_token, read_token

NOW = 1_000_000.0
WHO = Identity(subject="ann", role=Role.DEVELOPER, token="j1", projects=frozenset({"b", "a"}), expires=NOW + 100)
SEALER = Sealer("secret", "lab")


def new_key(revision: int = 1, created: float = 0.0):
    name, sealed = SEALER.seal_new()
    return SEALER.open(name, sealed, created=created, revision=revision)


KEY, OTHER = new_key(), new_key(2)
KEYS = {KEY.name: KEY, OTHER.name: OTHER}
TOKEN = make_token(WHO, KEY, farm="lab", now=NOW)
CLAIMS = {"sub": "ann", "role": "admin", "aud": "lab", "iat": int(NOW), "exp": int(NOW) + 100, "jti": "j"}


def read(text: str, now: float = NOW, farm: str = "lab") -> Identity:
    return read_token(text, KEYS, farm=farm, now=now)


def part(body: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")


def refused(text: str, match: str = ".", **asked) -> None:
    with pytest.raises(Unauthorised, match=match):
        read(text, **asked)


@given(
    subject=st.text(min_size=1, max_size=20),
    role=st.sampled_from(list(Role)),
    projects=st.frozensets(st.text(min_size=1, max_size=8), max_size=3),
    family=st.sampled_from(["", "f"]),
)
@settings(max_examples=50, deadline=None)
def test_there_and_back(subject, role, projects, family):
    who = Identity(
        subject=subject,
        role=role,
        token="t",
        projects=projects,
        expires=NOW + 9,
        family=family,
        number=3 if family else 0,
    )
    text = make_token(who, OTHER, farm="lab", now=NOW)
    assert is_signed(text)
    assert read(text) == who


class TestTampering:
    @given(at=st.integers(0, len(TOKEN) - 1), byte=st.integers(0, 255))
    @settings(max_examples=400, deadline=None)
    def test_any_other_byte(self, at, byte):
        changed = TOKEN[:at] + chr(byte) + TOKEN[at + 1 :]
        if changed != TOKEN:
            refused(changed)

    @given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
    @settings(max_examples=200, deadline=None)
    def test_anything(self, text):
        for shaped in (text, f"{text}.{text}.{text}", f"{part(text)}.{part(text)}.{part(text)}"):
            refused(shaped)

    @given(
        st.dictionaries(
            st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]),
            st.none() | st.text(max_size=8) | st.lists(st.text(max_size=3)) | st.just(KEY.name),
        )
    )
    @settings(max_examples=200, deadline=None)
    def test_another_head(self, head):
        """Signed or not: the head says what it likes."""
        _, body, signature = TOKEN.split(".")
        if head != jwt.get_unverified_header(TOKEN):
            refused(f"{part(head)}.{body}.{signature}")

    def test_no_algorithm(self):
        for algorithm in ("none", "None", "NONE", ""):
            head = part({"alg": algorithm, "kid": KEY.name})
            refused(f"{head}.{part(CLAIMS)}.", "shape is wrong")
            refused(f"{head}.{part(CLAIMS)}.AA", "no other algorithm")

    @pytest.mark.parametrize("form", ["raw", "pem", "pem without its end"])
    def test_the_public_key_as_a_secret(self, form):
        """HS256 under what everybody may know."""
        public = KEY.public.public_bytes_raw()
        pem = KEY.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        secret = {"raw": public, "pem": pem, "pem without its end": pem.strip()}[form]
        signed = f"{part({'alg': 'HS256', 'kid': KEY.name})}.{part(CLAIMS)}"
        signature = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).decode().rstrip("=")
        refused(f"{signed}.{signature}", "no other algorithm")

    def test_under_another_keys_name(self):
        """Of the same farm, and of a farm that nobody knows here."""
        refused(jwt.encode(CLAIMS, KEY.private, "EdDSA", {"kid": OTHER.name}), "changed")
        stranger = new_key()
        refused(make_token(WHO, stranger, farm="lab", now=NOW), "key that signed this token is not known here")
        refused(jwt.encode(CLAIMS, stranger.private, "EdDSA", {"kid": KEY.name}), "changed")
        refused(jwt.encode(CLAIMS, KEY.private, "EdDSA"), "not known here")

    def test_the_same_signature_in_another_spelling(self):
        """The last character of its 86 has four bits that decoding passes over."""
        same = [
            TOKEN[:-1] + letter
            for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
            if base64.urlsafe_b64decode(TOKEN[-86:-1] + letter + "==") == base64.urlsafe_b64decode(TOKEN[-86:] + "==")
        ]
        assert len(same) == 16
        for text in same:
            if text != TOKEN:
                refused(text, "spelled in another way")

    def test_for_another_farm(self):
        refused(TOKEN, "for another farm", farm="dorm")

    def test_its_time(self):
        assert read(TOKEN, now=NOW + 99.9) == WHO
        refused(
            TOKEN,
            r"time is over since 1970-01-12 13:48:20 UTC: `dtf farm token create --role developer`",
            now=NOW + 100,
        )

    @pytest.mark.parametrize("missing", sorted(CLAIMS))
    def test_a_claim_is_missing(self, missing):
        claims = {name: value for name, value in CLAIMS.items() if name != missing}
        refused(jwt.encode(claims, KEY.private, "EdDSA", {"kid": KEY.name}), "changed|another farm")

    @pytest.mark.parametrize(
        "claims",
        [
            {"role": "root"}, {"role": 1}, {"sub": ""}, {"jti": ""}, {"exp": "9999999999"}, {"exp": 1e300}, {"exp": True},
            {"projects": "a"}, {"projects": [""]}, {"projects": [1]}, {"family": 3}, {"family": "f", "number": "1"},
            {"aud": []}, {"aud": ["dorm"]},
        ],
    )  # fmt: skip
    def test_a_claim_that_a_farm_does_not_make(self, claims):
        """Even signed: nothing is guessed."""
        refused(jwt.encode(CLAIMS | claims, KEY.private, "EdDSA", {"kid": KEY.name}))

    def test_a_long_one(self):
        refused("a" * MAX_LENGTH + ".a.a", "shape")


class TestKeys:
    def test_a_sealed_key_opens_with_its_own_farms_token_alone(self):
        name, sealed = SEALER.seal_new()
        assert SEALER.open(name, sealed, created=0.0, revision=1).name == name
        for sealer, told in ((Sealer("other", "lab"), name), (Sealer("secret", "dorm"), name), (SEALER, KEY.name)):
            with pytest.raises(ProtocolError, match="was not made with this farm's token"):
                sealer.open(told, sealed, created=0.0, revision=1)
        for text in ("", "AAAA", "?", sealed[:-4]):
            with pytest.raises(ProtocolError):
                SEALER.open(name, text, created=0.0, revision=1)

    def test_what_is_sealed_shows_nothing(self):
        name, sealed = SEALER.seal_new()
        key = SEALER.open(name, sealed, created=0.0, revision=1)
        assert key.private.private_bytes_raw() not in base64.b64decode(sealed)
        assert "private" not in repr(key)

    def test_the_newest_signs_once_all_know_it(self):
        old, new = new_key(1, created=0.0), new_key(2, created=NOW)
        assert signer([], NOW) is None
        assert signer([new], NOW) is new
        assert signer([new, old], NOW + SETTLING - 1) is old
        assert signer([new, old], NOW + SETTLING) is new

    def test_older_ones_verify_as_long_as_a_token_can_be_good(self):
        old, new = new_key(1, created=0.0), new_key(2, created=NOW)
        assert past([old, new], NOW + SETTLING + LONGEST_LIFE) == []
        assert past([old, new], NOW + SETTLING + LONGEST_LIFE + 1) == [old]
        assert past([new], 1e12) == []


SHARED = SharedSecret(secret=b"a-secret-that-nobody-guesses-in-a-hurry")


class TestASecretThatOthersShare:
    """`security.jwt_secret`: HS256 beside EdDSA."""

    def read(self, text, shared=SHARED):
        return read_token(text, KEYS, farm="lab", now=NOW, shared=shared)

    def made(self, claims=None, key=SHARED.secret, algorithm="HS256", **head):
        return jwt.encode(CLAIMS | (claims or {}), key, algorithm, {"kid": "jwt-secret"} | head)

    def refused(self, text, match):
        with pytest.raises(Unauthorised, match=match):
            self.read(text)

    def test_what_others_have_made_is_good(self):
        """With its key's name or without one; those of the farm stay good beside it."""
        for text in (self.made(), jwt.encode(CLAIMS, SHARED.secret, "HS256")):
            told = self.read(text)
            assert (told.subject, told.role, told.token) == ("ann", Role.ADMIN, "j")
        assert self.read(TOKEN) == WHO
        refused(self.made(), "no other algorithm")

    def test_the_key_decides_the_algorithm(self):
        """Neither a public key as a secret, nor the secret under a key's name, nor a signature under the secret's."""
        public = KEY.public.public_bytes_raw()
        signed = f"{part({'alg': 'HS256', 'kid': KEY.name})}.{part(CLAIMS)}"
        for secret in (public, SHARED.secret):
            signature = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).decode()
            self.refused(f"{signed}.{signature.rstrip('=')}", "signed by EdDSA, and no other")
        self.refused(self.made(key=KEY.private, algorithm="EdDSA"), "signed by HS256, and no other")
        self.refused(jwt.encode(CLAIMS, KEY.private, "EdDSA"), "signed by HS256, and no other")
        self.refused(self.made(key=SHARED.secret * 2, algorithm="HS512"), "signed by HS256, and no other")
        self.refused(f"{part({'alg': 'none', 'kid': 'jwt-secret'})}.{part(CLAIMS)}.AA", "no other algorithm")
        self.refused(self.made(key=bytes(32)), "was changed")

    def test_what_it_may_not_say(self):
        """The farm's own roles for one use, a life beyond that of the farm's, another farm; families are the farm's affair."""
        for role in (Role.JOIN, Role.REFRESH, Role.TASK):
            self.refused(self.made({"role": role.value}), "made by the farm alone")
        self.refused(self.made({"exp": int(NOW + LONGEST_LIFE) + 1}), "can be good for 366 days")
        self.refused(self.made({"exp": int(NOW) - 1}), "time is over")
        self.refused(self.made({"aud": "other"}), "for another farm")
        self.refused(
            jwt.encode({"sub": "ann", "role": "admin"}, SHARED.secret, "HS256"), "was changed, or was never one"
        )
        assert self.read(self.made({"family": "f", "number": 3})).family == ""

    @given(at=st.integers(0, 250), byte=st.integers(0, 255))
    @settings(max_examples=100, deadline=None)
    def test_any_other_byte(self, at, byte):
        text = self.made()
        changed = text[: at % len(text)] + chr(byte) + text[at % len(text) + 1 :]
        if changed != text:
            self.refused(changed, ".")

    def test_one_that_can_be_guessed_is_none(self):
        with pytest.raises(SettingsError, match="HS256 needs 32"):
            SharedSecret(secret=b"x" * 31)
