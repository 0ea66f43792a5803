"""Channels last on a CPU: strided 1 x 1 convolutions give the same numbers by other code, or the layout stays."""

from __future__ import annotations

import copy
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvtune.models.layout import X86, PickedConv2d, arrange

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
x86 = pytest.mark.skipif(platform.machine() not in X86, reason="elsewhere the layout stays as it is")


@x86
@pytest.mark.parametrize("settings", [{}, {"bias": False, "groups": 2}, {"padding": "valid"}])
@pytest.mark.parametrize("side", [8, 9])
def test_a_strided_1x1_convolution_gives_the_same_numbers(settings: dict[str, object], side: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 8, 1, stride=(2, 3), **settings))  # type: ignore[arg-type]
    arranged = copy.deepcopy(plain)
    assert arrange(arranged, CPU) is torch.channels_last
    assert type(arranged[0]) is PickedConv2d and type(plain[0]) is nn.Conv2d
    images = torch.randn(5, 4, side, side)
    theirs, ours = images.clone().requires_grad_(), images.clone().requires_grad_()
    expected, made = plain(theirs), arranged(ours.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(made, expected, atol=1e-6)
    expected.square().sum().backward()
    made.square().sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(arranged[0].weight.grad, plain[0].weight.grad, atol=1e-4)
    assert arranged.state_dict().keys() == plain.state_dict().keys()
    assert arrange(arranged, CPU) is torch.channels_last and type(arranged[0]) is PickedConv2d  # once is enough


class Hidden(nn.Conv2d):
    """A kernel that a layer of the user's own gives to a convolution that cannot be seen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias, stride=2)


@pytest.mark.parametrize("hiding", [Hidden(4, 8, 1), nn.Conv2d(4, 8, 1, stride=2, padding=1)])
def test_the_layout_stays_where_a_strided_1x1_convolution_may_hide(hiding: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, stride=2), hiding)
    assert arrange(network, CPU) is torch.contiguous_format
    assert not any(type(m) is PickedConv2d for m in network)
    assert network[0].weight.is_contiguous()


def test_no_layout_is_changed_where_none_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2))
    torch.set_num_threads(2)
    assert arrange(network, CPU) is torch.contiguous_format
    torch.set_num_threads(1)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert arrange(network, CPU) is torch.contiguous_format
