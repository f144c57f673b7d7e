"""Radius graphs of a batch of molecules. The edge convention of the whole project is stated here.

An edge goes from its source u to its destination v: row 0 of ``edge_index`` is src, row 1 is dst, and
r_uv = pos[src] - pos[dst]. Edges are sorted by dst, then by src.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Padded pairs handled at once, about 10 bytes each: molecules much larger than the mean must not blow memory
MAX_PAIRS = 4_000_000


def radius_graph(
    pos: Tensor, counts: Tensor, cutoff: float, max_neighbors: int, symmetric: bool = False
) -> tuple[Tensor, int]:
    """Every atom's nearest ``max_neighbors`` atoms of its own molecule closer than ``cutoff``.

    An atom is never its own neighbour; equal distances are decided by the lower atom index, so the result is
    deterministic. The cap makes the graph directed: u may be among v's nearest and not the other way round.
    Made on the CPU, where the loader's background thread has the positions anyway.

    Parameters
    ----------
    pos : (N, 3) positions in Angstrom, molecule after molecule.
    counts : (G,) int64, atoms of each molecule.
    cutoff : Angstrom.
    max_neighbors : incoming edges an atom keeps at most.
    symmetric : keep an edge only if its reverse is kept too.

    Returns
    -------
    (2, E) int64 rows (src, dst) on the device of ``pos``, and the largest number of incoming edges.
    """
    edges, degree = radius_graph_numpy(
        pos.detach().cpu().numpy(), counts.cpu().numpy(), cutoff, max_neighbors, symmetric
    )
    return torch.from_numpy(edges).to(pos.device), degree


def radius_graph_numpy(
    pos: np.ndarray, counts: np.ndarray, cutoff: float, max_neighbors: int, symmetric: bool = False
) -> tuple[np.ndarray, int]:
    """:func:`radius_graph` on arrays."""
    blocks, degree = [np.zeros((2, 0), dtype=np.int64)], 0
    start, atom = 0, 0
    while start < len(counts):
        # As many whole molecules as fit when padded to the largest of them; at least one
        padded = np.maximum.accumulate(counts[start:]) ** 2 * np.arange(1, len(counts) - start + 1)
        stop = start + max(1, int(np.searchsorted(padded, MAX_PAIRS, side="right")))
        atoms = int(counts[start:stop].sum())
        block, block_degree = _block(
            pos[atom : atom + atoms], counts[start:stop], cutoff, max_neighbors, symmetric
        )
        block += atom
        blocks.append(block)
        degree, start, atom = max(degree, block_degree), stop, atom + atoms
    return (blocks[1] if len(blocks) == 2 else np.concatenate(blocks, axis=1)), degree


def _block(pos, counts, cutoff, max_neighbors, symmetric):
    """Dense over molecules padded to the largest (M atoms)."""
    graphs, largest = len(counts), int(counts.max())
    real = np.arange(largest) < counts[:, None]  # (G, M)
    padded = np.full((3, graphs, largest), np.nan, dtype=pos.dtype)  # NaN is near nothing
    padded[:, real] = pos.T
    d2 = np.zeros((graphs, largest, largest), dtype=pos.dtype)  # [g, dst, src]
    for x in padded:
        dx = x[:, None, :] - x[:, :, None]
        dx *= dx
        d2 += dx
    with np.errstate(invalid="ignore"):
        near = d2 < cutoff * cutoff
    diagonal = np.arange(largest)
    near[:, diagonal, diagonal] = False
    degree = near.sum(2, dtype=np.int64)  # (G, M)
    if degree.max() > max_neighbors:
        rows = np.nonzero(degree > max_neighbors)
        near[rows] = _nearest(np.where(near[rows], d2[rows], np.inf), max_neighbors)
        if symmetric:
            near &= near.transpose(0, 2, 1)
        degree = near.sum(2, dtype=np.int64)
    pair = np.flatnonzero(near)  # ascending: by dst, then by src
    atom = np.cumsum(real).reshape(graphs, largest) - 1  # (G, M) atom at each padded place
    dst = np.repeat(atom.ravel(), degree.ravel())
    # src = first atom of the molecule + column; pair = (g M + i) M + j
    row = np.repeat(np.arange(graphs * largest) * largest - np.repeat(atom[:, 0], largest), degree.ravel())
    return np.stack([pair - row, dst]), int(degree.max())


def _nearest(d2, k):
    """Mask of the ``k`` smallest of each row of (R, M); equal distances by the lower index."""
    mask = d2 <= np.partition(d2, k - 1, axis=1)[:, k - 1 : k]
    tied = np.flatnonzero(mask.sum(1) > k)
    if len(tied):
        order = np.argsort(d2[tied], axis=1, kind="stable")[:, :k]
        mask[tied] = False
        mask[tied[:, None], order] = True
    return mask
