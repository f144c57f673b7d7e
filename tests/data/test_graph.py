"""Radius graphs against a brute-force reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symscale.data import graph
from symscale.data.graph import radius_graph


def brute_force(pos, counts, cutoff, max_neighbors, symmetric=False):
    """Edges (src, dst) by sorting every atom's neighbours in Python."""
    edges, first = [], 0
    for n in counts:
        kept = {}
        for v in range(n):
            near = []
            for u in range(n):
                d2 = float(((pos[first + u] - pos[first + v]) ** 2).sum())
                if u != v and d2 < cutoff**2:
                    near.append((d2, u))
            kept[v] = {u for _, u in sorted(near)[:max_neighbors]}
        for v in range(n):
            edges += [(first + u, first + v) for u in sorted(kept[v]) if not symmetric or v in kept[u]]
        first += n
    return np.array(edges, dtype=np.int64).reshape(-1, 2).T


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 14), min_size=1, max_size=5),
    cutoff=st.floats(0.5, 5),
    max_neighbors=st.integers(1, 6),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_edges_equal_brute_force(counts, cutoff, max_neighbors, symmetric, seed):
    """Same edges in the same order, whatever the sizes, the cap and the symmetry; in float64 for exact distances."""
    pos = np.random.default_rng(seed).normal(size=(sum(counts), 3)) * 1.5
    found, degree = radius_graph(torch.tensor(pos), torch.tensor(counts), cutoff, max_neighbors, symmetric)
    expected = brute_force(pos, counts, cutoff, max_neighbors, symmetric)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert degree == (np.bincount(expected[1]).max() if expected.size else 0)


def test_equal_distances_are_decided_by_index():
    """A square's centre has four neighbours at one distance; a cap of two keeps the two of lowest index."""
    pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    edges, degree = radius_graph(pos, torch.tensor([5]), 1.2, 2)
    assert edges[0][edges[1] == 0].tolist() == [1, 2]
    assert degree == 2


def test_cap_makes_graph_directed_and_symmetric_undoes_it():
    """A line 0-1--2: 1 and 2 are each other's only through 2's list; with one neighbour each, 2 -> 1 is lost."""
    pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0]])
    directed, _ = radius_graph(pos, torch.tensor([3]), 6.0, 1)
    assert directed.T.tolist() == [[1, 0], [0, 1], [1, 2]]
    symmetric, degree = radius_graph(pos, torch.tensor([3]), 6.0, 1, symmetric=True)
    assert symmetric.T.tolist() == [[1, 0], [0, 1]]
    assert degree == 1


def test_coincident_atoms_are_neighbours_but_no_atom_is_its_own():
    """The diagonal is left out by index, not by distance zero."""
    edges, _ = radius_graph(torch.zeros(3, 3), torch.tensor([3]), 1.0, 10)
    assert edges.T.tolist() == [[1, 0], [2, 0], [0, 1], [2, 1], [0, 2], [1, 2]]


def test_one_atom_molecules_have_no_edges():
    """Among others or alone."""
    edges, degree = radius_graph(torch.zeros(2, 3), torch.tensor([1, 1]), 6.0, 30)
    assert edges.shape == (2, 0) and degree == 0
    pos = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [5, 5, 5]])
    edges, degree = radius_graph(pos, torch.tensor([1, 2, 1]), 6.0, 30)
    assert edges.T.tolist() == [[2, 1], [1, 2]] and degree == 1


def test_blocks_give_the_same_edges(monkeypatch):
    """Splitting a batch to bound memory changes nothing, not even the order."""
    counts = torch.tensor([3, 40, 1, 7, 7, 90, 2])
    pos = torch.randn(int(counts.sum()), 3, generator=torch.Generator().manual_seed(0)) * 2
    whole = radius_graph(pos, counts, 4.0, 12)
    for limit in (1, 50, 2000, 20000):
        monkeypatch.setattr(graph, "MAX_PAIRS", limit)
        edges, degree = radius_graph(pos, counts, 4.0, 12)
        assert torch.equal(edges, whole[0]) and degree == whole[1]


@pytest.mark.parametrize("cap", [30, 50])
def test_cap_binds_on_a_large_molecule(cap):
    """500 atoms at molecular density: no atom keeps more than the cap and most keep exactly that."""
    pos = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) * 17  # 0.1 atoms per cubic Angstrom
    edges, degree = radius_graph(pos, torch.tensor([500]), 6.0, cap)
    degrees = torch.bincount(edges[1], minlength=500)
    assert degree == cap and (degrees == cap).float().mean() > 0.5
    assert (edges[1].diff() >= 0).all()
