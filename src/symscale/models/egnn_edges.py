"""The edge part of MC-EGNN as one autograd function, and the order in which it visits atoms and edges.

On a CPU what one operation writes should still be in the second-level cache when the next one reads it. So atoms come
in blocks with about as many neighbours each, which leaves little to pad, and all that a block's edges need is done
before the next block's. Inside a block edges are sorted by length: the radial functions of a run of them are a narrow
band (``radial_bands``). Elsewhere there is one block, in the order of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.data.batch import Batch
from symscale.models.common import Band, GaussianRBF, edge_ranks, radial_bands, reads_values, silu_backward


@dataclass(frozen=True)
class Block:
    """n atoms and the e edges to them."""

    atoms: slice
    edges: slice
    degree: int  # incoming edges of the best connected atom
    src: Tensor  # (e,) among all atoms
    dst: Tensor  # (e,)
    ends: Tensor  # (e, 2) both in a table of sources and targets in turn, (2 N, w)
    slot: Tensor  # (e,) place of each edge in the padded layout (n, degree)
    edge: Tensor  # (n degree,) edge in each place, e where there is none
    edge_or_any: Tensor  # (n degree,) the same; for none, the atom's first or, without any, the block's
    bands: list[Band]  # rows count within the block

    @property
    def shape(self) -> tuple[int, int]:
        return self.atoms.stop - self.atoms.start, self.degree

    def channel_vectors(self, r_uv: Tensor, moved: Tensor | None) -> Tensor:
        """X_uv = r_uv + D_u - D_v, (e, 3 C), from the displacements D = X - X_0 (N, 3 C); C = 1 without them."""
        r_uv = r_uv[self.edges]
        if moved is None:
            return r_uv
        return r_uv + moved.index_select(0, self.src) - moved.index_select(0, self.dst)

    def pad(self, x: Tensor) -> Tensor:
        """(e, c) -> (n, degree, c); zeros where an atom has fewer edges."""
        return F.pad(x, (0, 0, 0, 1)).index_select(0, self.edge).unflatten(0, self.shape)

    def pad_with_any(self, x: Tensor) -> Tensor:
        """(e, c) -> (n, degree, c); another row where an atom has fewer edges, for products with zeros: no copy of x.

        Of the same atom, if it has any: a molecule that is no number spoils no other.
        """
        return x.index_select(0, self.edge_or_any).unflatten(0, self.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """(n, degree, c) -> (e, c)."""
        return x.flatten(0, 1).index_select(0, self.slot)


@dataclass(frozen=True)
class Edges:
    """Blocks of edges, and the batch whose atoms are in their order."""

    blocks: list[Block]
    data: Batch  # z, batch and edge_index as visited; the rest as it was
    r_uv: Tensor  # (E, 3)
    rbf: list[Tensor]  # values of every band of every block
    rank: Tensor | None  # (N,) where each atom of the original batch is visited; None: where it was


def arrange(data: Batch, r_uv: Tensor, d: Tensor, rbf: GaussianRBF, width: int) -> Edges:
    """Edges (and on a CPU atoms) in the order in which ``EdgeMessages`` visits them."""
    src, dst = data.edge_index
    atoms, count = data.z.shape[0], dst.shape[0]
    _, rank_of_edge = edge_ranks(dst, atoms)
    if not reads_values(d) or not count:
        bands, values = radial_bands(rbf, d, [slice(0, count)])
        block = _block(slice(0, atoms), slice(0, count), data.max_degree, src, dst, rank_of_edge, bands)
        return Edges([block], data, r_uv, values, None)

    degree, visited = torch.bincount(dst, minlength=atoms).sort(stable=True)
    rank = torch.empty_like(visited).index_copy_(0, visited, torch.arange(atoms, device=dst.device))
    total = degree.cumsum(0)
    step = _block_size(width)
    run = step // 8  # edges with one band
    cuts = torch.searchsorted(total, torch.tensor(range(step, count, step))).add_(1).unique()
    cuts = cuts[cuts < atoms]
    stops = [*cuts.tolist(), atoms]
    last = torch.tensor(stops) - 1
    edge_stops, degrees = total[last].tolist(), degree[last].tolist()

    src, dst = rank[src], rank[dst]
    order = d.detach().argsort(stable=True)
    order = order[torch.bucketize(dst[order], cuts, right=True).argsort(stable=True)]
    src, dst, rank_of_edge = src[order], dst[order], rank_of_edge[order]
    d, r_uv = d.index_select(0, order), r_uv.index_select(0, order)
    blocks, values = [], []
    starts = zip([0, *stops], [0, *edge_stops], strict=True)
    for v, e, most, (v0, e0) in zip(stops, edge_stops, degrees, starts, strict=False):
        runs = [slice(i, min(i + run, e - e0)) for i in range(0, e - e0, run)]
        bands, found = radial_bands(rbf, d[e0:e], runs)
        blocks.append(_block(slice(v0, v), slice(e0, e), most, src, dst, rank_of_edge, bands))
        values += found
    data = replace(data, z=data.z[visited], batch=data.batch[visited], edge_index=torch.stack([src, dst]))
    return Edges(blocks, data, r_uv, values, rank)


def _block_size(width: int) -> int:
    """Edges of a block: with fewer, calls cost more than the cache saves."""
    return max(1024, 2**17 // width)


def _block(
    atoms: slice, edges: slice, degree: int, src: Tensor, dst: Tensor, rank: Tensor, bands: list[Band]
) -> Block:
    src, dst, rank = src[edges], dst[edges], rank[edges]
    slot = (dst - atoms.start) * degree + rank
    edge = slot.new_full(((atoms.stop - atoms.start) * degree,), len(slot))
    edge.index_copy_(0, slot, torch.arange(len(slot), device=slot.device))
    edge = edge.view(atoms.stop - atoms.start, degree)
    some = torch.where(edge < len(slot), edge, edge[:, :1]) % max(len(slot), 1)
    edge, some = edge.flatten(), some.flatten()
    ends = torch.stack([2 * src, 2 * dst + 1], 1)
    return Block(atoms, edges, degree, src, dst, ends, slot, edge, some, bands)


class EdgeMessages(torch.autograd.Function):
    """Messages m_uv of eq. (11) and steps of eq. (12), both summed over neighbours.

    m = SiLU(W2 SiLU(source_u + target_v + Wn |X_uv|^2 + Wr RBF) + b2) and s = SiLU(W3 m + b3); a step is
    sum X_uv (x) s_uv times ``mixer`` (C', C w). Returns sum m (N, w) and steps (N, 3 C').
    """

    @staticmethod
    def plain(blocks, nodes, moved, r_uv, Wn, Wr, W2, b2, W3, b3, mixer, rbf):
        (block,) = blocks
        x = block.channel_vectors(r_uv, moved)
        squares = _squares(x)
        source, target = nodes.chunk(2, dim=1)
        z1 = source.index_select(0, block.src) + target.index_select(0, block.dst)
        z1 = z1 + F.linear(rbf, Wr) + F.linear(squares, Wn)
        m = F.silu(F.linear(F.silu(z1), W2, b2))
        s = F.silu(F.linear(m, W3, b3))
        outer = torch.bmm(block.pad(x).transpose(1, 2), block.pad_with_any(s))  # (N, 3 C, w)
        steps = outer.view(-1, mixer.shape[1]).matmul(mixer.t())  # (3 N, C')
        total = m.new_zeros(nodes.shape[0], m.shape[1]).index_add(0, block.dst, m)
        return total, steps.reshape(nodes.shape[0], -1)

    @staticmethod
    def forward(ctx, blocks, nodes, moved, r_uv, Wn, Wr, W2, b2, W3, b3, mixer, *rbf):
        atoms, width = nodes.shape[0], W2.shape[0]
        table = nodes.view(2 * atoms, width)  # source and target of every atom in turn
        total = nodes.new_zeros(atoms, width)
        # a column per atom and axis: products write few long rows faster than many short ones
        steps = nodes.new_empty(mixer.shape[0], 3 * atoms)
        columns, values, kept = Wr.t().contiguous(), iter(rbf), []
        for block in blocks:
            x = block.channel_vectors(r_uv, moved)  # (e, 3 C)
            z1 = F.embedding_bag(block.ends, table, mode="sum")  # source_u + target_v
            for band in block.bands:
                z1[band.rows].addmm_(next(values), columns[band.columns])
            z1.addmm_(_squares(x), Wn.t())
            z2 = torch.addmm(b2, F.silu(z1), W2.t())
            m = F.silu(z2)
            total.index_add_(0, block.dst, m)
            z3 = torch.addmm(b3, m, W3.t())
            s = block.pad_with_any(F.silu(z3))  # (n, degree, w)
            outer = torch.bmm(block.pad(x).transpose(1, 2), s)  # (n, 3 C, w)
            axes = slice(3 * block.atoms.start, 3 * block.atoms.stop)
            torch.mm(mixer, outer.view(-1, mixer.shape[1]).t(), out=steps[:, axes])
            kept += [z1, z2, z3, outer]
        ctx.blocks = blocks
        ctx.save_for_backward(moved, r_uv, Wn, Wr, W2, W3, mixer, *rbf, *kept)
        return total, steps.t().reshape(atoms, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_total, g_steps):
        moved, r_uv, Wn, Wr, W2, W3, mixer, *saved = ctx.saved_tensors
        blocks: list[Block] = ctx.blocks
        rbf, kept = saved[: -4 * len(blocks)], saved[-4 * len(blocks) :]
        atoms, width = g_total.shape
        g_steps = g_steps.reshape(3 * atoms, -1)
        columns, i = Wr.t().contiguous(), 0
        g_columns = torch.zeros_like(columns)
        g_Wn, g_W2, g_W3, g_mixer = (torch.zeros_like(W) for W in (Wn.t(), W2, W3, mixer))
        g_b2, g_b3 = W2.new_zeros(width), W3.new_zeros(width)
        g_nodes = W2.new_zeros(2, atoms, width)
        g_r = torch.empty_like(r_uv) if ctx.needs_input_grad[3] else None
        g_moved, g_ends = None, None if moved is None else moved.new_zeros(2, *moved.shape)
        g_rbf = [torch.empty_like(v) for v in rbf] if any(ctx.needs_input_grad[11:]) else None
        for n, block in enumerate(blocks):
            z1, z2, z3, outer = kept[4 * n : 4 * n + 4]
            x = block.channel_vectors(r_uv, moved)
            squares, padded = _squares(x), block.pad(x)
            s = block.pad_with_any(F.silu(z3))
            g_step = g_steps[3 * block.atoms.start : 3 * block.atoms.stop]
            g_mixer.addmm_(g_step.t(), outer.view(-1, mixer.shape[1]))
            g_outer = torch.mm(g_step, mixer).view_as(outer)
            g3 = silu_backward(block.unpad(torch.bmm(padded, g_outer)), z3)
            a2 = F.silu(z2)
            g_W3.addmm_(g3.t(), a2)
            g_b3 += g3.sum(0)
            g2 = silu_backward(g_total.index_select(0, block.dst).addmm_(g3, W3), z2)
            g_W2.addmm_(g2.t(), F.silu(z1))
            g_b2 += g2.sum(0)
            g1 = silu_backward(torch.mm(g2, W2), z1)
            for band in block.bands:
                g_columns[band.columns].addmm_(rbf[i].t(), g1[band.rows])
                if g_rbf is not None:
                    torch.mm(g1[band.rows], columns[band.columns].t(), out=g_rbf[i])
                i += 1
            g_Wn.addmm_(squares.t(), g1)
            g_nodes[0].index_add_(0, block.src, g1)
            g_nodes[1].index_add_(0, block.dst, g1)
            if moved is None and g_r is None:
                continue
            # transposed: products with few columns are slow, with few rows they are not
            g_squares = torch.mm(Wn.t(), g1.t()).repeat(3, 1).t().contiguous()
            g_x = block.unpad(torch.bmm(s, g_outer.transpose(1, 2))).addcmul_(x, g_squares, value=2)
            if moved is not None:
                g_ends[0].index_add_(0, block.src, g_x)
                g_ends[1].index_add_(0, block.dst, g_x)
            if g_r is not None:
                g_r[block.edges] = g_x
        if moved is not None:
            g_moved = g_ends[0] - g_ends[1]
        g_nodes = torch.cat([*g_nodes], 1)
        weights = (g_Wn.t(), g_columns.t(), g_W2, g_b2, g_W3, g_b3, g_mixer)
        return None, g_nodes, g_moved, g_r, *weights, *(g_rbf or [None] * len(rbf))


def _squares(x: Tensor) -> Tensor:
    """|X_uv|^2 of every channel: (e, 3 C) -> (e, C)."""
    a, b, c = x.square().split(x.shape[1] // 3, 1)  # faster than a sum over an axis of 3
    return a + b + c
