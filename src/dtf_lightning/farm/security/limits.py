"""How much of what one address or token may have: counters of this coordinator alone. Pure; time is an argument.

Rules that this file guards:
- Whoever stays below a rate is never refused, and whoever was idle has a burst.
- Counters take bounded room: those that were used longest ago go first.
- Who has shown a good token is not refused because of what others did from the same address without one.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field

KEYS = 20_000
"""Counters of one kind that are kept."""


class Buckets:
    """One bucket for each key, from which requests are taken and which fills up at a rate.

    It is kept as the moment at which it will be full again (the generic cell rate algorithm of ATM's traffic contracts,
    ITU-T I.371): one number for each key, and nothing to be done as time passes.

    Args:
        rate: a second.
        burst: of a full bucket, at least 1.
    """

    def __init__(self, rate: float, burst: float, *, keys: int = KEYS) -> None:
        self._interval = 1.0 / rate
        self._tolerance = burst / rate
        self._keys = keys
        self._full_at: OrderedDict[object, float] = OrderedDict()

    def take(self, key: object, now: float) -> float:
        """Take one; returns 0 if there was one, else the seconds until there is, and takes none."""
        full_at = max(self._full_at.get(key, now), now) + self._interval
        wait = full_at - now - self._tolerance
        if wait > 1e-9:  # less is what floats lose
            return wait
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._keys:
            self._full_at.popitem(last=False)
        return 0.0

    def __len__(self) -> int:
        """How many keys have a counter."""
        return len(self._full_at)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whose request it is, as far as anybody can know before it is looked at."""

    address: str
    """Of the network: an IPv4 address, or the first half of an IPv6 address."""
    token: bytes
    """A digest of what was shown; b"" for nothing."""

    @classmethod
    def of(cls, address: str, shown: bytes) -> Caller:
        """Return the caller of a request from an address, with its token or cookie as it was shown."""
        return cls(address=network_of(address), token=hashlib.blake2b(shown, digest_size=16).digest() if shown else b"")


@dataclass(kw_only=True)
class RateLimits:
    """Who may ask now.

    Args:
        known: requests of one token at one address that was good there before.
        strangers: of one address with anything else: with a token for the first time, a wrong one, or none.
    """

    known: Buckets
    strangers: Buckets
    _good: OrderedDict[Caller, None] = field(default_factory=OrderedDict)

    def admit(self, caller: Caller, now: float) -> float:
        """Return 0 if a request may come in, else the seconds after which it may be tried again."""
        if caller in self._good:
            return self.known.take(caller, now)
        return self.strangers.take(caller.address, now)

    def is_good(self, caller: Caller) -> bool:
        """Whether its token was good before."""
        return caller in self._good

    def answered(self, caller: Caller, *, good: bool) -> None:
        """Note whether a request's token was good, where that was looked at."""
        if not good:
            self._good.pop(caller, None)
        elif caller.token:
            self._good[caller] = None
            self._good.move_to_end(caller)
            if len(self._good) > KEYS:
                self._good.popitem(last=False)


def network_of(address: str) -> str:
    """Return what one subscriber has: an IPv4 address, or of IPv6 a network of 64 bits."""
    try:
        told = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(told, ipaddress.IPv6Address):
        if told.ipv4_mapped is not None:
            return str(told.ipv4_mapped)
        return str(ipaddress.ip_network((told, 64), strict=False))
    return str(told)


def body_patience(received: int, waited: float, *, grace: float, rate: float) -> float:
    """Return the seconds for which more of a request's body is waited for.

    Args:
        received: bytes of it that have come.
        waited: seconds for which they were waited for, without those in which nobody took them.
        grace: seconds that every body has.
        rate: bytes a second that it must have beyond that.
    """
    return grace + received / rate - waited
