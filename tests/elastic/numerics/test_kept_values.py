"""Whatever is done to attributes between `take` and `put_back` is undone, at a cost that does not grow with a long list."""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dtf_lightning.elastic.numerics.kept_values import (
    DEPTH,
    EACH_STEP,
    NOW_AND_THEN,
    KeptValues,
    Limits,
    Owner,
    own_classes,
)

SMALL = Limits(followed=4, entries=8, elements=6, lasting_elements=12)


class Thing:
    """An object of a class of one's own."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def keeper(limits: Limits = EACH_STEP) -> KeptValues:
    return KeptValues(limits, own=own_classes({__name__.partition(".")[0]}))


def owner(thing: Any) -> Owner:
    return Owner("Thing", vars(thing))


def value(number: random.Random, depth: int = 0) -> Any:
    """A random value of a random kind."""
    kinds = ["int", "text", "tensor", "array", "none"]
    if depth < DEPTH:
        kinds += [
            "list",
            "dict",
            "set",
            "deque",
            "counter",
            "ordered",
            "default",
            "tuple",
            "thing",
            "space",
            "bytes",
            "long",
        ]
    size = number.randrange(4)
    match number.choice(kinds):
        case "int":
            return number.randrange(100)
        case "text":
            return "abc"[: number.randrange(4)]
        case "tensor":
            return torch.full((size, 2), number.random())
        case "array":
            return np.full(size, number.random())
        case "none":
            return None
        case "list":
            return [value(number, depth + 1) for _ in range(size)]
        case "long":
            return [number.randrange(9) for _ in range(100)]
        case "dict":
            return {i: value(number, depth + 1) for i in range(size)}
        case "ordered":
            return OrderedDict((i, value(number, depth + 1)) for i in range(size))
        case "default":
            return defaultdict(list, {i: value(number, depth + 1) for i in range(size)})
        case "set":
            return set(range(size))
        case "deque":
            return deque((value(number, depth + 1) for _ in range(size)), maxlen=5)
        case "counter":
            return Counter(range(size))
        case "tuple":
            return tuple(value(number, depth + 1) for _ in range(size))
        case "bytes":
            return bytearray(size)
        case "thing":
            return Thing(a=value(number, depth + 1), b=number.random())
        case _:
            return SimpleNamespace(a=value(number, depth + 1))


def disturb(number: random.Random, one: Any) -> None:
    """Change something in place, at any depth."""
    match one:
        case torch.Tensor() | np.ndarray():
            one += 1
        case list() | deque():
            for entry in list(one):
                disturb(number, entry)
            shallow = all(isinstance(entry, int) for entry in one)  # inside of a long list's entries nothing is kept
            number.choice([lambda: one.append(1), one.clear, one.reverse, lambda: one.extend(range(70 * shallow))])()
        case Counter():
            one.update(range(3))
        case dict():
            for entry in list(one.values()):
                disturb(number, entry)
            number.choice(
                [lambda: one.update(new=1), one.clear, lambda: one.update({0: None}), lambda: one.pop(0, None)]
            )()
        case set():
            one ^= {1, 9}
        case bytearray():
            one += b"x"
        case tuple():
            for entry in one:
                disturb(number, entry)
        case Thing() | SimpleNamespace():
            for entry in vars(one).values():
                disturb(number, entry)
            number.choice(
                [lambda: setattr(one, "a", 7), lambda: setattr(one, "c", 7), lambda: vars(one).pop("a", None)]
            )()


def alike(one: Any, other: Any) -> bool:
    """Compare by value, at any depth."""
    if type(one) is not type(other):
        return False
    match one:
        case torch.Tensor():
            return torch.equal(one, other)
        case np.ndarray():
            return np.array_equal(one, other)
        case list() | deque() | tuple():
            return len(one) == len(other) and all(map(alike, one, other))
        case dict():
            return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
        case Thing() | SimpleNamespace():
            return alike(dict(sorted(vars(one).items())), dict(sorted(vars(other).items())))  # no order of attributes
    return bool(one == other)


@pytest.mark.parametrize("limits", [EACH_STEP, NOW_AND_THEN], ids=["step", "hooks"])
@pytest.mark.parametrize("seed", range(60))
def test_against_a_deep_copy(seed: int, limits: Limits) -> None:
    """Three times: changes that stay, a `take`, changes that are undone. The objects themselves stay, too."""
    number = random.Random(seed)
    thing = Thing(**{f"a{i}": value(number) for i in range(4)})
    kept = keeper(limits)
    for _ in range(3):
        disturb(number, thing)
        kept.take([owner(thing)])
        before, objects = copy.deepcopy(thing), {name: id(one) for name, one in vars(thing).items()}
        for _ in range(number.randrange(3)):
            disturb(number, thing)
        assert kept.put_back() == []
        assert alike(thing, before)
        assert {name: id(one) for name, one in vars(thing).items()} == objects


def test_a_long_list() -> None:
    """Steps that append, remove and exchange entries: each `take` keeps exactly what is there."""
    thing = Thing(losses=[float(i) for i in range(1000)])
    kept = keeper()
    for step in range(300):
        kept.take([owner(thing)])
        before = list(thing.losses)
        thing.losses += [float(step), float(step)]
        if step % 3 == 0:
            thing.losses[step] = -1.0
        if step % 50 == 0:
            del thing.losses[:500]
        assert kept.put_back() == []
        assert thing.losses == before
        thing.losses.append(float(step))
        if step % 7 == 0:
            thing.losses[5] += 1.0


def test_what_is_too_large_is_named() -> None:
    """A list that only grew is cut to its length; what can only have changed is named, what has not is not."""
    thing = Thing(
        many=list(range(100)), table=dict.fromkeys(range(20)), same=torch.zeros(20), other=torch.zeros(20),
        lasting=torch.zeros(10), reader=iter([1]), text="",
    )  # fmt: skip
    kept = keeper(SMALL)
    kept.take([owner(thing)])
    kept.take([owner(thing)])
    thing.many.append(1)
    thing.other += 1
    thing.lasting += 1
    assert sorted(kept.put_back()) == [
        "Thing.many (a list of 100 entries)", "Thing.other (a tensor of 20 elements)",
        "Thing.reader (list_iterator)", "Thing.table (a dict of 20 entries)",
    ]  # fmt: skip
    assert len(thing.many) == 100
    assert torch.equal(thing.lasting, torch.zeros(10))


def test_an_object_that_holds_a_lock_is_left_alone() -> None:
    """Its numbers may belong to a thread."""
    thing = Thing(sender=Thing(lock=threading.Lock(), sent=0))
    kept = keeper()
    kept.take([owner(thing)])
    thing.sender.sent = 1
    assert kept.put_back() == ["Thing.sender (Thing)"]
    assert thing.sender.sent == 1


def test_numbers_alone() -> None:
    """An object with nothing that can be changed in place, as most parts of a model, which is told by a comparison."""
    thing = Thing(num=0, name="a")
    kept, one = keeper(), owner(thing)
    for _ in range(3):
        kept.take([one])
        before = dict(vars(thing))
        thing.num, thing.new = 70, 1
        kept.put_back()
        assert vars(thing) == before
        thing.num += 1
    thing.name = [1]
    kept.take([one])
    thing.name.append(2)
    kept.put_back()
    assert thing.name == [1]


def test_too_deep() -> None:
    thing = Thing(deep=[[[[[[1]]]]]])
    kept = keeper()
    kept.take([owner(thing)])
    assert kept.put_back() == ["Thing.deep (a list of 1 entries)"]


def test_random_numbers() -> None:
    """Generators of the user's own draw the same numbers again."""
    generators = Thing(torch=torch.Generator().manual_seed(1), numpy=np.random.default_rng(1), python=random.Random(1))

    def draw() -> list[float]:
        mine = generators
        return [torch.rand(1, generator=mine.torch).item(), float(mine.numpy.random()), mine.python.random()]

    kept = keeper()
    draw()
    kept.take([owner(generators)])
    first = draw()
    kept.put_back()
    assert draw() == first


