"""Makes one result of what the subtasks of a job gave, by a rule. Pure.

| rule | values | result |
|---|---|---|
| `concatenate` | lists | one list, in the order of the shares |
| `sum`, `min`, `max` | numbers; lists or mappings of them, of one shape | the same shape |
| `mean` | as these | weighted by the number of inputs, or by the field `weight` |
| `best` | mappings with the number `by`; `prefer: max` or `min` | the best of them, whole |
| `vote` | anything; lists of one length: place by place | what most have; of a tie the first |
| `percentiles` | histograms with equal edges, or lists of numbers | `p50`, ... of all values together, and `count` |
| `join` | anything | name of the subtask -> its value; with `by: FIELD`: rows of lists with the same field become one |
| `fields` | mappings | each of these fields by its own rule; others are left out |
| `call` | anything | what a function of one's own returns, in a task of its own |

Rule: nothing is guessed where values do not fit together: `UnlikeResults` names the subtask, what it gave and what is expected.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.histograms import Histogram, added, percentile_of, read_histogram

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
SIMPLE = ("concatenate", "sum", "mean", "min", "max", "best", "vote", "percentiles", "join")
RULES = (*SIMPLE, "fields", "call")
_OPTIONS: Mapping[str, frozenset[str]] = {
    "mean": frozenset({"weight"}),
    "best": frozenset({"by", "prefer"}),
    "percentiles": frozenset({"at"}),
    "join": frozenset({"by"}),
    "fields": frozenset({"fields"}),
    "call": frozenset({"call"}),
}


class UnlikeResults(SettingsError):
    """The results of a job's subtasks do not fit together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a subtask gave."""

    name: str
    weight: int
    """Inputs of its share; 1 where they are not divided."""
    value: Any
    """As JSON has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How results are merged."""

    how: str
    by: str = ""
    """Of `best`: the number that counts; of `join`: the field that rows have in common."""
    prefer: str = "max"
    weight: str = ""
    """Of `mean`: the field that holds the weight; "": the number of inputs is."""
    at: tuple[float, ...] = PERCENTILES
    call: str = ""
    fields: Mapping[str, Rule] = field(default_factory=dict)


def read_rule(told: Any, what: str = "merge") -> Rule:
    """Return a rule that is told by its name, or as a mapping with `how` and its options. Raises `SettingsError`."""
    options: dict[str, Any] = {"how": told} if isinstance(told, str) else told
    if not isinstance(options, Mapping):
        raise SettingsError(f"{what}: expected one of {', '.join(RULES)}, or a mapping with `how`; got {told!r}")
    options = dict(options)
    if "how" not in options and len(known := [name for name in ("fields", "call") if name in options]) == 1:
        options["how"] = known[0]
    how = options.pop("how", None)
    if how not in RULES:
        raise SettingsError(f"{what}: expected one of {', '.join(RULES)}, got {how!r}")
    unknown = sorted(options.keys() - _OPTIONS.get(how, frozenset()))
    if unknown:
        takes = ", ".join(sorted(_OPTIONS.get(how, ()))) or "none"
        raise SettingsError(f"{what}: {how} has no option {unknown[0]!r}; it takes {takes}")
    if how == "fields":
        fields = options.get("fields")
        if not isinstance(fields, Mapping) or not fields:
            raise SettingsError(f"{what}: `fields` says for each field how it is merged, such as {{loss: mean}}")
        inner = {str(name): read_rule(one, f"{what}.{name}") for name, one in fields.items()}
        for name, one in inner.items():
            if one.how in ("call", "fields"):
                raise SettingsError(f"{what}.{name}: {one.how} is for whole results")
        return Rule(how=how, fields=inner)
    return _checked(Rule(how=how, **_typed(options, what)), what)


