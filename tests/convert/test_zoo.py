"""A swap is total: over families of timm and smp networks nothing crashes, every dense layer is swapped or explained.

`benchmarks/zoo_share.py` walks every architecture; here is one small network per family.
"""

import pytest
import torch
from torch import nn

from leanconv.convert import apply_, fold_, plan, reasons

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:timm"),
    pytest.mark.filterwarnings("ignore::UserWarning:timm"),
    pytest.mark.filterwarnings("ignore::FutureWarning:timm"),
]
TIMM = (
    "resnet10t", "densenet121", "efficientnet_b0", "tf_mobilenetv3_small_minimal_100", "mobilenetv3_small_050",
    "convnext_atto", "regnetx_002", "test_nfnet", "repvgg_a0", "hrnet_w18_small", "inception_next_atto",
    "edgenext_xx_small", "mobilevit_xxs", "xcit_nano_12_p16_224", "test_vit", "darknet17", "dla46_c", "ghostnet_050",
    "mixnet_s", "resnest14d", "skresnet18", "ese_vovnet19b_dw", "levit_conv_128s", "fastvit_t8", "maxvit_pico_rw_256",
)  # fmt: skip
FIXED_SIZE = {"levit_conv_128s": 224, "test_vit": 160}
OPTIONS = {"maxvit_pico_rw_256": {"img_size": 64}}
SMP = {
    ("unet", "resnet18"), ("unetplusplus", "mobilenet_v2"), ("fpn", "resnet18"), ("deeplabv3plus", "mobilenet_v2"),
    ("linknet", "resnet18"), ("pspnet", "resnet18"), ("manet", "resnet18"),
}  # fmt: skip


def timm_network(name):
    timm = pytest.importorskip("timm")
    side = FIXED_SIZE.get(name, 64)
    return timm.create_model(name, num_classes=4, **OPTIONS.get(name, {})), torch.randn(1, 3, side, side)


def smp_network(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    arch, encoder = name
    return smp.create_model(arch, encoder_name=encoder, encoder_weights=None), torch.randn(1, 3, 64, 64)


def assert_total(model, x):
    """Every dense layer in the plan, swapped or explained; the swapped model runs and folds, and comes back."""
    dense = {
        name for name, m in model.named_modules() if type(m) is nn.Conv2d and m.groups == 1 and max(m.kernel_size) > 1
    }
    with torch.no_grad():
        expected = model.eval()(x).shape
    for operator in ("depthwise_separable", "hetconv(part=4)", "splconv"):
        steps = plan(model, x, to=operator)
        assert {step.name for step in steps.swapped} <= dense <= {step.name for step in steps}
        assert {reasons.category(step.reason) for step in steps.kept} <= set(reasons.MEANING)
        missed = [s for s in steps.kept if s.name in dense and s.reason not in (reasons.FIRST, reasons.NEVER_CALLED)]
        assert all(s.reason.startswith("unsupported") for s in missed)
        if operator == "depthwise_separable":
            assert not missed
        applied = apply_(model, steps, init="fresh")
        assert len(applied) == len(steps.swapped)
        out = model(x)
        assert out.shape == expected
        assert out.isfinite().all()
        applied.undo_()
    assert dense <= {name for name, m in model.named_modules() if type(m) is nn.Conv2d}
    apply_(model, steps, init="fresh")
    report = fold_(model, x)
    assert not any("certificate" in fold.reason or "outputs" in fold.reason for fold in report.refused)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    model, x = timm_network(name)
    assert_total(model, x)


@pytest.mark.parametrize("name", sorted(SMP), ids="-".join)
def test_smp(name):
    model, x = smp_network(name)
    assert_total(model, x)


def test_undo_gives_a_zoo_network_back():
    model, x = timm_network("resnet10t")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    applied = apply_(model, plan(model, x, to="splconv"))
    model.train()(x).sum().backward()
    assert any(".stencil1." in key for key in model.state_dict())
    applied.undo_()
    after = model.state_dict()
    trained = {key for key in before if "running" in key or "num_batches" in key}
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before if key not in trained)
