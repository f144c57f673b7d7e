"""Molecules and batches that the tests make: kept out of conftest.py, of which there are several."""

import dataclasses

import numpy as np
import torch

from symscale.data.batch import Batch
from symscale.data.graph import radius_graph


def make_batch(molecules, cutoff=6.0, max_neighbors=30, symmetric=False, dtype=torch.float64, seed=0):
    """A Batch from a list of (z, pos); labels are random, positions are taken as they are."""
    counts = torch.tensor([len(z) for z, _ in molecules])
    z = torch.cat([torch.as_tensor(z, dtype=torch.long) for z, _ in molecules])
    pos = torch.cat([torch.as_tensor(p, dtype=dtype).reshape(-1, 3) for _, p in molecules])
    edge_index, degree = radius_graph(pos, counts, cutoff, max_neighbors, symmetric)
    rng = torch.Generator().manual_seed(seed)
    return Batch(
        z=z,
        pos=pos,
        batch=torch.repeat_interleave(torch.arange(len(counts)), counts),
        edge_index=edge_index,
        energy=torch.randn(len(counts), generator=rng, dtype=dtype),
        forces=torch.randn(len(z), 3, generator=rng, dtype=dtype),
        num_graphs=len(counts),
        max_atoms=int(counts.max()),
        max_degree=degree,
    )


def random_molecule(rng, atoms, min_distance=0.9):
    """A tree-like cluster of H, C, N, O with bonds of 1.0 to 1.6 Angstrom, centred."""
    pos = np.zeros((1, 3))
    while len(pos) < atoms:
        step = rng.normal(size=3)
        new = pos[rng.integers(len(pos))] + step / np.linalg.norm(step) * rng.uniform(1.0, 1.6)
        if np.linalg.norm(pos - new, axis=1).min() >= min_distance:
            pos = np.vstack([pos, new])
    return rng.choice([1, 6, 7, 8], size=atoms), pos - pos.mean(0)


def rotation(seed=0):
    """One proper rotation, float64."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return torch.as_tensor(q)


def moved(data, matrix=None, shift=None):
    """The batch with every position rotated and shifted; the edges stay, as distances do."""
    pos = data.pos if matrix is None else data.pos @ matrix.T
    return dataclasses.replace(data, pos=pos if shift is None else pos + shift)


def ragged_npz(path, molecules, **extra):
    """Write molecules with z, pos, forces (N, 3) and energy as one archive of ragged arrays; its path."""
    np.savez(
        path,
        z=np.concatenate([m.z for m in molecules]),
        pos=np.concatenate([m.pos for m in molecules]),
        forces=np.concatenate([m.forces for m in molecules]),
        energy=np.array([m.energy for m in molecules]),
        natoms=np.array([len(m.z) for m in molecules]),
        **extra,
    )
    return path