def _typed(options: Mapping[str, Any], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name == "at":
            numbers = value if isinstance(value, list | tuple) else [value]
            if not numbers or not all(_is_number(one) and 0 <= one <= 100 for one in numbers):
                raise SettingsError(f"{what}: `at` is a list of percentages from 0 to 100, got {value!r}")
            found[name] = tuple(map(float, numbers))
        elif not isinstance(value, str) or not value:
            raise SettingsError(f"{what}: `{name}` is a text, got {value!r}")
        else:
            found[name] = value
    return found


def _checked(rule: Rule, what: str) -> Rule:
    if rule.how == "best" and not rule.by:
        raise SettingsError(
            f"{what}: best needs `by`, the name of the number that counts, such as {{how: best, by: accuracy}}"
        )
    if rule.prefer not in ("max", "min"):
        raise SettingsError(f"{what}: `prefer` is max or min, got {rule.prefer!r}")
    if rule.how == "call" and not rule.call:
        raise SettingsError(f"{what}: call needs the function, package.module:function")
    return rule


def merge(rule: Rule, parts: Sequence[Part]) -> Any:
    """Return one result of the parts, of which there is at least one, in the order of their shares.

    Raises `UnlikeResults`. `call` is no rule of this function: it is a task.
    """
    return _MERGERS[rule.how](rule, parts)


# --- values of one shape ----------------------------------------------------------------------------------------------

Combine = Callable[[Sequence[float], Sequence[float]], float]
"""Makes one number of some, and of their weights."""


def _elementwise(combine: Combine) -> Callable[[Rule, Sequence[Part]], Any]:
    def merged(rule: Rule, parts: Sequence[Part]) -> Any:
        weights = [float(part.weight) for part in parts]
        if rule.weight:
            weights = [_number_at(part, rule.weight) for part in parts]
            parts = [Part(name=part.name, weight=part.weight, value={**part.value, rule.weight: 0}) for part in parts]
            if sum(weights) <= 0:
                raise UnlikeResults(f"the weights `{rule.weight}` of the subtasks are {weights}, and must not all be 0")
        told = _combined(combine, [part.value for part in parts], weights, [part.name for part in parts], "")
        return told | {rule.weight: _plain(math.fsum(weights))} if rule.weight else told

    return merged


def _combined(
    combine: Combine, values: Sequence[Any], weights: Sequence[float], names: Sequence[str], where: str
) -> Any:
    first = values[0]
    for name, value in zip(names, values, strict=True):
        if _shape(value) != _shape(first):
            raise UnlikeResults(
                f"the subtask {name!r} gave {_in_words(value)}{where}, and {names[0]!r} {_in_words(first)}: they must be of one shape"
            )
    if isinstance(first, list):
        return [
            _combined(combine, column, weights, names, f"{where} at the place {index}")
            for index, column in enumerate(zip(*values, strict=True))
        ]
    if isinstance(first, dict):
        return {
            key: _combined(combine, [value[key] for value in values], weights, names, f"{where} as {key!r}")
            for key in first
        }
    if not _is_number(first):
        raise UnlikeResults(
            f"the subtask {names[0]!r} gave {_in_words(first)}{where}: expected numbers, or lists or mappings of them"
        )
    return combine(values, weights)


def _sum(values: Sequence[float], _: Sequence[float]) -> float:
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)


# --- the other rules --------------------------------------------------------------------------------------------------


def _concatenate(_: Rule, parts: Sequence[Part]) -> list[Any]:
    for part in parts:
        if not isinstance(part.value, list):
            raise UnlikeResults(
                f"the subtask {part.name!r} gave {_in_words(part.value)}: `concatenate` joins lists; say by `merge` what else is wanted"
            )
    return [one for part in parts for one in part.value]


def _best(rule: Rule, parts: Sequence[Part]) -> Any:
    sign = 1.0 if rule.prefer == "max" else -1.0
    return max(parts, key=lambda part: sign * _number_at(part, rule.by)).value


def _vote(_: Rule, parts: Sequence[Part]) -> Any:
    values = [part.value for part in parts]
    if not any(isinstance(value, list) for value in values):
        return _winner(values)
    for part in parts:
        if not isinstance(part.value, list) or len(part.value) != len(values[0]):
            raise UnlikeResults(
                f"the subtask {part.name!r} gave {_in_words(part.value)}, and {parts[0].name!r} {_in_words(values[0])}: a vote place by "
                "place needs lists of one length"
            )
    return [_winner(column) for column in zip(*values, strict=True)]


def _winner(values: Sequence[Any]) -> Any:
    told = [json.dumps(value, sort_keys=True) for value in values]
    counts = Counter(told)
    return values[max(range(len(told)), key=lambda index: (counts[told[index]], -index))]


