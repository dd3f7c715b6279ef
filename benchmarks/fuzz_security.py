"""Feed the farm's doors with what nobody should send: changed tokens, broken messages, keys, seals, names and places.

    python benchmarks/fuzz_security.py --cases 1000000 --seconds 540

Everything happens in this process. A case is well when the code answers as its contract says: a value that it may return, or its own
error. A token is well when it is refused, unless it is one that was made. Anything else is printed with its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jwt

from dtf_lightning.errors import DtfError, ProtocolError, SettingsError
from dtf_lightning.farm.messages import Hello, Result, Run, Started, read_messages, write_message
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.rules.inputs import check_place, read_input
from dtf_lightning.farm.security.identity import Forbidden, Identity, Unauthorised
from dtf_lightning.farm.security.keys import Sealer, SharedSecret
from dtf_lightning.farm.security.names import hostname
from dtf_lightning.farm.security.ownership import narrowed_query
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.security.sealing.ring import Owner, Sealed, WrongKey, new_key, read_ring
from dtf_lightning.farm.security.tokens import make_token, read_token

NOW = 1_700_000_000.0
FARM = "lab"
INTERESTING = [
    "",
    ".",
    "..",
    "\0",
    "\ud800",
    "ä",
    "-",
    "_",
    "=",
    "%2e%2e",
    "/",
    "{",
    "[" * 50,
    '"',
    "\\",
    "none",
    "HS256",
    "EdDSA",
]

SEALER = Sealer("a farm's token", FARM)
KEYS = {}
for number in range(2):
    key_name, sealed_key = SEALER.seal_new()
    KEYS[key_name] = SEALER.open(key_name, sealed_key, created=0.0, revision=number)
SHARED = SharedSecret(secret=b"a-secret-that-nobody-guesses-in-a-hurry")
CLAIMS = {"sub": "ann", "role": "admin", "aud": FARM, "iat": int(NOW), "exp": int(NOW) + 100, "jti": "j"}
GOOD = [
    make_token(Identity(subject="ann", role=role, token="t", projects=frozenset("ab"), expires=NOW + 100), key, farm=FARM, now=NOW)
    for role in (Role.VIEWER, Role.ADMIN, Role.TASK)
    for key in KEYS.values()
] + [jwt.encode(CLAIMS, SHARED.secret, "HS256", {"kid": "jwt-secret"})]  # fmt: skip
RING = read_ring(new_key(), "here")
OWNER = Owner(farm=FARM, project="p", name="A")
SEALED = RING.seal("hf_verysecret", OWNER)
OUTCOME = AttemptOutcome(kind=OutcomeKind.COMPLETED, started=1.0, ended=2.0)
MESSAGES = [
    write_message(one)
    for one in (
        Hello(worker="w", session="s", devices={"cpu": 2.0}, running={"t": 3}),
        Started(task="t", revision=3, at=1.0),
        Result(task="t", number=1, revision=3, outcome=OUTCOME),
        Run(task="t", number=1, revision=3, specification=TaskSpecification(command=("true",))),
    )
]


def changed(rng: random.Random, text: str) -> str:
    """Return a text that was changed in a few places."""
    for _ in range(rng.randint(1, 3)):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        kind = rng.randrange(6)
        if kind == 0 and text:
            at = rng.randrange(len(text))
            text = text[:at] + chr(rng.randrange(256)) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + text[min(end, at + 8) :]
        elif kind == 2:
            text = text[:at] + rng.choice(INTERESTING) + text[at:]
        elif kind == 3:
            text = text[:at] + text[at : at + 20] + text[at:]
        elif kind == 4:
            text = text[:at]
        else:
            parts = text.split(".")
            rng.shuffle(parts)
            text = ".".join(parts)
    return text


def part(body: object) -> str:
    """Return a part of a token."""
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")


def token(rng: random.Random) -> bool:
    """A changed token, one of two tokens' parts, or one under a head or with claims of somebody's own."""
    kind, text = rng.randrange(4), rng.choice(GOOD)
    if kind == 0:
        text = changed(rng, text)
    elif kind == 1:
        text = ".".join(rng.choice(GOOD).split(".")[at] for at in range(3))
    elif kind == 2:
        head = {
            "alg": rng.choice(["none", "HS256", "EdDSA", "HS512", "ES256", "", None]),
            "kid": rng.choice([*KEYS, "jwt-secret", "", None, 7]),
        }
        text = f"{part(head)}.{rng.choice([text.split('.')[1], part(CLAIMS)])}.{rng.choice([text.split('.')[2], 'AA'])}"
    else:
        claims = CLAIMS | {
            rng.choice(list(CLAIMS)): rng.choice([None, 0, -1, 1e400, "", [], {}, True, "x", int(NOW) - 1, 10**30])
        }
        text = jwt.encode(
            claims,
            rng.choice([bytes(32), KEYS[rng.choice(list(KEYS))].public.public_bytes_raw()]),
            "HS256",
            {"kid": rng.choice([*KEYS, "jwt-secret"])},
        )
    try:
        read_token(text, KEYS, farm=FARM, now=NOW, shared=SHARED)
    except Unauthorised:
        return True
    return text in GOOD


def expired(rng: random.Random) -> bool:
    """A good token, too late or of another farm."""
    text = rng.choice(GOOD)
    late = rng.random() < 0.5
    try:
        read_token(
            text,
            KEYS,
            farm=FARM if late else rng.choice(["", "lab2", "LAB"]),
            now=NOW + (100 if late else 0),
            shared=SHARED,
        )
    except Unauthorised:
        return True
    return False


def quietly(call: Callable[[str], object], *errors: type[Exception]) -> Callable[[random.Random, list[str]], bool]:
    """Return a case that is well when a changed text gives a value or one of these errors."""

    def case(rng: random.Random, seeds: list[str]) -> bool:
        try:
            call(changed(rng, rng.choice(seeds)))
        except errors:
            pass
        return True

    return case


def seal(rng: random.Random) -> bool:
    """A changed record of a secret."""
    told = Sealed(text=changed(rng, SEALED.text), key=rng.choice([SEALED.key, changed(rng, SEALED.key)]))
    try:
        return RING.open(told, OWNER) == "hf_verysecret" and told == SEALED
    except WrongKey as error:
        return "verysecret" not in str(error)


LIMITED = Identity(subject="a", role=Role.VIEWER, token="t", projects=frozenset({"p", "q"}), expires=NOW)


def query(rng: random.Random) -> bool:
    """A list's query of a limited token: what comes out names one of its projects."""
    text = changed(rng, rng.choice(["project=p&limit=3", "project=q", "limit=1", "project=x&project=p"]))
    try:
        out = narrowed_query(LIMITED, text.encode("utf-8", "replace"))
    except (Forbidden, ValueError):
        return True
    from urllib.parse import parse_qs

    named = parse_qs(out.decode("latin-1"), keep_blank_values=True).get("project", [])
    return len(named) == 1 and named[0] in LIMITED.projects


