"""The order of training and the batches made from it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symscale.data.graph import radius_graph
from symscale.data.loader import Plan, batches, permute
from symscale.errors import UserError

GRAPH = {"cutoff": 6.0, "max_neighbors": 30}


def same(a, b):
    return all(
        torch.equal(x, y) if torch.is_tensor(x) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(size, key):
    """Every index once, for any size and key."""
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permute_computes_any_place_alone_and_mixes_well():
    """A place's value does not depend on which others are asked for; neighbours land far apart and keys differ."""
    whole = permute(np.arange(10_000), 10_000, 5)
    assert np.array_equal(permute(np.array([17, 9_999]), 10_000, 5), whole[[17, 9_999]])
    other = permute(np.arange(10_000), 10_000, 6)
    assert (whole == other).sum() < 10  # 1 expected of unrelated permutations
    for order in (whole, other):
        assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04  # 4 standard errors
        assert abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.05)


def test_first_epoch_of_seed_0_is_pack_order_and_others_permute_it(toy_pack):
    """Each epoch visits every molecule of the fraction once; the last batch keeps what is left."""
    split = toy_pack.train.prefix(0.9)  # 27 of 30
    plan = Plan(split, 8, epochs=3)
    assert len(plan) == 12 and plan.steps_per_epoch == 4
    epochs = [np.concatenate([plan[e * 4 + s] for s in range(4)]) for e in range(3)]
    assert np.array_equal(epochs[0], np.arange(27))
    assert [len(plan[s]) for s in range(4)] == [8, 8, 8, 3]
    for order in (*epochs[1:], np.concatenate([Plan(split, 8, seed=1)[s] for s in range(4)])):
        assert np.array_equal(np.sort(order), np.arange(27))
        assert not np.array_equal(order, np.arange(27))
    assert not np.array_equal(epochs[1], epochs[2])


def test_resumed_batches_equal_uninterrupted(toy_pack):
    """Starting at step 5 of several epochs gives the batches that a run from 0 gives from 5 on, bit for bit."""
    plan = Plan(toy_pack.train, 8, epochs=3, seed=4)
    whole = list(batches(toy_pack.train, toy_pack, plan=plan, **GRAPH))
    rest = list(batches(toy_pack.train, toy_pack, plan=plan, start_step=5, **GRAPH))
    assert len(whole) == len(plan) == 12 and len(rest) == 7
    assert all(same(a, b) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize(("prefetch", "threads"), [(1, 1), (2, 1), (5, 3), (100, 2)])
def test_prefetching_changes_nothing(toy_pack, prefetch, threads):
    """Order and content are those of batches made one by one."""
    plan = Plan(toy_pack.train, 4, epochs=2, seed=1)
    plain = list(batches(toy_pack.train, toy_pack, plan=plan, prefetch=0, **GRAPH))
    ahead = list(batches(toy_pack.train, toy_pack, plan=plan, prefetch=prefetch, threads=threads, **GRAPH))
    assert len(plain) == len(plan) and all(same(a, b) for a, b in zip(plain, ahead, strict=True))


def test_stopping_early_ends_the_threads(toy_pack):
    """No background thread survives its iterator."""
    iterator = batches(toy_pack.train, toy_pack, plan=Plan(toy_pack.train, 2), **GRAPH)
    next(iterator)
    assert any(t.name.startswith("batches") for t in threading.enumerate())
    iterator.close()
    assert not any(t.name.startswith("batches") for t in threading.enumerate())


def test_errors_in_the_background_reach_the_consumer(toy_pack):
    """A failing read is raised where batches are consumed, not lost in a thread."""
    plan = Plan(toy_pack.train, 4)
    with pytest.raises((IndexError, ValueError)):
        list(batches(toy_pack.val, toy_pack, plan=plan, **GRAPH))  # the plan's indices are beyond this split


def test_batch_is_the_molecules_normalised(toy_pack):
    """Energies and forces come back from a batch when the normalisation is undone by hand."""
    split = toy_pack.train
    plan = Plan(split, 8, seed=3)
    batch = next(batches(split, toy_pack, plan=plan, **GRAPH))
    indices = plan[0]
    assert batch.num_graphs == 8 and batch.energy.dtype == batch.pos.dtype == torch.float32
    for g, m in enumerate(indices):
        atoms = slice(split.offsets[m], split.offsets[m + 1])
        mine = batch.batch == g
        assert np.array_equal(batch.z[mine], split.z[atoms])
        assert np.array_equal(batch.pos[mine], split.pos[atoms])
        np.testing.assert_allclose(
            batch.forces[mine] * toy_pack.sigma, split.forces[atoms], rtol=1e-5, atol=1e-6
        )
        reference = sum(toy_pack.reference[z] for z in split.z[atoms])
        expected = (split.energy[m] - reference - toy_pack.mu) / toy_pack.sigma
        assert batch.energy[g].item() == pytest.approx(expected, abs=1e-5)
    counts = torch.bincount(batch.batch)
    edges, degree = radius_graph(batch.pos, counts, 6.0, 30)
    assert (
        torch.equal(edges, batch.edge_index)
        and degree == batch.max_degree
        and batch.max_atoms == counts.max()
    )


def test_budget_bounds_every_step_and_loses_nothing(toy_pack):
    """Steps stay within the budget unless one molecule alone is larger; all molecules are still visited once."""
    sizes = np.diff(toy_pack.train.offsets)
    plan = Plan(toy_pack.train, 8, epochs=2, seed=2, max_atoms=30)
    atoms = [sizes[plan[s]].sum() for s in range(len(plan))]
    assert max(atoms) <= 30 and len(plan) > 8
    middle = plan.steps_per_epoch
    assert np.array_equal(np.sort(np.concatenate([plan[s] for s in range(middle)])), np.arange(30))
    assert np.array_equal(np.sort(np.concatenate([plan[s] for s in range(middle, len(plan))])), np.arange(30))
    assert plan.epoch_of(middle) == (1, 0) and plan.epoch_of(middle - 1) == (0, middle - 1)
    tiny = Plan(toy_pack.train, 8, max_atoms=1)
    assert len(tiny) == 30 and all(len(tiny[s]) == 1 for s in range(30))


def test_edge_budget_counts_capped_edges(toy_pack):
    """A molecule of n atoms has at most n min(n - 1, cap) edges."""
    sizes = np.diff(toy_pack.train.offsets)
    plan = Plan(toy_pack.train, 8, max_edges=200, max_neighbors=5)
    bound = [(sizes[plan[s]] * np.minimum(sizes[plan[s]] - 1, 5)).sum() for s in range(len(plan))]
    assert max(bound) <= 200
    graph = {"cutoff": 100.0, "max_neighbors": 5}
    for batch in batches(toy_pack.train, toy_pack, plan=plan, **graph):
        assert batch.edge_index.shape[1] <= 200


def test_impossible_plans_are_refused(toy_pack):
    """No molecules, no batch size."""
    with pytest.raises(UserError, match="batch_size"):
        Plan(toy_pack.train, 0)
    with pytest.raises(UserError, match="data fraction"):
        toy_pack.train.prefix(0.0)
