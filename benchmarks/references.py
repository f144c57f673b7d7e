"""What train_step.py measures against: fairchem-core 1.10.0's eSEN and GemNet-OC, and MC-EGNN written down directly.

fairchem's wheel is fetched once by pip, without its dependencies, into ~/.cache/symscale-benchmarks; only its model
files are imported. What they import in turn and do not need here (registry, neighbour search) is a stub, and the few
functions of torch_scatter and torch_sparse that they call are written here in plain torch. scipy, sympy and e3nn come
with symscale. Every reference takes symscale's Batch and returns (energy (G,), forces (N, 3)).
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import types
import zipfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch_geometric.nn import GraphNorm
from torch_geometric.utils import scatter as pyg_scatter

from symscale.cells import CellSpec
from symscale.data.batch import Batch

CACHE = Path("~/.cache/symscale-benchmarks").expanduser()
WHEEL = "fairchem_core-1.10.0-py3-none-any.whl"
SHA256 = "cad591d8423a5f8ccb1d164bb32686586668a32aa9399baac0f82448ad92e136"


def fairchem_folder() -> Path:
    """The unpacked wheel; fetched the first time."""
    folder = CACHE / WHEEL.removesuffix(".whl")
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(CACHE), "--no-deps"]
        pip += ["--ignore-requires-python", "--only-binary=:all:", "fairchem-core==1.10.0"]
        if subprocess.run(pip).returncode:
            sys.exit(f"could not fetch fairchem-core 1.10.0; put {WHEEL} into {CACHE}")
        if hashlib.sha256((CACHE / WHEEL).read_bytes()).hexdigest() != SHA256:
            sys.exit(f"{CACHE / WHEEL} is not the published wheel; remove it and try again")
        partial = folder.with_suffix(".partial")
        with zipfile.ZipFile(CACHE / WHEEL) as wheel:
            wheel.extractall(partial)
        partial.rename(folder)
    return folder


def row_sum(src: Tensor, index: Tensor, dim=0, dim_size=None, reduce="sum") -> Tensor:
    """Sum of the rows that share an index: torch_scatter's scatter and segment_coo, as fairchem calls them."""
    return src.new_zeros(int(dim_size), *src.shape[1:]).index_add_(0, index, src)


def segment_csr(src: Tensor, indptr: Tensor, reduce="sum") -> Tensor:
    """Sums of src[indptr[i] : indptr[i + 1]]."""
    total = torch.cat([src.new_zeros(1), src.cumsum(0)])
    return total[indptr[1:]] - total[indptr[:-1]]


class SparseTensor:
    """A table of (row, column, value) sorted by row, whose rows can be picked with repeats."""

    def __init__(self, row: Tensor, col: Tensor, value: Tensor, sparse_sizes):
        key = row * sparse_sizes[1] + col
        if (key[1:] < key[:-1]).any():
            order = key.argsort(stable=True)
            row, col, value = row[order], col[order], value[order]
        self.entries, self.sizes = [row, col, value], sparse_sizes
        self.storage = SimpleNamespace(row=lambda: self.entries[0], value=lambda: self.entries[2])

    def coo(self) -> list[Tensor]:
        return self.entries

    def sparse_sizes(self):
        return self.sizes

    def set_value_(self, value: Tensor, layout: str) -> None:
        self.entries[2] = value

    def __getitem__(self, rows: Tensor) -> SparseTensor:
        row, col, value = self.entries
        count = torch.bincount(row, minlength=self.sizes[0])
        first, picked = count.cumsum(0) - count, count[rows]
        new = torch.repeat_interleave(torch.arange(len(rows)), picked)
        place = torch.arange(len(new)) - (picked.cumsum(0) - picked)[new] + first[rows][new]
        return SparseTensor(new, col[place], value[place], (len(rows), self.sizes[1]))


def nearest_mask(natoms, index: Tensor, atom_distance: Tensor, max_num_neighbors_threshold: int, **_):
    """The k nearest edges of every target (edges sorted by target), and how many are kept of each molecule."""
    order = atom_distance.argsort(stable=True)
    order = order[index[order].argsort(stable=True)]
    atoms = int(natoms.sum())
    count = torch.bincount(index, minlength=atoms)
    rank = torch.arange(len(index)) - (count.cumsum(0) - count)[index[order]]
    mask = torch.zeros(len(index), dtype=torch.bool)
    mask[order] = rank < max_num_neighbors_threshold
    molecule = torch.repeat_interleave(torch.arange(len(natoms)), natoms)
    return mask, torch.bincount(molecule[index[mask]], minlength=len(natoms))