def _percentiles(rule: Rule, parts: Sequence[Part]) -> dict[str, Any]:
    if all(isinstance(part.value, list) for part in parts):
        values = [value for part in parts for value in part.value]
        wrong = next((part for part in parts if not all(map(_is_number, part.value))), None)
        if wrong is not None:
            raise UnlikeResults(
                f"the subtask {wrong.name!r} gave a list that holds more than numbers: percentiles are of numbers"
            )
        told = {_named(at): percentile_of(values, at) for at in rule.at} if values else {}
        return {**told, "count": len(values)}
    found: list[Histogram] = []
    for part in parts:
        histogram = read_histogram(part.value)
        if isinstance(histogram, str):
            raise UnlikeResults(
                f"the subtask {part.name!r} gave {histogram}: percentiles are made of histograms or of the values themselves, "
                "never of other percentiles"
            )
        if found and histogram.edges != found[0].edges:
            raise UnlikeResults(
                f"the histogram of {part.name!r} has other edges than that of {parts[0].name!r}: let all have the same"
            )
        found.append(histogram)
    whole = added(found)
    told = {_named(at): whole.percentile(at) for at in rule.at} if whole.total else {}
    return {**told, "count": whole.total, "edges": list(whole.edges), "counts": list(whole.counts)}


def _join(rule: Rule, parts: Sequence[Part]) -> Any:
    if not rule.by:
        return {part.name: part.value for part in parts}
    rows: dict[str, dict[str, Any]] = {}
    given: dict[tuple[str, str], str] = {}
    for part in parts:
        if not isinstance(part.value, list) or not all(isinstance(row, dict) and rule.by in row for row in part.value):
            raise UnlikeResults(
                f"the subtask {part.name!r} gave {_in_words(part.value)}: a join by {rule.by!r} needs lists of mappings that have it"
            )
        for row in part.value:
            key = json.dumps(row[rule.by], sort_keys=True)
            whole = rows.setdefault(key, {})
            for column, value in row.items():
                if column in whole and whole[column] != value:
                    raise UnlikeResults(
                        f"the subtasks {given[key, column]!r} and {part.name!r} both gave {column!r} for {rule.by} = {row[rule.by]!r}, "
                        f"{whole[column]!r} and {value!r}: give the columns different names"
                    )
                whole[column] = value
                given[key, column] = part.name
    return list(rows.values())


def _fields(rule: Rule, parts: Sequence[Part]) -> dict[str, Any]:
    wanted = rule.fields.keys()
    for part in parts:
        if not isinstance(part.value, dict) or not wanted <= part.value.keys():
            raise UnlikeResults(
                f"the subtask {part.name!r} gave {_in_words(part.value)}: expected a mapping with {', '.join(sorted(wanted))}, "
                "each of which has its rule"
            )
    return {
        name: merge(one, [Part(name=part.name, weight=part.weight, value=part.value[name]) for part in parts])
        for name, one in rule.fields.items()
    }


_MERGERS: Mapping[str, Callable[[Rule, Sequence[Part]], Any]] = {
    "concatenate": _concatenate,
    "sum": _elementwise(_sum),
    "mean": _elementwise(_mean),
    "min": _elementwise(lambda values, _: min(values)),
    "max": _elementwise(lambda values, _: max(values)),
    "best": _best,
    "vote": _vote,
    "percentiles": _percentiles,
    "join": _join,
    "fields": _fields,
}


# --- words ------------------------------------------------------------------------------------------------------------


def _number_at(part: Part, name: str) -> float:
    value = part.value.get(name) if isinstance(part.value, dict) else None
    if not _is_number(value):
        raise UnlikeResults(
            f"the subtask {part.name!r} gave {_in_words(part.value)}: expected a mapping with the number {name!r}"
        )
    return float(value)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(number: float) -> float:
    return int(number) if number.is_integer() else number


def _named(percent: float) -> str:
    return f"p{percent:g}"


def _shape(value: Any) -> object:
    """What values must have in common to be combined: all but the numbers."""
    if isinstance(value, list):
        return "list", len(value)
    if isinstance(value, dict):
        return "mapping", frozenset(value)
    return "number" if _is_number(value) else type(value).__name__


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping with {', '.join(sorted(map(str, value))) or 'nothing'}"
    if value is None:
        return "nothing"
    return f"the number {value!r}" if _is_number(value) else f"{str(value)[:80]!r}"
