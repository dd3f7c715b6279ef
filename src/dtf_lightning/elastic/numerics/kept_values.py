"""Keeps the attributes of objects as they are at a `take`, and puts them back: also what was changed in place.

Rules that this file guards:

* what is put back is the same object as before, with its former content: whoever else refers to it sees it, too;
* `take` runs before every optimizer step. What cannot have changed since the last one is not copied again: a tensor whose
  version is the same, and the part of a long list that is still there;
* what is not put back is known by name: it is of a kind that cannot be copied, too large, or too deep.

Kinds that are put back: numbers, strings and whatever else cannot be changed; lists, dictionaries, sets, deques,
`bytearray`s and classes derived from them; tuples; tensors without gradients; arrays; generators of random numbers;
objects of the caller's own classes; what `other` knows. Containers and objects are followed `DEPTH` levels down.
"""

from __future__ import annotations

import abc
import datetime as dt
import enum
import functools
import logging
import numbers
import random
import re
import sys
import types
import typing
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

DEPTH = 4
"""Levels that are followed below an attribute: 1 is an entry of a list, 2 an entry of a list in a dictionary."""

Restore = Callable[[], object]
Keeper = Callable[[Any, int], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Say what is too large to be kept each time."""

    followed: int
    """Entries of a container up to which what is inside of each entry is kept, too."""
    entries: int
    """Entries of a container up to which it is copied; a list may be five times as long."""
    elements: int
    """Elements of a tensor or array up to which it is copied at first sight."""
    lasting_elements: int
    """Elements of a tensor up to which it is copied if it was there at the last `take`, too."""


EACH_STEP = Limits(followed=32, entries=2_000, elements=2**18, lasting_elements=2**24)
"""For a `take` before every optimizer step."""
NOW_AND_THEN = Limits(followed=10_000, entries=2_000_000, elements=2**26, lasting_elements=2**26)
"""For a `take` before a validation or an epoch's hooks."""


@dataclass(frozen=True)
class Owner:
    """Describe an object whose attributes are kept."""

    name: str
    """What a message calls the object."""
    attributes: dict[str, Any]
    """Its `vars()`."""
    skipped: Collection[str] = frozenset()
    """Names of attributes that somebody else restores, or that must stay."""


@dataclass(frozen=True, slots=True)
class _Place:
    owner: Owner
    attribute: str


class KeptValues:
    """Keep the attributes of some objects.

    Args:
        limits: what is too large to be kept.
        own: tells whether a class is the caller's own, so that its objects are looked into.
        other: returns how an object of a kind unknown here is put back, as it is now; `None` if it does not know either.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        own: Callable[[type], bool] = lambda kind: False,  # noqa: ARG005
        other: Callable[[Any], Restore | None] = lambda value: None,  # noqa: ARG005
    ) -> None:
        self._limits = limits
        self._own = own
        self._other = other
        self._keepers: dict[type, Keeper | None] = dict.fromkeys(_UNCHANGEABLE)
        """How values of a type are kept; `None` for those that need not be."""
        self._owners: list[tuple[Owner, dict[str, Any]]] = []
        self._quiet: dict[int, tuple[Owner, dict[str, Any]]] = {}
        """Owners whose attributes had nothing that can be changed in place, at the last look; most parts of a model.

        They have no tensors either, which to compare would wait for a GPU.
        """
        self._restores: list[tuple[_Place, Any, Restore]] = []
        self._tensors: dict[int, _KeptTensor] = {}
        self._lists: dict[int, _KeptList] = {}
        self._last: tuple[dict[int, _KeptTensor], dict[int, _KeptList]] = {}, {}
        """Tensors and long lists of the `take` before, while the next one runs."""
        self._unkept: list[tuple[_Place, Any]] = []
        self._seen: set[int] = set()
        self._place: _Place
        """The attribute that is being kept."""

    def take(self, owners: Collection[Owner]) -> None:
        """Keep the attributes as they are now, in place of what was kept before."""
        self._owners, self._restores, self._unkept = [], [], []
        self._last, self._tensors, self._lists = (self._tensors, self._lists), {}, {}
        self._seen.clear()
        if len(self._quiet) > len(owners):
            self._quiet.clear()
        for owner in owners:
            kept = self._quiet.get(id(owner))
            if kept is None or kept[0] is not owner or not _same(kept[1], owner.attributes):
                kept = owner, owner.attributes.copy()
                self._keep_attributes(*kept)
            self._owners.append(kept)
        self._last = {}, {}

    def _keep_attributes(self, owner: Owner, attributes: dict[str, Any]) -> None:
        keepers, skipped, quiet = self._keepers, owner.skipped, True
        for name, value in attributes.items():
            if name in skipped:
                quiet = quiet and not isinstance(value, torch.Tensor)
            elif keepers.get(type(value), _UNSEEN) is not None:
                self._place, quiet = _Place(owner, name), False
                self._keep(value, DEPTH)
        if quiet:
            self._quiet[id(owner)] = owner, attributes
        else:
            self._quiet.pop(id(owner), None)

    def put_back(self) -> list[str]:
        """Restore what the last `take` has kept; return the attributes that may hold something that it has not."""
        lost = list(self._unkept)
        for owner, kept in self._owners:
            now, skipped = owner.attributes, owner.skipped
            for name in [name for name in now if name not in kept and name not in skipped]:
                del now[name]
            now.update((name, value) for name, value in kept.items() if name not in skipped)
        for place, value, restore in self._restores:
            try:
                restore()
            except Exception:
                log.debug("%s.%s is not put back", place.owner.name, place.attribute, exc_info=True)
                lost.append((place, value))
        lost += [(one.place, one.tensor) for one in self._tensors.values() if not one.restore()]
        lost += [(one.place, one.value) for one in self._lists.values() if not one.restore()]
        return list(
            dict.fromkeys(f"{place.owner.name}.{place.attribute} ({_describe(value)})" for place, value in lost)
        )

    # --- one value -----------------------------------------------------------------------------------------------------

    def _keep(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind not in self._keepers:
            self._keepers[kind] = self._keeper_of(kind)
        keeper = self._keepers[kind]
        if keeper is None or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if depth < 0:
            self._give_up(value)
            return
        try:
            keeper(value, depth)
        except Exception:  # of a class that is derived from a container or tensor: no reason for a step to fail
            log.debug("%s.%s cannot be kept", self._place.owner.name, self._place.attribute, exc_info=True)
            self._give_up(value)

    def _keeper_of(self, kind: type) -> Keeper | None:
        keepers: tuple[tuple[Any, Keeper | None], ...] = (
            (torch.nn.Parameter, None),
            (torch.Tensor, self._keep_tensor),
            (list, self._keep_list),
            (dict, self._keep_dict),
            ((tuple, frozenset), self._follow),
            (set, self._keep_set),
            (deque, self._keep_deque),
            (bytearray, self._keep_bytes),
            (np.ndarray, self._keep_array),
            ((torch.Generator, random.Random, np.random.Generator, np.random.RandomState), self._keep_generator),
            (torch.nn.Module, self._keep_other),
            (_REFERENCES, None),
            (types.SimpleNamespace, self._keep_object),
        )
        for base, keeper in keepers:
            if issubclass(kind, base):
                return keeper
        return self._keep_object if self._is_plain(kind) else self._keep_other

    def _is_plain(self, kind: type) -> bool:
        """Tell whether all that an object of this class holds is in its `vars()`."""
        classes = [base for base in kind.__mro__ if base not in _EMPTY_BASES]
        return all(self._own(base) and not vars(base).get("__slots__") for base in classes)

    def _give_up(self, value: Any) -> None:
        self._unkept.append((self._place, value))

    def _when_put_back(self, value: Any, restore: Restore) -> None:
        self._restores.append((self._place, value, restore))

    def _follow(self, entries: Collection[Any], depth: int) -> None:
        """Keep what is inside of a container's entries."""
        if len(entries) > self._limits.followed:
            return
        keepers = self._keepers
        for entry in entries:
            if keepers.get(type(entry), _UNSEEN) is not None:
                self._keep(entry, depth - 1)

    def _keep_list(self, value: list[Any], depth: int) -> None:
        if len(value) <= self._limits.followed:
            copy = list(value)
            self._when_put_back(value, lambda: list.__setitem__(value, slice(None), copy))
            self._follow(copy, depth)
            return
        kept = self._last[1].get(id(value))
        if kept is None or kept.value is not value:
            kept = _KeptList(value)
        kept.take(self._place, exact=len(value) <= 5 * self._limits.entries)
        self._lists[id(value)] = kept

    def _keep_dict(self, value: dict[Any, Any], depth: int) -> None:
        if len(value) > self._limits.entries:
            self._give_up(value)
            return
        copy = dict(value)
        kind = OrderedDict if isinstance(value, OrderedDict) else dict  # a `Counter`'s own `update` adds

        def restore() -> None:
            kind.clear(value)
            kind.update(value, copy)

        self._when_put_back(value, restore)
        self._follow(copy.values(), depth)

    def _keep_set(self, value: set[Any], depth: int) -> None:  # noqa: ARG002
        if len(value) > self._limits.entries:
            self._give_up(value)
            return
        copy = set(value)

        def restore() -> None:
            value.clear()
            value.update(copy)

        self._when_put_back(value, restore)

    def _keep_deque(self, value: deque[Any], depth: int) -> None:
        if len(value) > self._limits.entries:
            self._give_up(value)
            return
        copy = list(value)

        def restore() -> None:
            value.clear()
            value.extend(copy)

        self._when_put_back(value, restore)
        self._follow(copy, depth)

    def _keep_bytes(self, value: bytearray, depth: int) -> None:  # noqa: ARG002
        if len(value) > self._limits.elements:
            self._give_up(value)
            return
        copy = bytes(value)
        self._when_put_back(value, lambda: value.__setitem__(slice(None), copy))

    def _keep_array(self, value: np.ndarray[Any, Any], depth: int) -> None:  # noqa: ARG002
        if value.size > self._limits.elements or value.dtype.hasobject:
            self._give_up(value)
        elif value.flags.writeable:
            copy = value.copy()
            self._when_put_back(value, lambda: np.copyto(value, copy))

    def _keep_generator(self, value: Any, depth: int) -> None:  # noqa: ARG002
        self._when_put_back(value, _restore_of_generator(value))

    def _keep_object(self, value: Any, depth: int) -> None:
        attributes = vars(value).copy()
        if any(self._is_strange(one) for one in attributes.values()):
            self._give_up(value)  # its numbers may belong to the lock, file or thread that it holds
            return
        self._owners.append((Owner(type(value).__name__, vars(value)), attributes))
        self._follow(attributes.values(), depth)

    def _is_strange(self, value: Any) -> bool:
        """Tell whether nothing can be said of the value's kind."""
        kind = type(value)
        if kind not in self._keepers:
            self._keepers[kind] = self._keeper_of(kind)
        strange = self._keepers[kind] == self._keep_other
        return strange and not isinstance(value, _REFERENCES) and self._other(value) is None

    def _keep_other(self, value: Any, depth: int) -> None:  # noqa: ARG002
        restore = self._other(value)
        if restore is not None:
            self._when_put_back(value, restore)
        elif not isinstance(value, _REFERENCES):
            self._give_up(value)

    def _keep_tensor(self, value: torch.Tensor, depth: int) -> None:  # noqa: ARG002
        last = self._last[0].get(id(value))
        if last is not None and last.tensor is not value:
            last = None
        if last is not None and last.holds():
            self._tensors[id(value)] = last
            return
        if value.requires_grad or value.layout is not torch.strided:
            return  # an output of a forward pass, or a weight: nobody changes the one, the optimizer the other
        most = self._limits.elements if last is None else self._limits.lasting_elements
        self._tensors[id(value)] = _KeptTensor(value, self._place, copies=value.numel() <= most)


class _KeptTensor:
    """Hold a tensor, its version, and a copy of its values unless it is too large."""

    __slots__ = ("copy", "place", "tensor", "version")

    def __init__(self, tensor: torch.Tensor, place: _Place, *, copies: bool) -> None:
        self.tensor, self.place, self.version = tensor, place, version_of(tensor)
        self.copy = tensor.detach().clone() if copies else None

    def holds(self) -> bool:
        """Tell whether the copy has the values that the tensor has now."""
        return self.copy is not None and version_of(self.tensor) == self.version != _UNKNOWN

    def restore(self) -> bool:
        """Put the values back if they have changed; return whether they are as before."""
        if version_of(self.tensor) == self.version != _UNKNOWN:
            return True
        if self.copy is None:
            return False
        with torch.inference_mode(mode=self.tensor.is_inference()), torch.no_grad():
            try:
                if self.tensor.shape != self.copy.shape:
                    self.tensor.resize_(self.copy.shape)
                self.tensor.copy_(self.copy)
            except RuntimeError:  # a view that repeats its elements
                return False
        self.version = version_of(self.tensor)
        return True


class _KeptList:
    """Hold a long list: its entries, copied only as it grows, or its length alone."""

    __slots__ = ("entries", "length", "place", "value")

    def __init__(self, value: list[Any]) -> None:
        self.value = value
        self.entries: list[Any] | None = None
        self.length = 0
        self.place: _Place

    def take(self, place: _Place, *, exact: bool) -> None:
        value = self.value
        self.place, self.length = place, len(value)
        if not exact:
            self.entries = None
        elif self.entries is None or len(self.entries) > len(value):
            self.entries = list(value)
        else:
            self.entries.extend(value[len(self.entries) :])
            if not _same(self.entries, value):
                self.entries = list(value)

    def restore(self) -> bool:
        """Put the entries back; return false if only the length could be."""
        if self.entries is not None:
            list.__setitem__(self.value, slice(None), self.entries)
            return True
        if len(self.value) > self.length:
            list.__delitem__(self.value, slice(self.length, None))
        return False


def _same(kept: Any, value: Any) -> bool:
    """Compare two lists, or dictionaries, whose entries are rarely different objects, which alone are looked at."""
    try:
        return bool(kept == value)
    except Exception:  # a tensor of several elements in place of another one
        return False


def _restore_of_generator(value: Any) -> Restore:
    """Return how to set the generator's state to what it is now."""
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)