class GivenGraph:
    """In place of fairchem's neighbour search: the batch brings its edges, and only their vectors are new."""

    def generate_graph(self, data, **_):
        vector = data.pos[data.edge_index[0]] - data.pos[data.edge_index[1]]
        return SimpleNamespace(
            edge_index=data.edge_index,
            edge_distance=vector.norm(dim=1),
            edge_distance_vec=vector,
            cell_offsets=data.edge_index.new_zeros(len(vector), 3),
            neighbors=data.nedges,
        )


def import_fairchem(module: str):
    """A module under fairchem.core.models, with stubs for what surrounds the models."""
    core = fairchem_folder() / "fairchem/core"
    empty = type("Empty", (), {})
    registry = SimpleNamespace(register_model=lambda name: lambda cls: cls)
    base = {"GraphModelMixin": GivenGraph, "BackboneInterface": empty, "HeadInterface": empty}
    utils = {
        "conditional_grad": lambda _: lambda function: function,
        "get_max_neighbors_mask": nearest_mask,
        "scatter_det": row_sum,
    }
    stubs = {
        "torch_scatter": {"scatter": row_sum, "segment_coo": row_sum, "segment_csr": segment_csr},
        "torch_sparse": {"SparseTensor": SparseTensor},
        "fairchem": {"__path__": []},
        "fairchem.core": {"__path__": [str(core)]},
        "fairchem.core.common": {"__path__": []},
        "fairchem.core.common.registry": {"registry": registry},
        "fairchem.core.common.typing": {"assert_is_instance": lambda value, cls: value},
        "fairchem.core.common.utils": utils,
        "fairchem.core.models": {"__path__": [str(core / "models")]},
        "fairchem.core.models.base": base,
        "fairchem.core.modules": {"__path__": [str(core / "modules")]},
        "fairchem.core.modules.scaling.compat": {"load_scales_compat": lambda *_: None},
    }
    for name, members in stubs.items():
        if name not in sys.modules:
            sys.modules[name] = stub = types.ModuleType(name)
            vars(stub).update(members)
    return import_module(f"fairchem.core.models.{module}")


def as_fairchem(data: Batch) -> dict:
    """A Batch under fairchem's names."""
    molecule_of_edge = data.batch[data.edge_index[1]]
    return {
        "pos": data.pos,
        "atomic_numbers": data.z,
        "atomic_numbers_full": data.z,
        "batch": data.batch,
        "batch_full": data.batch,
        "natoms": torch.bincount(data.batch, minlength=data.num_graphs),
        "edge_index": data.edge_index,
        "nedges": torch.bincount(molecule_of_edge, minlength=data.num_graphs),
        "cell": data.pos.new_zeros(data.num_graphs, 3, 3),
        "cell_offsets": data.pos.new_zeros(len(molecule_of_edge), 3),
        "tags": torch.zeros_like(data.z),
    }


class FairchemESEN(nn.Module):
    """fairchem's eSEN backbone and linear force head; energies by a Linear, as in symscale."""

    def __init__(self, spec: CellSpec):
        super().__init__()
        esen = import_fairchem("esen.esen")
        self.backbone = esen.eSEN_Backbone(
            sphere_channels=spec.width,
            edge_channels=spec.width,
            hidden_channels=spec.hidden_channels,
            num_layers=spec.depth,
            lmax=spec.lmax,
            mmax=min(spec.mmax, spec.lmax),
            cutoff=spec.cutoff,
            distance_function="gaussian",
            num_distance_basis=spec.num_radial,
            norm_type="rms_norm_sh",
            act_type="gate",
            mlp_type="grid",
            use_envelope=True,
            use_pbc=False,
        )
        self.energy = nn.Linear(spec.width, 1)
        self.forces = esen.Linear_Force_Head(self.backbone)

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        values = as_fairchem(data)
        found = self.backbone(values)
        energy = row_sum(self.energy(found["node_embedding"][:, 0]), data.batch, dim_size=data.num_graphs)
        return energy[:, 0], self.forces(values, found)["forces"]


