"""Laws fitted to amounts: what follows a law is given back as that law."""

from __future__ import annotations

import itertools
import math

import pytest

from autotune.price.traced.scaling_law import ScalingLaw, fit

AXES = ("data", "fsdp", "tensor")
SIZES = [
    dict(zip(AXES, sizes, strict=True))
    for sizes in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2))
]  # fmt: skip
"""Each axis alone, then pairs: what is probed."""
FAR = {"data": 16, "fsdp": 8, "tensor": 4}
SUBSETS = [subset for count in range(4) for subset in itertools.combinations(AXES, count)]


def amounts(terms):
    law = ScalingLaw(terms=tuple(terms), error=0.0)
    return [(sizes, law.at(sizes)) for sizes in SIZES], law


@pytest.mark.parametrize("axes", SUBSETS)
def test_one_term_comes_back_with_its_axes(axes):
    seen, law = amounts([(axes, 96.0)])
    found = fit(seen)
    assert [set(mine) for mine, _ in found.terms] == [set(axes)]
    assert found.at(FAR) == pytest.approx(law.at(FAR))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SUBSETS, 2)))
def test_two_terms_come_back_however_far_the_sizes(one, other):
    """Weights cut along some axes beside activations cut along others, as every program has them."""
    seen, law = amounts([(one, 96.0), (other, 32.0)])
    assert fit(seen).at(FAR) == pytest.approx(law.at(FAR))


def test_parts_of_one_number_of_devices_take_what_all_axes_cut_before_what_none_does():
    seen = [({"data": 4, "fsdp": 1}, 5.0), ({"data": 1, "fsdp": 4}, 5.0), ({"data": 2, "fsdp": 2}, 5.0)]
    assert fit(seen).at({"data": 8, "fsdp": 8}) == pytest.approx(20.0 / 64)


def test_nothing_has_no_terms_and_what_follows_no_law_says_by_how_much():
    assert fit([({"data": 2}, 0.0)]).terms == ()
    assert fit([({"data": 2}, 1.0), ({"data": 4}, 3.0)]).error > 0.2


def test_falling_with_an_axis_divides_by_its_size():
    law = ScalingLaw(terms=((("data",), 8.0), ((), 1.0)), error=0.0)
    size = {"data": 2, "stage": 4}
    assert law.falling_with(("stage",)).at(size) == law.at(size) / math.prod((4,))
