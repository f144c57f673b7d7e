"""Energy references per element by least squares, in one pass and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ELEMENTS = 119
RARE = 10  # an element in fewer training molecules than this has a poorly known reference
_TOLERANCE = 1e-7


@dataclass
class LeastSquares:
    """Solves energy = composition @ reference block by block.

    Each block updates the R of a QR factorisation of [composition, energy]; unlike normal equations this keeps
    total energies (1e5 eV) accurate to far below the differences that matter.
    """

    r: np.ndarray = field(default_factory=lambda: np.zeros((0, ELEMENTS + 1)))
    molecules: np.ndarray = field(
        default_factory=lambda: np.zeros(ELEMENTS, dtype=np.int64)
    )  # with each element

    def add(self, composition: np.ndarray, energy: np.ndarray) -> None:
        """A block of composition (M, 119) and energy (M,) in eV."""
        self.molecules += (composition > 0).sum(0)
        stacked = np.vstack([self.r, np.column_stack([composition, energy])])
        used = stacked.any(0)
        r = np.linalg.qr(stacked[:, used], mode="r")
        self.r = np.zeros((len(r), ELEMENTS + 1))
        self.r[:, used] = r

    def solve(self) -> References:
        """The references of least norm: rank-deficient data (one formula only, say) is no error."""
        matrix, energy = self.r[:, :ELEMENTS], self.r[:, ELEMENTS]
        scale = np.linalg.norm(matrix, axis=0)
        scale[scale == 0] = 1.0
        u, s, vt = np.linalg.svd(matrix / scale, full_matrices=False)
        rank = int((s > _TOLERANCE * s[:1].sum()).sum())
        basis = vt[:rank]  # (rank, 119) the scaled compositions that were seen
        values = basis.T @ ((u[:, :rank].T @ energy) / s[:rank]) / scale
        return References(values, scale, basis, self.molecules.copy())


@dataclass(frozen=True)
class References:
    """Element references (119,) eV, and which compositions they are determined for."""

    values: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    molecules: np.ndarray

    def determined(self, composition: np.ndarray) -> np.ndarray:
        """(M,) whether the training part fixes the reference of each composition (M, 119)."""
        scaled = composition / self.scale
        outside = scaled - (scaled @ self.basis.T) @ self.basis
        return np.linalg.norm(outside, axis=1) <= 1e-5 * np.linalg.norm(scaled, axis=1)

    def undetermined_elements(self) -> list[int]:
        """Elements of the training part whose own reference is not fixed, only that of sums with others."""
        present = np.flatnonzero(self.molecules)
        return present[~self.determined(np.eye(ELEMENTS)[present])].tolist()

    def rare_elements(self) -> dict[int, int]:
        """Elements in fewer than ten training molecules, with that number."""
        return {
            int(e): int(self.molecules[e])
            for e in np.flatnonzero((self.molecules > 0) & (self.molecules < RARE))
        }
