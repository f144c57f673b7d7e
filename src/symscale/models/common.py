"""Small pieces that several models share.

Conventions, stated once: an edge goes from u = src to v = dst, r_uv = pos[src] - pos[dst] in Angstrom, edges
are sorted by dst. Constants are buffers that are not saved: ``.double()`` and ``.to(device)`` move them.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from symscale.data.batch import Batch

silu_backward = torch.ops.aten.silu_backward


def edge_vectors(data: Batch) -> tuple[Tensor, Tensor]:
    """Vectors r_uv = pos[src] - pos[dst], (E, 3), and their lengths d, (E,), in Angstrom.

    The length of a zero vector is 0 and has gradient 0, where ``norm`` would give NaN.
    """
    src, dst = data.edge_index
    r_uv = data.pos.index_select(0, src) - data.pos.index_select(0, dst)  # (E, 3)
    squared = r_uv.square().sum(-1)  # (E,)
    zero = squared == 0
    return r_uv, squared.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def scatter_sum(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    """Sum the rows of ``src`` (E, ...) that share an ``index`` (E,); (dim_size, ...), 0 where none does."""
    return src.new_zeros((dim_size, *src.shape[1:])).index_add_(0, index, src)


def scatter_mean(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    """Mean of the rows of ``src`` (E, ...) sharing an ``index`` (E,); (dim_size, ...), 0 where none does."""
    count = src.new_zeros(dim_size).index_add_(0, index, src.new_ones(index.shape[0]))
    shape = (dim_size, *[1] * (src.dim() - 1))
    return scatter_sum(src, index, dim_size) / count.clamp(min=1).view(shape)


def graph_sum(per_atom: Tensor, data: Batch) -> Tensor:
    """Sum per-atom values (N, ...) over each molecule: (G, ...)."""
    return scatter_sum(per_atom, data.batch, data.num_graphs)


def edge_ranks(dst: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """First edge of every atom, (N,), and of every edge its number among those to its atom, (E,); dst ascending."""
    first = torch.searchsorted(dst, torch.arange(atoms, device=dst.device))
    return first, torch.arange(dst.shape[0], device=dst.device) - first.index_select(0, dst)


def polynomial_envelope(d: Tensor, cutoff: float, exponent: int = 5) -> Tensor:
    """Smooth cutoff (E,): 1 at d = 0, and 0 with two zero derivatives at d >= cutoff (DimeNet, eq. 8)."""
    p, x = exponent, (d / cutoff).clamp(max=1.0)
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return 1 + x**p * (a + x * (b + x * c))


def row_blocks(x: Tensor, width: int, least: int = 128) -> list[slice]:
    """Slices that cover the rows of ``x``: on a CPU of so few rows each that some (rows, width) tensors stay in its
    second-level cache between row-wise operations (half a megabyte each, ``least`` rows); elsewhere all at once.
    """
    count = x.shape[0]
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, count)]
    step = max(least, 2**17 // max(width, 1))
    return [slice(i, min(i + step, count)) for i in range(0, max(count, 1), step)]


_given_order = False


@contextlib.contextmanager
def in_given_order():
    """Inside, nothing is done that only a CPU does (``reads_values``): what is executed is what any device would."""
    global _given_order
    before, _given_order = _given_order, True
    try:
        yield
    finally:
        _given_order = before


def reads_values(x: Tensor) -> bool:
    """Whether work may be arranged as only a CPU likes it, by the values in ``x`` too, which stall nothing there. In
    passes written by hand; not while torch.compile traces or FLOPs are counted, nor for tensors without values.
    """
    if _given_order or _twice or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and not isinstance(x, FakeTensor)


_twice = False


@contextlib.contextmanager
def twice_differentiable():
    """Inside, ``apply_function`` leaves derivatives to autograd, which knows second ones too: what a hand-written
    backward pass keeps are values without a history, and its own derivative would be wrong.
    """
    global _twice
    before, _twice = _twice, True
    try:
        yield
    finally:
        _twice = before


def apply_function(function: type[torch.autograd.Function], *args):
    """``function.apply``, in one dtype under autocast: its backward pass runs outside of autocast.

    torch.compile, which fuses by itself, and ``twice_differentiable`` see ``function.plain`` in its place: the same
    in differentiable operations.
    """
    if _twice or torch.compiler.is_compiling():
        return function.plain(*args)
    device = next(a.device.type for a in args if isinstance(a, Tensor))
    if not torch.is_autocast_enabled(device):
        return function.apply(*args)
    dtype = torch.get_autocast_dtype(device)
    cast = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    with torch.autocast(device, enabled=False):
        return function.apply(*cast)


class GaussianRBF(nn.Module):
    """Fixed Gaussians, evenly spaced on 0 ... cutoff: distances (E,) -> (E, num_radial).

    ``width`` is the standard deviation in units of the spacing.
    """

    def __init__(self, num_radial: int = 136, cutoff: float = 6.0, width: float = 1.0):
        super().__init__()
        self.cutoff = cutoff
        centres = torch.linspace(0, cutoff, num_radial, dtype=torch.float64)  # cast when used
        self.register_buffer("centres", centres, persistent=False)
        self.scale = (num_radial - 1) / (cutoff * width) * 0.5**0.5

    def forward(self, d: Tensor, columns: slice = slice(None)) -> Tensor:
        """(E, num_radial), or ``columns`` of it."""
        # tails end at 1e-16: float32 subnormals slow exp and every product after it on a CPU several times
        x = (d * self.scale)[:, None] - (self.centres[columns] * self.scale).to(d.dtype)
        return torch.addcmul(x.new_zeros(()), x, x, value=-1).clamp_(min=-37.0).exp_()  # -x^2 in one pass

    def columns(self, shortest: float, longest: float, dtype: torch.dtype) -> slice:
        """The Gaussians that are not below rounding at some distance from ``shortest`` to ``longest``."""
        if not shortest <= longest < math.inf:  # positions that are no numbers
            return slice(0, len(self.centres))
        # exp(-reach^2) is below rounding: 4.3 in float32, 6.2 in float64
        reach = math.sqrt(-math.log(torch.finfo(dtype).eps / 16))
        spacing = self.cutoff / (len(self.centres) - 1)
        first = math.ceil((shortest - reach / self.scale) / spacing)
        last = math.floor((longest + reach / self.scale) / spacing)
        first = min(max(first, 0), len(self.centres) - 1)
        return slice(first, min(max(last, first) + 1, len(self.centres)))


@dataclass(frozen=True)
class Band:
    """Some edges of like lengths, and the radial functions that matter to any of them."""

    rows: slice
    columns: slice


def radial_bands(rbf: GaussianRBF, d: Tensor, runs: list[slice]) -> tuple[list[Band], list[Tensor]]:
    """Radial functions of the distances d (E,), ascending within each of ``runs``: where they are, and their values
    (rows, columns).

    Of a row of Gaussians as wide as their spacing all but about 13 are below float32's rounding. Those of edges that
    are sorted by length are a narrow band, and products with it read that alone. Elsewhere than on a CPU the ends of
    a band cannot be known without stalling, and the band is everything.
    """
    bands = [Band(rows, slice(0, len(rbf.centres))) for rows in runs]
    if reads_values(d) and len(d):
        ends = d.detach()[[i for rows in runs for i in (rows.start, rows.stop - 1)]].view(-1, 2).tolist()
        bands = [Band(rows, rbf.columns(*pair, d.dtype)) for rows, pair in zip(runs, ends, strict=True)]
    return bands, [rbf(d[band.rows], band.columns) for band in bands]


class GraphNorm(nn.Module):
    """Normalise every feature over the atoms of each molecule: (N, width) -> (N, width).

    y = weight (x - mean_scale * mean) / std + bias (Cai et al. 2021, eq. 5), std after the shift. Equals
    ``torch_geometric.nn.GraphNorm`` in values and parameters; sizes come from the batch.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mean_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, data: Batch) -> Tensor:
        mean = scatter_mean(x, data.batch, data.num_graphs)  # (G, width)
        x = x - (mean * self.mean_scale).index_select(0, data.batch)
        variance = scatter_mean(x.square(), data.batch, data.num_graphs)  # (G, width)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.index_select(0, data.batch) + self.bias
