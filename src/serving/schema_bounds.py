"""What a JSON schema may hold, so that its grammar is made within a fraction of a second."""

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from src.errors import UserError

MAX_DEPTH = 64
MAX_REF_STEPS = 1_000
"""llguidance follows references on the stack: some 5 KB for each level it passes."""
MAX_PARTS = 10_000
MAX_MET_PATTERNS = 8
"""What holds for both of two patterns takes twice the states; 16 of them never end."""
MAX_MULTIPLE = 10_000
MAX_USES = {
    "properties": 2_000,
    "required": 2_000,
    "patternProperties": 8,
    "allOf": 256,
    "$ref": 1_000,
    "pattern": 256,
    "format": 256,
    "multipleOf": 256,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), 128),
    **dict.fromkeys(("minItems", "maxItems"), 128),
}
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


def check_bounds(schema: dict[str, Any]) -> None:
    """Raise UserError for a schema that is too deep or too large to follow."""
    if _is_deeper(schema, MAX_DEPTH):
        _refuse(f"expected at most {MAX_DEPTH} levels of nesting, found more")
    nodes = [node for node in _all_below(schema) if isinstance(node, dict)]
    for keyword, limit in MAX_USES.items():
        uses = sum(_uses(node[keyword]) for node in nodes if keyword in node)
        if uses > limit:
            _refuse(f"expected at most {limit:,} of {keyword!r} in all, found {uses:,}")
    _check_bases(schema, nodes)
    targets = {ref: _target(schema, ref) for node in nodes if (ref := _ref(node)) is not None}
    steps = sum(_levels_to_refs(target) + 1 for target in targets.values())
    if steps > MAX_REF_STEPS:
        _refuse(f"expected at most {MAX_REF_STEPS:,} levels below references, found {steps:,}")
    expansion = _Expansion(targets)
    try:
        parts = sum(expansion.size(root)[1] for root in [schema, *targets.values()])
    except RecursionError:
        raise UserError(
            "json_schema: expected references that must hold together to be followed in fewer "
            "steps, found too long a chain of them"
        ) from None
    if parts > MAX_PARTS:
        found = f"{parts:,}" if parts < MOST else "a billion or more"
        _refuse(
            f"expected at most {MAX_PARTS:,} parts once all that must hold together is written "
            f"out, found {found}"
        )
    if len(expansion.met_patterns) > MAX_MET_PATTERNS:
        _refuse(
            f"expected at most {MAX_MET_PATTERNS} different patterns in parts that must hold "
            f"together, found {len(expansion.met_patterns)}"
        )
    multiples = {number for node in nodes for number in _multiple(node)}
    common = _common_multiple(multiples, scaled=False)
    if max(common, _common_multiple(expansion.met_multiples, scaled=True)) > MAX_MULTIPLE:
        _refuse(
            f"expected 'multipleOf' with a least common multiple of at most {MAX_MULTIPLE:,} "
            "(without the point), found a larger one"
        )


class _Expansion:
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
            return 1, 1 + sum(1 + self.size(child, meets=meets)[1] for child in _containers(node))
        keywords = node.keys() - ANNOTATIONS
        applied = keywords & APPLICATORS
        own = [child for keyword in keywords & HOLDERS.keys() for child in _held(node, keyword)]
        # An untyped schema is one for each type.
        weight = bool(keywords - applied) * (1 if "type" in node else NUM_TYPES)
        num_applied = len(applied) + max(0, len(list(_containers(node.get("allOf")))) - 1)
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
        self.met_multiples.update(_multiple(node))


def _num_holders(node: Any) -> int:
    """Return how many of the schemas that hold for one value have schemas for parts of it."""
    if not isinstance(node, dict):
        return 0
    count = int(not HOLDERS.keys().isdisjoint(node)) + ("$ref" in node)
    for keyword in ("allOf", "anyOf", "oneOf"):
        held = [_num_holders(child) for child in _containers(node.get(keyword))]
        count += sum(held) if keyword == "allOf" else max(held, default=0)
    return count


def _held(node: dict[str, Any], keyword: str) -> Iterator[Any]:
    return _containers(node[keyword] if HOLDERS[keyword] is dict else [node[keyword]])


def _refuse(reason: str) -> None:
    raise UserError(f"json_schema: {reason}")


def _containers(value: Any) -> Iterator[Any]:
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        yield from (child for child in children if isinstance(child, dict | list))


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [child for parent in layer for child in _containers(parent)]
    return bool(layer)


def _all_below(value: Any) -> Iterator[Any]:
    yield value
    for child in _containers(value):
        yield from _all_below(child)


def _uses(value: Any) -> int:
    return len(value) if isinstance(value, dict | list) else 1


def _ref(node: dict[str, Any]) -> str | None:
    return ref if isinstance(ref := node.get("$ref"), str) else None


def _check_bases(schema: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
    """Raise UserError for a name that changes where the references below it lead."""
    is_draft_4 = any("draft-04" in str(node.get("$schema", "")) for node in nodes)
    names = ("$id", "id") if is_draft_4 else ("$id",)
    inner = [node for node in nodes if node is not schema]
    if any(isinstance(node.get(name), str) for name in names for node in inner):
        _refuse("expected '$id' at the beginning only, found one further down")


def _target(schema: Any, ref: str) -> Any:
    if ref == "#":
        return schema
    if ref.startswith("#/") and "%2f" not in ref.lower():
        try:
            for escaped in unquote(ref[2:]).split("/"):
                name = escaped.replace("~1", "/").replace("~0", "~")
                schema = schema[int(name) if isinstance(schema, list) else name]
            return schema
        except (KeyError, IndexError, TypeError, ValueError):
            pass
    raise UserError(
        f"json_schema: expected a '$ref' like '#/$defs/name' that is there, found {ref[:80]!r}"
    )


def _levels_to_refs(value: Any) -> int:
    deepest = max(map(_levels_to_refs, _containers(value)), default=0)
    return deepest + 1 if deepest or (isinstance(value, dict) and "$ref" in value) else 0


def _multiple(node: dict[str, Any]) -> set[int | float]:
    number = node.get("multipleOf")
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return set()
    return {number}


def _common_multiple(numbers: Iterable[int | float], *, scaled: bool) -> int:
    """Return the least common multiple of the numbers without their points, or with the same."""
    decimals = [abs(Decimal(str(number))).normalize() for number in numbers if number]
    places = [max(0, -int(number.as_tuple().exponent)) for number in decimals]
    same = max(places, default=0)
    return math.lcm(
        *(
            int(number.scaleb(same if scaled else own))
            for number, own in zip(decimals, places, strict=True)
        )
    )