def place(rng: random.Random) -> bool:
    """A place of an input: what is taken lies below the task's folder."""
    text = changed(rng, rng.choice(["data/a", "a", "../a", "/etc/passwd", "a/../../b", "a//b", "./a"]))
    try:
        check_place(text)
    except (SettingsError, ValueError):
        return True
    parts = Path(text).parts
    return ".." not in parts and not Path(text).is_absolute() and bool(parts)


RECORDS = ['{"command":["true"],"v":1}', '{"project":"p","needs":[{"amounts":{"cpu":1}}],"command":["a"],"v":1}']
CASES: dict[str, tuple[int, Callable[[random.Random], bool]]] = {
    "tokens that were changed or forged": (45, token),
    "tokens that are over, or another farm's": (5, expired),
    "messages of workers": (15, lambda rng: quietly(read_messages, ProtocolError)(rng, MESSAGES)),
    "records": (10, lambda rng: quietly(lambda text: decode(Kind.TASK, text.encode("utf-8", "replace")), ProtocolError)(rng, RECORDS)),
    "keys in etcd": (5, lambda rng: quietly(FarmKeys(FARM).parse)(rng, ["/dtf/farm/lab/secrets/p/A", "/dtf/farm/lab/tasks/t%2F"])),
    "files of keys": (5, lambda rng: quietly(lambda text: read_ring(text, "x"), SettingsError)(rng, [new_key()])),
    "sealed secrets": (5, seal),
    "queries of limited tokens": (4, query),
    "places of inputs": (3, place),
    "references of inputs": (2, lambda rng: quietly(read_input, SettingsError, ValueError)(rng, ["sha256:" + "0" * 64, "https://a/b#sha256=" + "0" * 64, "git+https://a/b@" + "0" * 40])),
    "names of hosts": (1, lambda rng: quietly(hostname, DtfError)(rng, ["//farm.lab:8080", "//[::1]:80", "https://a"])),
}  # fmt: skip


def main() -> int:
    """Run the cases; the exit code is 1 if one was not well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=540.0, help="after which it ends, whatever was done")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names, weights = list(CASES), [weight for weight, _ in CASES.values()]
    done: Counter[str] = Counter()
    bad = 0
    began, cpu = time.monotonic(), time.process_time()
    for number in range(arguments.cases):
        rng = random.Random(arguments.seed * 1_000_000_007 + number)
        (name,) = rng.choices(names, weights)
        try:
            well = CASES[name][1](rng)
        except Exception as error:
            well = False
            print(f"case {number}, {name}: {error!r}", file=sys.stderr)
        if not well:
            bad += 1
            print(f"case {number} of {name} is not well", file=sys.stderr)
            if bad == 20:
                break
        done[name] += 1
        if number % 1000 == 0 and time.monotonic() - began > arguments.seconds:
            break
    for name, count in done.most_common():
        print(f"{count:>9,}  {name}")
    print(
        f"{done.total():>9,}  in all, {bad} not well, {time.monotonic() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
