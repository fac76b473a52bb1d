"""Inputs that are nearly right: texts and documents that were saved by the tool, changed in a few places."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

ODD = (
    *("", " ", "\n", "\0", "\x1b[2J", "\u2028", "\u0663", "é", "nan", "inf", "-inf", "1e999", "-1", "0", "00", "1_000"),
    *("9" * 400, "99999999999999999999", str(2**53), str(2**63), "1048577", "0x10", "true", "None", "null", "{}", "[]"),
    *(
        "[" * 200,
        "{" * 200,
        "(" * 200,
        ")",
        "}",
        "]",
        '"',
        "'",
        ",",
        ",,",
        "=",
        "==",
        ";",
        ":",
        "*",
        "x",
        ".",
        "#",
        "\\",
    ),
    *(
        "$(x)",
        "../",
        "/dev/null",
        "%s",
        "xla.xla_dump_to=x",
        "dcn.",
        "rule.",
        "order=",
        "remat=full",
        "stage=2",
        "data=1",
    ),
)
"""Pieces that readers stumble over."""

PIECES = st.one_of(st.sampled_from(ODD), st.text(max_size=8))

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.integers(-2, 3),
        st.floats(),
        st.sampled_from(ODD),
        st.text(max_size=12),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
"""Any JSON value, NaN and numbers beyond 64 bits among them."""


@st.composite
def texts(draw: st.DrawFn, saved: Sequence[str], most: int = 4) -> str:
    """A saved text with up to `most` pieces cut out, doubled, moved, or put in."""
    text = draw(st.sampled_from(list(saved)))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.sampled_from((0, 1, 1, 2, 5, 20, 200))))
        change = draw(st.sampled_from(("cut", "double", "swap", "put", "end")))
        piece = text[at:end]
        if change == "cut":
            text = text[:at] + text[end:]
        elif change == "double":
            text = text[:end] + piece + text[end:]
        elif change == "swap":
            other = draw(st.integers(0, len(text)))
            text = text[:other] + piece + text[other:]
        elif change == "put":
            text = text[:at] + draw(PIECES) + text[end:]
        else:
            text = text[:at] if at else text
    return text


@st.composite
def documents(draw: st.DrawFn, saved: Sequence[dict[str, Any]], most: int = 3) -> dict[str, Any]:
    """A saved JSON object with up to `most` of its values replaced, left out, renamed or doubled."""
    document = copy.deepcopy(draw(st.sampled_from(list(saved))))
    for _ in range(draw(st.integers(0, most))):
        place: Any = document
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inside = place[key]
            if isinstance(inside, dict | list) and inside and draw(st.booleans()):
                place = inside
                continue
            _changed(draw, place, key)
            break
    return document


def _changed(draw: st.DrawFn, place: Any, key: Any) -> None:
    change = draw(st.sampled_from(("replace", "replace", "leave out", "rename", "nudge")))
    if change == "leave out":
        del place[key]
    elif change == "rename" and isinstance(place, dict):
        place[draw(st.sampled_from((key[:-1], key + "s", key.upper(), draw(PIECES))))] = place.pop(key)
    elif change == "nudge" and isinstance(place[key], int | float) and not isinstance(place[key], bool):
        place[key] = place[key] + draw(st.sampled_from((-1, 1, 2**53, 1e300, 0.5)))
    elif change == "nudge" and isinstance(place[key], str):
        place[key] = draw(texts([place[key]], 2))
    else:
        place[key] = draw(VALUES)
