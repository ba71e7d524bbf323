"""How large a JSON schema is once all that must hold together is written out."""

import math
from collections.abc import Iterator
from typing import Any

NUM_TYPES = 6
MOST = 10**9
ANNOTATIONS = {
    "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType",
    "default", "definitions", "description", "examples", "id", "readOnly", "title", "writeOnly",
}  # fmt: skip
APPLICATORS = {"allOf", "anyOf", "oneOf", "const", "enum", "$ref"}
"""Keywords whose schemas hold for the value itself."""
HOLDERS = {
    "properties": dict, "patternProperties": dict, "additionalProperties": None, "items": None,
    "additionalItems": None, "prefixItems": None,
}  # fmt: skip
"""Keywords whose schemas hold for parts of the value, some by name."""

Size = tuple[int, int]
"""How many alternatives there are, and how many parts in all of them together."""


class Expansion:
    """Counts the parts of a schema when references and choices that must hold together are copied.

    A reference alone is followed once, however often it is there; beside other keywords it is
    a copy each time.
    """

    def __init__(self, targets: dict[str, Any]) -> None:
        self._targets = targets
        self._known: dict[tuple[str, bool], Size] = {}
        self.met_patterns: set[str] = set()
        self.met_multiples: set[int | float] = set()

    def size(self, node: Any, *, copied: bool = False, meets: bool = False) -> Size:
        """Return the size of a schema; copied beside another one, of which parts may meet its."""
        if not isinstance(node, dict):
            return 1, 1 + sum(1 + self.size(child, meets=meets)[1] for child in containers(node))
        keywords = node.keys() - ANNOTATIONS
        applied = keywords & APPLICATORS
        own = [child for keyword in keywords & HOLDERS.keys() for child in _held(node, keyword)]
        # An untyped schema is one for each type.
        weight = bool(keywords - applied) * (1 if "type" in node else NUM_TYPES)
        num_applied = len(applied) + max(0, len(list(containers(node.get("allOf")))) - 1)
        copied = copied or meets or (num_applied + bool(weight) > 1 and num_applied > 0)
        meets = meets or _num_holders(node) > 1
        if copied:
            self._meet(node)
        sizes = [(1, weight + sum(1 + self.size(child, meets=meets)[1] for child in own))]
        for keyword in applied:
            sizes += self._applied(keyword, node[keyword], copied=copied, meets=meets)
        alternatives = min(MOST, math.prod(count for count, _ in sizes))
        parts = sum(alternatives * parts // count for count, parts in sizes)
        return alternatives, min(MOST, parts)

    def _applied(self, keyword: str, value: Any, *, copied: bool, meets: bool) -> list[Size]:
        if keyword == "$ref":
            return [self._followed(value, meets)] if copied and isinstance(value, str) else []
        if keyword == "const":
            return [self.size([value])]
        if not isinstance(value, list) or not value:
            return []
        if keyword == "enum":
            return [(len(value), self.size(value)[1])]
        sizes = [self.size(child, copied=copied, meets=meets) for child in value]
        return (
            sizes if keyword == "allOf" else [(sum(a for a, _ in sizes), sum(b for _, b in sizes))]
        )

    def _followed(self, ref: str, meets: bool) -> Size:
        if (ref, meets) not in self._known:
            self._known[ref, meets] = 1, 1  # for a reference to itself
            self._known[ref, meets] = self.size(self._targets[ref], copied=True, meets=meets)
        return self._known[ref, meets]

    def _meet(self, node: dict[str, Any]) -> None:
        if isinstance(pattern := node.get("pattern"), str):
            self.met_patterns.add(pattern)
        self.met_multiples.update(multiple(node))


def containers(value: Any) -> Iterator[Any]:
    """Yield the objects and lists right below a value."""
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        yield from (child for child in children if isinstance(child, dict | list))


def multiple(node: dict[str, Any]) -> set[int | float]:
    """Return the number that a schema's value is to be a multiple of, if there is one."""
    number = node.get("multipleOf")
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return set()
    return {number}


def _num_holders(node: Any) -> int:
    """Return how many of the schemas that hold for one value have schemas for parts of it."""
    if not isinstance(node, dict):
        return 0
    count = int(not HOLDERS.keys().isdisjoint(node)) + ("$ref" in node)
    for keyword in ("allOf", "anyOf", "oneOf"):
        held = [_num_holders(child) for child in containers(node.get(keyword))]
        count += sum(held) if keyword == "allOf" else max(held, default=0)
    return count


def _held(node: dict[str, Any], keyword: str) -> Iterator[Any]:
    return containers(node[keyword] if HOLDERS[keyword] is dict else [node[keyword]])
