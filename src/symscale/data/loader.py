"""Batches from a pack: which molecules make up each step, and a background thread that prepares them.

The order of training is a function of (seed, epoch) alone and any step of it can be computed without those before,
so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from symscale.data.batch import Batch
from symscale.data.graph import radius_graph_numpy
from symscale.data.pack import Pack, Split
from symscale.errors import UserError

_ROUNDS = 6


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(``size``) takes ``indices``; constant memory.

    A Feistel network permutes the next power of four; what falls outside the range is sent through again until
    it lands inside (cycle walking), which keeps it a permutation of the range.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _round_keys(key)

    def network(x):
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half) | right

    out = network(np.asarray(indices, dtype=np.uint64))
    while len(outside := np.flatnonzero(out >= size)):
        out[outside] = network(out[outside])
    return out.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _round_keys(key: int) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Plan:
    """Which molecules make up each step: ``plan[step]`` is an array of their indices in the split.

    The first epoch of seed 0 is the pack's own order (packs are shuffled): a sequential read. Later epochs and other
    seeds permute the molecules of the data fraction. The last batch of an epoch may be smaller.

    With a budget, a step also ends before ``max_atoms`` atoms or ``max_edges`` edges (bounded by the neighbour cap)
    would be passed; a molecule larger than the budget is a step by itself. Budgets are off by default: in the paper
    a step is a fixed number of molecules.
    """

    split: Split
    batch_size: int
    epochs: int = 1
    seed: int = 0
    max_atoms: int | None = None
    max_edges: int | None = None
    max_neighbors: int | None = None
    _bounds: list[np.ndarray] = field(
        init=False, repr=False
    )  # with a budget: first molecule of each step, per epoch

    def __post_init__(self):
        if len(self.split) == 0:
            raise UserError("the split holds no molecules: pack more data or a larger validation part")
        if self.batch_size < 1 or self.epochs < 1:
            raise UserError("batch_size and epochs must be at least 1")
        budget = self.max_atoms or self.max_edges
        bounds = [self._budget_bounds(epoch) for epoch in range(self.epochs)] if budget else []
        object.__setattr__(self, "_bounds", bounds)

    def __len__(self) -> int:
        """Steps in all epochs."""
        if self._bounds:
            return sum(len(bounds) - 1 for bounds in self._bounds)
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch (of every epoch, without a budget)."""
        return len(self._bounds[0]) - 1 if self._bounds else -(-len(self.split) // self.batch_size)

    def epoch_of(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and its place there."""
        if not self._bounds:
            return divmod(step, self.steps_per_epoch)
        epoch = 0
        while epoch < len(self._bounds) - 1 and step >= len(self._bounds[epoch]) - 1:
            step -= len(self._bounds[epoch]) - 1
            epoch += 1
        return epoch, step

    def __getitem__(self, step: int) -> np.ndarray:
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, place = self.epoch_of(step)
        if self._bounds:
            first, last = self._bounds[epoch][place : place + 2]
        else:
            first = place * self.batch_size
            last = min(first + self.batch_size, len(self.split))
        return self._order(np.arange(first, last), epoch)

    def _order(self, places: np.ndarray, epoch: int) -> np.ndarray:
        if self.seed == 0 and epoch == 0:
            return places
        return permute(places, len(self.split), key=(self.seed << 32) + epoch)

    def _budget_bounds(self, epoch: int) -> np.ndarray:
        """First molecule of each step under the budget; one pass over the molecules' sizes."""
        bounds, block = [0], 1 << 20
        atoms = edges = molecules = 0
        max_atoms, max_edges = self.max_atoms or np.inf, self.max_edges or np.inf
        for first in range(0, len(self.split), block):
            indices = self._order(np.arange(first, min(first + block, len(self.split))), epoch)
            counts = self.split.sizes(indices)
            degree = np.minimum(counts - 1, self.max_neighbors or np.inf)
            for place, (n, e) in enumerate(
                zip(counts.tolist(), (counts * degree).tolist(), strict=True), first
            ):
                full = molecules == self.batch_size or atoms + n > max_atoms or edges + e > max_edges
                if molecules and full:
                    bounds.append(place)
                    atoms = edges = molecules = 0
                atoms, edges, molecules = atoms + n, edges + e, molecules + 1
        return np.array([*bounds, len(self.split)])


def make_batch(
    split: Split,
    pack: Pack,
    indices: np.ndarray,
    *,
    cutoff: float,
    max_neighbors: int,
    symmetric: bool = False,
) -> Batch:
    """The molecules at ``indices`` as one normalised batch on the CPU."""
    found = split.gather(indices)
    edge_index, max_degree = radius_graph_numpy(found.pos, found.counts, cutoff, max_neighbors, symmetric)
    energy = pack.normalise_energy(found.energy, found.z, found.counts)
    return Batch(
        z=torch.from_numpy(found.z.astype(np.int64)),
        pos=torch.from_numpy(found.pos),
        batch=torch.from_numpy(np.repeat(np.arange(len(indices)), found.counts)),
        edge_index=torch.from_numpy(edge_index),
        energy=torch.from_numpy(energy.astype(np.float32)),
        forces=torch.from_numpy((found.forces / pack.sigma).astype(np.float32)),
        num_graphs=len(indices),
        max_atoms=int(found.counts.max()),
        max_degree=max_degree,
    )


def batches(
    split: Split,
    pack: Pack,
    *,
    plan: Plan,
    cutoff: float,
    max_neighbors: int,
    symmetric: bool = False,
    device: torch.device | str = "cpu",
    prefetch: int = 2,
    threads: int = 1,
    start_step: int = 0,
) -> Iterator[Batch]:
    """The batches of ``plan`` from ``start_step`` on; nothing before it is read.

    ``threads`` background threads keep ``prefetch`` batches ready (0: made when asked for), in pinned memory if the
    device is a GPU, so that the copy overlaps with the step before.
    """
    device = torch.device(device)
    pin = device.type == "cuda"

    def make(step: int) -> Batch:
        batch = make_batch(
            split, pack, plan[step], cutoff=cutoff, max_neighbors=max_neighbors, symmetric=symmetric
        )
        return _pin(batch) if pin else batch

    steps = iter(range(start_step, len(plan)))
    if prefetch < 1:
        for step in steps:
            yield make(step).to(device)
        return
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="batches")
    try:
        waiting = deque(pool.submit(make, step) for _, step in zip(range(prefetch), steps, strict=False))
        while waiting:
            batch = waiting.popleft().result()
            for step in steps:
                waiting.append(pool.submit(make, step))
                break
            yield batch.to(device) if pin else batch
    finally:  # also when the consumer stops early
        pool.shutdown(wait=True, cancel_futures=True)


def _pin(batch: Batch) -> Batch:
    fields = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
    return Batch(**fields)