class FairchemGemNet(nn.Module):
    """fairchem's GemNet-OC at symscale's sizes; its scale factors are 1."""

    def __init__(self, spec: CellSpec):
        super().__init__()
        w, quadruplets = spec.width, spec.quadruplets
        sizes = {f"emb_size_{name}": w for name in ("atom", "edge")}
        sizes |= {f"emb_size_{name}_{way}": 32 for name in ("trip", "quad") for way in ("in", "out")}
        sizes |= {f"emb_size_aint_{way}": 64 for way in ("in", "out")}
        sizes |= {"emb_size_rbf": 16, "emb_size_cbf": 16, "emb_size_sbf": 32}
        layers = {"before_skip": 2, "after_skip": 2, "concat": 1, "atom": 3, "output_afteratom": 3}
        self.net = import_fairchem("gemnet_oc.gemnet_oc").GemNetOC(
            num_spherical=7,
            num_radial=128,
            num_blocks=spec.depth,
            **sizes,
            **{f"num_{name}": count for name, count in layers.items()},
            num_atom_emb_layers=0,
            num_global_out_layers=2,
            num_elements=83,
            regress_forces=True,
            direct_forces=True,
            use_pbc=False,
            cutoff=spec.cutoff,
            max_neighbors=spec.max_neighbors,
            quad_interaction=quadruplets,
            max_neighbors_qint=8 if quadruplets else None,
        )
        for module in self.net.modules():
            if type(module).__name__ == "ScaleFactor":
                module.set_(1.0)

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        found = self.net(SimpleNamespace(**as_fairchem(data)))
        return found["energy"], found["forces"]


class DirectLayer(nn.Module):
    """Eqs. (11)-(12) of one layer edge by edge: every Linear acts on concatenated inputs."""

    def __init__(self, width: int, channels_in: int, channels: int, num_radial: int):
        super().__init__()
        self.shape = channels_in, channels
        inputs = 2 * width + channels_in + num_radial
        self.edge = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        last = nn.Linear(width, channels_in * channels, bias=False)
        self.mixer = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.norm = GraphNorm(width)

    def forward(self, h: Tensor, x: Tensor, rbf: Tensor, data: Batch) -> tuple[Tensor, Tensor]:
        src, dst = data.edge_index
        x_uv = x[src] - x[dst]  # (E, 3, C_in)
        m = self.edge(torch.cat([h[src], h[dst], x_uv.square().sum(1), rbf], 1))  # (E, w)
        step = x_uv @ self.mixer(m).view(-1, *self.shape) / self.shape[0]  # (E, 3, C)
        x = x + pyg_scatter(step, dst, 0, len(x), "mean")
        message = self.norm(pyg_scatter(m, dst, 0, len(h), "mean"), data.batch, data.num_graphs)
        return h + self.node(torch.cat([h, message], 1)), x


class DirectEGNN(nn.Module):
    """MC-EGNN as its equations stand (appendix C.3), in PyTorch Geometric's manner."""

    def __init__(self, spec: CellSpec):
        super().__init__()
        channels = spec.vector_channels or math.isqrt(spec.width)
        self.register_buffer("centres", torch.linspace(0, spec.cutoff, spec.num_radial))
        self.embedding = nn.Embedding(100, spec.width)
        self.linear = nn.Linear(spec.width, spec.width)
        self.layers = nn.ModuleList(
            DirectLayer(spec.width, channels if i else 1, channels, spec.num_radial)
            for i in range(spec.depth)
        )
        self.energy = nn.Linear(spec.width, 1)
        self.forces = nn.Linear(channels, 1, bias=False)

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        src, dst = data.edge_index
        d = (data.pos[src] - data.pos[dst]).norm(dim=1)
        rbf = torch.exp(-0.5 * ((d[:, None] - self.centres) / self.centres[1]).square())
        h, start = nn.functional.silu(self.linear(self.embedding(data.z))), data.pos[:, :, None]
        x = start
        for layer in self.layers:
            h, x = layer(h, x, rbf, data)
        energy = pyg_scatter(self.energy(h)[:, 0], data.batch, 0, data.num_graphs, "sum")
        return energy, self.forces(x - start)[..., 0]


REFERENCES = {"esen": FairchemESEN, "gemnet": FairchemGemNet, "egnn": DirectEGNN}


def build_reference(spec: CellSpec) -> nn.Module | None:
    """The reference at the sizes of a cell; None where there is none (MPNN, a model with something around it)."""
    if spec.arch not in REFERENCES or spec.conservative or spec.equivariant_by != "none":
        return None
    torch.manual_seed(spec.seed)
    return REFERENCES[spec.arch](spec)
