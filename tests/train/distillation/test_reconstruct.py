"""Block-wise reconstruction: local losses only, all blocks side by side, and each one nearer to its original."""

import copy

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.errors import BadInput, Diverged
from leanconv.train import reconstruct_
from leanconv.train.distillation.losses import feature_loss

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def pair(where="layer2.*"):
    torch.manual_seed(0)
    teacher = lc.load("leanconv:resnet20_cifar")
    teacher(X)  # its BatchNorms have met these pictures
    student = copy.deepcopy(teacher)
    lc.apply_(student, lc.plan(student, X, to="depthwise_separable", where=where))
    return student, teacher.eval()


@pytest.mark.parametrize("inputs", ["student", "teacher"])
def test_every_block_comes_nearer_and_nothing_else_moves(inputs):
    student, teacher = pair()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    theirs = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student.train()
    found = reconstruct_(student, teacher, [X], steps=30, inputs=inputs, lr=3e-3, progress=False)
    assert [each.name for each in found.blocks] == ["layer2.0", "layer2.1", "layer2.2"]
    assert all(each.after < each.before for each in found.blocks)
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("layer2.") for name in changed)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in student.modules())
    assert all(p.grad is None for model in (student, teacher) for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for x in (student, teacher) for m in x.modules())
    assert "layer2.1" in str(found)


@pytest.mark.parametrize("inputs", ["student", "teacher"])
def test_the_gradient_of_a_block_is_that_of_its_own_loss(inputs):
    """One step of SGD in place of Adam is not needed: the gradients are compared before it, in float64."""
    from leanconv.train.distillation.reconstruct import _Work

    student, teacher = (each.double() for each in pair())
    pairs = {name: name for name in ("layer2.0", "layer2.2")}
    work = _Work(student, teacher, pairs, from_teacher=inputs == "teacher")
    reference = copy.deepcopy(student).eval()
    losses = work.step(X.double(), None)
    for name in pairs:
        reference.get_submodule(name).train()
    met = {}

    def keep(module, arguments, output):
        met[module] = arguments[0].detach(), output

    source = teacher if inputs == "teacher" else reference
    runs = [m.get_submodule(n).register_forward_hook(keep) for m in {source, teacher} for n in pairs]
    with torch.no_grad():
        teacher(X.double())
        source(X.double())
    for each in runs:
        each.remove()
    for name in pairs:
        block = copy.deepcopy(student.get_submodule(name)).train()
        loss = feature_loss(block(met[source.get_submodule(name)][0]), met[teacher.get_submodule(name)][1])
        loss.backward()
        assert losses[name] == pytest.approx(float(loss.detach()))
        for own, other in zip(student.get_submodule(name).parameters(), block.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad)
    assert all(p.grad is None for p in student.layer2[1].parameters())


def test_equal_seeds_give_equal_weights_and_frozen_ones_stay():
    ends = []
    for _ in range(2):
        student, teacher = pair()
        student.layer2[0].bn1.requires_grad_(False)
        kept = student.layer2[0].bn1.weight.clone()
        reconstruct_(student, teacher, X, steps=3, progress=False)
        assert torch.equal(student.layer2[0].bn1.weight, kept)
        ends.append(student.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_shared_blocks_and_in_place_layers():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))

        def forward(self, x):
            return self.block(self.block(self.first(x))).relu_()

    torch.manual_seed(0)
    teacher = Shared()
    student = copy.deepcopy(teacher)
    lc.apply_(student, lc.plan(student, X, to="hetconv(part=4)"))
    for inputs in ("student", "teacher"):
        found = reconstruct_(student, teacher, (X for _ in range(20)), steps=20, inputs=inputs, lr=1e-2, progress=False)
        assert [each.name for each in found.blocks] == ["block"]
        assert found.blocks[0].after < found.blocks[0].before


def test_what_it_is_told_after_each_step_may_end_it():
    student, teacher = pair()
    student.eval()

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct_(student, teacher, X, steps=5, on_step=stop, progress=False)
    assert not any(module.training for module in student.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for x in (student, teacher) for m in x.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least one"),
        ({"steps": 2.5}, "steps=2.5, lr=0.001: a whole number of steps"),
        ({"lr": 0.0}, "with a rate above 0"),
        ({"inputs": "both"}, "one of student, teacher"),
        ({"batches": iter([X])}, "batches end after 1, 5 steps need more"),
        ({"batches": []}, "batches end after 0"),
        ({"batches": [X[:, :2]]}, "takes N C H W with C=3"),
        ({"blocks": {"layer1": "layer2"}}, r"layer1: the student gives .* the teacher"),
    ],
)
def test_bad_input(options, message):
    student, teacher = pair()
    given = {"batches": [X], "steps": 5, "progress": False} | options
    with pytest.raises(BadInput, match=message):
        reconstruct_(student, teacher, **given)


def test_models_that_are_alike_have_no_swapped_block():
    _, teacher = pair()
    with pytest.raises(BadInput, match="no layer of the student is another convolution"):
        reconstruct_(copy.deepcopy(teacher), teacher, [X], steps=1)
    with pytest.raises(BadInput, match="the teacher is the student"):
        reconstruct_(teacher, teacher, [X], steps=1)


def test_pictures_with_nan_are_named():
    student, teacher = pair()
    with pytest.raises(Diverged, match=r"block layer2.0 is not finite"):
        reconstruct_(student, teacher, [torch.full_like(X, float("nan"))], steps=1, progress=False)
