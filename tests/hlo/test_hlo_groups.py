"""Replica groups: every spelling, and back to the mesh axes that made them."""

import itertools

import numpy as np
import pytest

from autotune.hlo.groups import (
    axes_of_groups,
    axes_of_pairs,
    device_grid,
    domains_spanned,
    read_groups,
    read_pairs,
)

MESH = {"data": 2, "fsdp": 3, "tensor": 4}


def brute_force(mesh, along):
    """Groups of device numbers that differ only along the given axes, by comparing all coordinates."""
    places = list(itertools.product(*(range(size) for size in mesh.values())))
    groups = {}
    for number, place in enumerate(places):
        rest = tuple(c for axis, c in zip(mesh, place, strict=True) if axis not in along)
        groups.setdefault(rest, []).append(number)
    return list(groups.values())


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[1,4]<=[4]", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, dimensions", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a','c'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}, x", [[0, 2, 1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
        ("no groups at all", [[0, 1, 2, 3]]),
    ],
)
def test_every_spelling(text, groups):
    assert read_groups(text, 4).tolist() == groups


@pytest.mark.parametrize("text", ["replica_groups={{0,1},{2}}", "replica_groups=cube(4)"])
def test_what_cannot_be_read_is_none(text):
    assert read_groups(text, 4) is None


@pytest.mark.parametrize("along", [c for n in (1, 2, 3) for c in itertools.combinations(MESH, n)])
def test_groups_along_any_axes_are_found_again(along):
    grid = device_grid(MESH, {}, 24, 24)
    groups = np.array(brute_force(MESH, along))
    shuffled = np.random.default_rng(0).permutation(groups)[:, ::-1]
    assert axes_of_groups(groups, grid) == along
    assert axes_of_groups(shuffled, grid) == along


def test_groups_along_no_axes_have_none():
    grid = device_grid({"data": 2, "tensor": 2}, {}, 4, 4)
    assert axes_of_groups(np.array([[0, 3], [1, 2]]), grid) == ()
    grid = device_grid({"tensor": 4}, {}, 4, 4)
    assert axes_of_groups(np.array([[0, 1, 2]]), grid) == ()


def test_a_part_of_one_axis_is_that_axis():
    grid = device_grid({"data": 2, "tensor": 4}, {}, 8, 8)
    assert axes_of_groups(np.array([[0, 1], [2, 3], [4, 5], [6, 7]]), grid) == ("tensor",)


def test_a_permute_runs_along_the_axes_it_changes():
    grid = device_grid(MESH, {}, 24, 24)
    ring = read_pairs("source_target_pairs={{0,4},{4,8},{8,0},{1,5},{5,9},{9,1}}")
    assert axes_of_pairs(ring, grid) == ("fsdp",)
    assert axes_of_pairs(read_pairs("source_target_pairs={{0,0},{1,1}}"), grid) == ()


def test_domains_are_counted_by_the_outer_factor_of_each_axis():
    mesh = {"fsdp": 4, "tensor": 2}
    grid = device_grid(mesh, {"fsdp": 2}, 4, 8)
    assert domains_spanned(np.array(brute_force(mesh, ("fsdp",))), grid) == 2
    assert domains_spanned(np.array(brute_force(mesh, ("tensor",))), grid) == 1
    # The same with the crossing factor on the inner axis: neighbours along tensor lie in different domains.
    grid = device_grid(mesh, {"tensor": 2}, 4, 8)
    assert domains_spanned(np.array(brute_force(mesh, ("fsdp",))), grid) == 1
    assert domains_spanned(np.array(brute_force(mesh, ("tensor",))), grid) == 2


def test_ids_inside_one_slice_have_the_inner_factors():
    grid = device_grid({"data": 2, "fsdp": 8}, {"data": 2, "fsdp": 2}, 4, 4)
    assert grid.shape == {"data": 1, "fsdp": 4} and grid.outer == {"data": 2, "fsdp": 2}
    assert axes_of_groups(np.array([[0, 1, 2, 3]]), grid) == ("fsdp",)


def test_a_program_of_another_mesh_is_refused():
    with pytest.raises(ValueError, match="partitions"):
        device_grid({"data": 2}, {}, 2, 8)
    with pytest.raises(ValueError, match="outer"):
        device_grid({"data": 2}, {"data": 3}, 2, 2)
