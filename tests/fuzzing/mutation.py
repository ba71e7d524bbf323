"""Damage that looks like an attack: bytes, texts and values, changed at random."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = [
    0, 1, -1, 2, 127, 255, 256, 65535, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5,
    -0.0, 1e-300, 1e300, float("inf"), float("nan"),
]  # fmt: skip
WORDS = [
    "", "a", "\0", "\n", "\x1b[31m", "\ud800", "\udfff", "\u202e", "\ufeff", "🍎", "\ue0000\ue001",
    "../x", "/etc/passwd", "</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>", "{prompt}", "{",
    "{prompt.__class__}", "{system_prompt}", "%s", "\\", '"', "NaN", "http://127.0.0.1/", "data:,x",
    "http://[::1", "lora_A", "q_proj", "(.*)*", "prompt", "completion", "text", "messages", "role",
]  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\x80", b"\n", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"null",
    b"NaN", b"1e999", b"\\ud800", b"\xed\xa0\x80", b"\xc0\xaf", b"-1", b"9" * 40, b"[" * 300,
    b"../", b"77777777777", b"ustar\0", b"PK\x01\x02", b"PK\x05\x06", b"\x1f\x8b\x08", b"path=../x",
]  # fmt: skip


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return the data with one to four kinds of damage."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        end = min(len(changed), place + rng.choice((1, 2, 4, 12, 100, 512)))
        match rng.randrange(8):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(changed):
                changed[place] = rng.randrange(256)
            case 2:
                changed[place:place] = rng.choice(TOKENS)
            case 3:
                token = rng.choice(TOKENS)
                changed[place : place + len(token)] = token
            case 4:
                del changed[place:end]
            case 5:
                changed[place:place] = changed[place:end]
            case 6:
                del changed[place:]
            case 7:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                changed[place:end] = other[start : start + rng.choice((4, 100, 512))]
    return bytes(changed)


def random_text(rng: Random) -> str:
    """Return a text of the words that attacks are made of."""
    match rng.randrange(100):
        case 0:
            return rng.choice(WORDS) * rng.randrange(2000)
        case 1 | 2 | 3 | 4 | 5:
            return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(30)))
    return "".join(rng.choices(WORDS, k=rng.randrange(8)))


def random_value(rng: Random, depth: int = 0) -> Any:
    """Return any value that JSON, or Python's reading of it, knows."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return random_text(rng)
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return rng.randrange(-5, 2000)
    if kind < 8:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(5))}


def mutate_value(rng: Random, value: Any) -> Any:
    """Return the value with something in it replaced, added or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[random_text(rng)] = random_value(rng)
            case 2:
                changed[random_text(rng)] = changed.pop(key)
            case _:
                changed[key] = mutate_value(rng, changed[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        changed = list(value)
        place = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                del changed[place]
            case 1:
                changed.insert(place, random_value(rng))
            case 2:
                changed = changed * rng.randrange(4)
            case _:
                changed[place] = mutate_value(rng, changed[place])
        return changed
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2**32, -(2**32)))
    return random_value(rng)


def as_json(rng: Random, value: Any, others: Sequence[bytes]) -> bytes:
    """Return the value as JSON, sometimes damaged as text too."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, text, others) if rng.random() < 0.2 else text