def version_of(tensor: torch.Tensor) -> int:
    """Return a number that every change in place of the tensor increases; `_UNKNOWN` where torch does not count."""
    return _UNKNOWN if tensor.is_inference() else tensor._version


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.numel():,} elements"
    if isinstance(value, np.ndarray):
        return f"an array of {value.size:,} elements"
    if isinstance(value, (list, dict, set, deque, bytearray)):
        return f"a {type(value).__name__} of {len(value):,} entries"
    return type(value).__name__


def own_classes(roots: Collection[str]) -> Callable[[type], bool]:
    """Return a function that tells whether a class is the user's own: of a package in `roots`, or of none installed."""

    @functools.cache
    def own(kind: type) -> bool:
        name = kind.__module__
        if name.partition(".")[0] in (*roots, "__main__"):
            return True
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            return False
        return not _INSTALLED.intersection(Path(file).parts) and not Path(file).is_relative_to(_STANDARD_LIBRARY)

    return own


log = logging.getLogger("dtf_lightning")

_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD_LIBRARY = Path(logging.__file__).parents[1]
_UNKNOWN = -1
_UNSEEN = object()
_EMPTY_BASES = (object, abc.ABC, typing.Generic, typing.Protocol)
_UNCHANGEABLE = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type, torch.dtype, torch.device, torch.Size,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType,
)  # fmt: skip
_REFERENCES = (
    *_UNCHANGEABLE, numbers.Number, np.generic, np.dtype, dt.date, dt.time, dt.timedelta, dt.tzinfo,
    uuid.UUID, enum.Enum, PurePath, logging.Logger, re.Pattern, functools.partial, weakref.ref, torch.nn.Module,
    torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.utils.data.Dataset, torch.utils.data.DataLoader,
)  # fmt: skip
"""Classes whose objects are not looked into: they cannot change, do so as a rule in set-up, or belong to somebody else."""
