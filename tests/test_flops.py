"""FLOPs are those of the matrix products, however a model writes them."""

import pytest
import torch
from molecules import make_batch
from torch.utils.flop_counter import FlopCounterMode

from symscale.flops import IN_PLACE, count_flops
from symscale.models.common import in_given_order
from symscale.models.egnn import EGNN

A, B = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
PRODUCTS = {
    "mm": lambda: A[0] @ B[0],
    "addmm": lambda: torch.addmm(torch.zeros(3, 5), A[0], B[0]),
    "addmm_": lambda: torch.zeros(3, 5).addmm_(A[0], B[0]),
    "addmm into out": lambda: torch.addmm(torch.zeros(3, 5), A[0], B[0], out=torch.zeros(3, 5)),
    "bmm": lambda: A[:1] @ B[:1],
    "baddbmm_": lambda: torch.zeros(1, 3, 5).baddbmm_(A[:1], B[:1]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_count_alike_in_place_or_not(name):
    """(3, 4) times (4, 5): a multiplication and an addition for each of 60."""
    assert count_flops(PRODUCTS[name]) == 120


def test_element_wise_work_counts_nothing():
    """Negative control, and the paper's convention."""
    assert count_flops(lambda: (A * A).sum().exp()) == 0


def test_radial_functions_that_a_cpu_leaves_out_count(molecules):
    """C does not depend on how far a CPU gets with bands: it is that of all columns, and more than was executed."""
    data, model = make_batch(molecules), EGNN(width=16, depth=2).double()
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as executed:
        model(data)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as everything, in_given_order():
        model(data)
    assert count_flops(lambda: model(data)) == everything.get_total_flops() > executed.get_total_flops()
