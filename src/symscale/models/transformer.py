"""Vanilla transformer: global attention over the atoms of a molecule, no symmetry at all (appendix K)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models.common import graph_sum

HEAD_WIDTH = 32  # channels that an attention head has at least


def heads_of(width: int) -> int:
    """The most heads that divide ``width`` into HEAD_WIDTH channels or more each; 1 where nothing does."""
    return max(n for n in range(1, width + 1) if width % n == 0 and (n == 1 or width // n >= HEAD_WIDTH))


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals, as in GPT-2 but without a causal mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (G, A, w), mask (G, 1, 1, A) True at atoms."""
        g, a, w = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(g, a, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (G, heads, A, w / heads) each
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.project(attended.transpose(1, 2).reshape(g, a, w))
        return x + self.contract(F.gelu(self.expand(self.mlp_norm(x))))


class Transformer(nn.Module):
    """GPT-style encoder over atoms; tokens are element embeddings concatenated with centred coordinates."""

    rotation_equivariant = False
    translation_invariant = False
    symmetric_edges = False

    def __init__(self, *, width: int, depth: int):
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.token = nn.Linear(width + 3, width)
        self.blocks = nn.ModuleList(Block(width, heads_of(width)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.energy_head = nn.Linear(width, 1)
        self.force_head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))

    @classmethod
    def from_spec(cls, spec: CellSpec) -> Transformer:
        return cls(width=spec.width, depth=spec.depth)

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised. Edges are not read."""
        first = torch.searchsorted(data.batch, torch.arange(data.num_graphs, device=data.batch.device))
        rank = torch.arange(data.z.shape[0], device=data.batch.device) - first.index_select(0, data.batch)
        slot = data.batch * data.max_atoms + rank  # (N,) place of each atom in the padded layout (G, A)
        tokens = self.token(torch.cat([self.embedding(data.z), data.pos], 1))  # (N, w)
        shape = (data.num_graphs, data.max_atoms)
        x = (
            tokens.new_zeros(shape[0] * shape[1], tokens.shape[1])
            .index_copy(0, slot, tokens)
            .view(*shape, -1)
        )
        mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=slot.device)
        mask = mask.index_fill(0, slot, True).view(shape[0], 1, 1, shape[1])
        for block in self.blocks:
            x = block(x, mask)
        h = self.norm(x.flatten(0, 1).index_select(0, slot))  # (N, w)
        return graph_sum(self.energy_head(h)[:, 0], data), self.force_head(h)
