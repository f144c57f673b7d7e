"""GemNet-OC by enumeration: triplets and quadruplets as lists of atom tuples, angles by scipy, nothing shared.

Gasteiger et al. 2022 with the interactions that the published parameter counts leave. Positions are constants.
"""

import math

import torch
from scipy.special import eval_legendre, lpmv
from torch.nn import functional as F

L = 7  # angular functions l < 7
INV_SQRT2 = 1 / math.sqrt(2)


def act(x):
    return F.silu(x) / 0.6


def residuals(layers, x):
    for first, second in zip(layers.first, layers.second, strict=True):
        x = (x + act(second(act(first(x))))) * INV_SQRT2
    return x


def sum_to(x, index, size):
    return x.new_zeros((size, *x.shape[1:])).index_add_(0, index, x)


def circular(cosine):
    z = cosine.numpy()
    return torch.stack(
        [math.sqrt((2 * l + 1) / (4 * math.pi)) * torch.as_tensor(eval_legendre(l, z)) for l in range(L)], -1
    )


def spherical(cosine, angle):
    """Real spherical harmonics, m = 0 ... 6 with cos(m w), then m = 1 ... 6 with sin(m w), l ascending in each."""
    out = []
    for turn, orders in ((torch.cos, range(L)), (torch.sin, range(1, L))):
        for m in orders:
            for l in range(m, L):
                norm = (2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m)
                plm = (-1) ** m * torch.as_tensor(lpmv(m, l, cosine.numpy()))
                out.append(math.sqrt(norm * (2 if m else 1)) * plm * turn(m * angle))
    return torch.stack(out, -1)


def indices(data, distance, neighbors):
    """Triplets (in edge, out edge) b -> a <- c and quadruplets (d -> b, b -> a, c -> a), as edge numbers."""
    pairs = list(zip(*data.edge_index.tolist(), strict=True))
    into = [[e for e, (_, t) in enumerate(pairs) if t == a] for a in range(len(data.z))]
    near = [sorted(edges, key=lambda e: (round(distance[e].item() * 1e4), e))[:neighbors] for edges in into]
    triplets = [(i, o) for o, (_, a) in enumerate(pairs) for i in into[a] if i != o]
    quadruplets = [
        (d, b, c)
        for c, (atom_c, a) in enumerate(pairs)
        for b in near[a]
        if pairs[b][0] != atom_c
        for d in into[pairs[b][0]]
        if pairs[d][0] != a and pairs[d][0] != atom_c
    ]
    swap = torch.tensor([pairs.index((t, s)) for s, t in pairs])
    return torch.tensor(triplets).view(-1, 2), torch.tensor(quadruplets).view(-1, 3), swap


def up(block, x, swap):
    return (act(block.up(x)) + act(block.up_reverse(x[swap]))) * INV_SQRT2


def triplet_messages(block, m, rad, own, cosines, pairs, swap):
    x = act(block.dense(m)) * block.radial(rad) * block.scale_radial.value
    x = act(block.down(x))[pairs[:, 0]]  # (T, 32)
    basis = torch.einsum("til,tl->ti", own[pairs[:, 1]], cosines)  # (T, 16)
    outer = torch.einsum("ti,tj->tij", basis, x).flatten(1)
    return up(block, block.bilinear(sum_to(outer, pairs[:, 1], len(m))) * block.scale_sum.value, swap)


def quadruplet_messages(block, m, rad, inner, outer, quads, swap):
    x = act(block.dense(m)) * block.radial(rad) * block.scale_radial.value
    x = act(block.down(x))[quads[:, 0]] * block.circular(inner) * block.scale_circular.value  # (T, 32)
    product = torch.einsum("ti,tj->tij", outer, x).flatten(1)
    return up(block, block.bilinear(sum_to(product, quads[:, 2], len(m))) * block.scale_sum.value, swap)


def update(block, m, rad, dst, atoms):
    return residuals(block.layers, sum_to(m * block.radial(rad), dst, atoms) * block.scale_sum.value)


def gemnet_oracle(model, data, quadruplets=False, cutoff=10.0, neighbors=8):
    src, dst = data.edge_index
    atoms, bases = len(data.z), model.bases
    vector = data.pos[dst] - data.pos[src]
    d = vector.norm(dim=1)
    unit = vector / d[:, None]
    s = d / cutoff
    envelope = torch.where(s < 1, 1 - 21 * s**5 + 35 * s**6 - 15 * s**7, 0)
    raw = envelope[:, None] * torch.exp(
        -0.5 * ((s[:, None] - torch.linspace(0, 1, 128, dtype=s.dtype)) * 127) ** 2
    )
    pairs, quads, swap = indices(data, d, neighbors)
    own = bases.to_triplet_angular(raw).view(len(d), 16, L)
    cosines = circular((unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1).clamp(-1, 1))
    if quadruplets:
        db, ba, ca = (unit[quads[:, i]] for i in range(3))
        inner = circular((ba * db).sum(1).clamp(-1, 1))
        inner = torch.einsum("til,tl->ti", bases.to_inner(raw).view(len(d), 16, L)[quads[:, 1]], inner)
        n_c, n_d = torch.linalg.cross(ca, ba), torch.linalg.cross(db, ba)
        angle = torch.atan2(torch.linalg.cross(n_c, n_d).norm(dim=1).clamp(min=1e-9), (n_c * n_d).sum(1))
        outer = spherical((ca * ba).sum(1).clamp(-1, 1), angle)
        outer = torch.einsum("til,tl->ti", bases.to_outer(raw).view(len(d), 32, L * L)[quads[:, 2]], outer)

    h = model.embedding(data.z - 1)
    m = act(model.edge_embedding.linear(torch.cat([h[src], h[dst], raw], 1)))
    energies, forces = [], []
    for i, output in enumerate(model.outputs):
        if i:
            layer = model.interactions[i - 1]
            x = act(layer.dense(m))
            x = x + triplet_messages(layer.triplets, m, bases.to_triplet(raw), own, cosines, pairs, swap)
            if quadruplets:
                rad = bases.to_quadruplet(raw)
                x = x + quadruplet_messages(layer.quadruplets, m, rad, inner, outer, quads, swap)
            x = residuals(layer.before_skip, x / math.sqrt(2 + quadruplets))
            m = residuals(layer.after_skip, (m + x) * INV_SQRT2)
            h = (h + update(layer.atom_update, m, bases.to_atom(raw), dst, atoms)) * INV_SQRT2
            x = residuals(layer.residual, act(layer.concat.linear(torch.cat([h[src], h[dst], m], 1))))
            m = (m + x) * INV_SQRT2
        rad = bases.to_output(raw)
        energies.append(
            residuals(output.after_atom, (update(output.atoms, m, rad, dst, atoms) + h) * INV_SQRT2)
        )
        forces.append(residuals(output.forces, m) * output.radial(rad) * output.scale_radial.value)
    energy = model.energy_head(residuals(model.energy_layers, act(model.energy_mix(torch.cat(energies, 1)))))
    along = model.force_head(residuals(model.force_layers, act(model.force_mix(torch.cat(forces, 1)))))
    return sum_to(energy[:, 0], data.batch, data.num_graphs), sum_to(along * unit, dst, atoms)
