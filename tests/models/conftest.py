"""What the tests of several networks share."""

import pytest
import torch
from torch import nn

from leanconv.measure.counting.count import count
from leanconv.models import build


@pytest.fixture
def same_as():
    """Give `ours` the weights of `theirs`, in the order of their states; both must then answer alike."""

    def check(ours: nn.Module, theirs: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        values, state = list(theirs.state_dict().values()), ours.state_dict()
        assert [v.numel() for v in values] == [v.numel() for v in state.values()]
        pairs = zip(state, values, strict=True)
        ours.load_state_dict({key: value.view_as(state[key]) for key, value in pairs})
        x = torch.randn(2, 3, 37, 50, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-4)

    return check


@pytest.fixture
def counts():
    """(params, FLOPs) of a network of ours under a convention; or of a given model. Nothing is computed."""

    def of(what, convention="macs_trainable", side=224, **options):
        with torch.device("meta"):
            model = build(what, **options) if isinstance(what, str) else what()
        found = count(model.eval(), torch.empty(1, 3, side, side, device="meta"), convention)
        return found.params, found.flops

    return of
