"""Another forward in a module's place, for a while."""

import pytest
import torch
from torch import Tensor, nn

from cal_pipeline.measuring.replaced_forward import replaced_forward


def test_hooks_run_on_the_other_forward_and_the_class_s_own_is_back_afterwards_also_after_an_error() -> None:
    module, ones = nn.Identity(), torch.ones(2)
    module.register_forward_hook(lambda module, args, output: output + 1)
    with replaced_forward(module, lambda values: values * 10):
        assert module(ones).tolist() == [11.0, 11.0]
    with pytest.raises(ZeroDivisionError), replaced_forward(module, lambda values: values * 10):
        raise ZeroDivisionError
    assert module(ones).tolist() == [2.0, 2.0]
    assert "forward" not in module.__dict__


def test_a_forward_that_was_put_on_the_instance_comes_back() -> None:
    module = nn.Identity()

    def doubled(values: Tensor) -> Tensor:
        return values * 2

    module.forward = doubled  # type: ignore[method-assign]
    with replaced_forward(module, lambda values: values):
        assert module(torch.ones(1)).tolist() == [1.0]
    assert module.forward is doubled