def test_tensors_of_an_inference_mode() -> None:
    """Torch counts no versions of theirs."""
    with torch.inference_mode():
        thing = Thing(total=torch.zeros(2), outs=[torch.zeros(2)])
    kept = keeper()
    kept.take([owner(thing)])
    with torch.inference_mode():
        thing.total += 1
        thing.outs[0] += 1
    kept.put_back()
    assert thing.total.tolist() == thing.outs[0].tolist() == [0, 0]


def test_weights_and_outputs_are_left_to_the_optimizer() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    thing = Thing(weights=[weight], out=weight * 2)
    kept = keeper()
    kept.take([owner(thing)])
    with torch.no_grad():
        weight += 1
    assert kept.put_back() == []
    assert weight.tolist() == [1, 1]


def test_no_tensor_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that would wait for all that is under way."""
    monkeypatch.setattr(torch.Tensor, "__eq__", lambda *_: pytest.fail("compared"))
    thing = Thing(state=torch.zeros(1), num=1)
    kept, one = keeper(), Owner("Thing", vars(thing), skipped={"state"})
    for _ in range(3):
        kept.take([one])
        thing.state = torch.zeros(1)


def test_steady_tensors_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda self, *a, **k: copied.append(self.numel()) or clone(self, *a, **k)
    )
    thing = Thing(mean=torch.zeros(5), moving=torch.zeros(7))
    kept = keeper()
    for _ in range(3):
        kept.take([owner(thing)])
        thing.moving += 1
    assert sorted(copied) == [5, 7, 7, 7]
