"""Weights with NaN or infinite values."""
import math

import pytest
import torch

from utils.finite import check_finite, nonfinite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2,
                                   torch.complex64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_found(dtype, value):
    tensors = {"good": torch.ones(3, 5).to(dtype), "bad": torch.ones(3, 5)}
    tensors["bad"][2, 1] = value
    tensors["bad"] = tensors["bad"].to(dtype)
    assert nonfinite(tensors) == ["bad"]


@pytest.mark.parametrize("value", [
    torch.full((3, 5), torch.finfo(torch.float32).max), torch.full((3, 5), 6e4).half(), torch.ones(0), torch.arange(5),
    torch.tensor([True]), torch.tensor(2.0), torch.ones(4, requires_grad=True)])
def test_finite_values_are_passed_over_also_where_their_sum_is_infinite(value):
    assert nonfinite({"w": value}) == []


def test_infinities_that_cancel_are_found():
    assert nonfinite({"w": torch.tensor([math.inf, -math.inf])}) == ["w"]


def test_message_names_file_and_first_tensors():
    tensors = {f"block.{i}": torch.full((2,), math.nan if i else 1.0) for i in range(6)}
    with pytest.raises(ValueError, match=r"^a\.pth holds NaN or infinite values in 5 of 6 tensors \(block\.1, block\.2, "
                                         r"block\.3, \.\.\.\): it was saved by a run that had diverged\. Use an older"):
        check_finite(tensors, "a.pth")
