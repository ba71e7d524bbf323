"""What a JSON schema may hold, so that its grammar is made within a fraction of a second."""

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from src.errors import UserError
from src.serving.grammar.expansion import MOST, Expansion, containers, multiple

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
    expansion = Expansion(targets)
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
    multiples = {number for node in nodes for number in multiple(node)}
    common = _common_multiple(multiples, scaled=False)
    if max(common, _common_multiple(expansion.met_multiples, scaled=True)) > MAX_MULTIPLE:
        _refuse(
            f"expected 'multipleOf' with a least common multiple of at most {MAX_MULTIPLE:,} "
            "(without the point), found a larger one"
        )


def _refuse(reason: str) -> None:
    raise UserError(f"json_schema: {reason}")


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [child for parent in layer for child in containers(parent)]
    return bool(layer)


def _all_below(value: Any) -> Iterator[Any]:
    yield value
    for child in containers(value):
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
    deepest = max(map(_levels_to_refs, containers(value)), default=0)
    return deepest + 1 if deepest or (isinstance(value, dict) and "$ref" in value) else 0


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
