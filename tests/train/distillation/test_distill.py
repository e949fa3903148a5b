"""Distillation in a loop of one's own: what it compares, whom it teaches, and what it refuses."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.errors import BadInput, UnknownName
from leanconv.train import Distillation
from leanconv.train.distillation.losses import feature_loss, soft_target_loss

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def dense():
    torch.manual_seed(0)
    return lc.load("leanconv:resnet20_cifar")


def pair(to="hetconv(part=4)", where="layer2.*"):
    teacher = dense()
    student = copy.deepcopy(teacher)
    lc.apply_(student, lc.plan(student, X, to=to, where=where))
    return student.train(), teacher


def test_five_lines_train_the_student_alone():
    student, teacher = pair()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    names = set(student.state_dict())
    optimizer, y = torch.optim.SGD(student.parameters(), lr=0.05), torch.randint(10, (4,))
    distil, losses = Distillation(student, teacher), []
    for _ in range(8):
        out = student(X)
        loss = F.cross_entropy(out, y) + distil(X, out)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert set(student.state_dict()) == names


def test_the_loss_is_the_sum_of_its_parts():
    student, teacher = pair()
    seen = {}
    distil = Distillation(student, teacher, temperature=3, output_weight=0.7, feature_weight=0.2)
    assert list(distil.pairs) == ["layer2.0", "layer2.1", "layer2.2"]
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, out, key=(whose, name): seen.update({key: out}))
        for whose, model in (("s", student), ("t", teacher))
        for name in distil.pairs
    ]
    out = student(X)
    found = distil(X, out)
    soft = soft_target_loss(out, teacher(X).detach(), temperature=3)
    features = torch.stack([feature_loss(seen["s", name], seen["t", name].detach()) for name in distil.pairs]).mean()
    torch.testing.assert_close(found, 0.7 * soft + 0.2 * features)
    for handle in handles:
        handle.remove()


def test_a_student_that_is_like_its_teacher_loses_nothing():
    teacher = dense()
    student = copy.deepcopy(teacher).eval()
    distil = Distillation(student, teacher, features=["layer1", "layer3.2"])
    assert float(distil(X, student(X)).detach()) == 0


@pytest.mark.parametrize(
    ("model", "to", "where", "blocks"),
    [
        ("leanconv:resnet20_cifar", "depthwise_separable", "layer3.*", ["layer3.0", "layer3.1", "layer3.2"]),
        ("leanconv:unet?base=4&levels=2", "splconv(alpha=0.5)", "decoder.*", None),
        ("leanconv:mobilenet_v2", "sic", None, None),
        ("leanconv:vgg16_cifar?width=0.25", "hetconv(part=4)", "stage1.*", ["stage1"]),
    ],
)
def test_blocks_around_swapped_layers_are_found_by_name(model, to, where, blocks):
    teacher = lc.load(model)
    student = copy.deepcopy(teacher)
    plan = lc.plan(student, torch.zeros(1, 3, 32, 32), to=to, where=where)
    if not plan.swapped:
        pytest.skip("nothing to swap")
    lc.apply_(student, plan, init="fresh")
    pairs = Distillation(student, teacher).pairs
    assert pairs
    assert blocks is None or list(pairs) == blocks
    covered = [any(swap.name.startswith(f"{block}.") or swap.name == block for block in pairs) for swap in plan.swapped]
    assert all(covered)
    assert not any(a != b and a.startswith(f"{b}.") for a in pairs for b in pairs)


def test_a_flat_network_compares_the_layers_themselves():
    layers = [each for _ in range(5) for each in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))]
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers)
    student = copy.deepcopy(teacher)
    lc.apply_(student, lc.plan(student, X, to="hetconv(part=4)"))
    distil = Distillation(student, teacher)
    assert set(distil.pairs) == {"1", "3", "5", "7", "9"}
    assert distil(X, student(X)).isfinite()


def test_another_architecture_by_a_dict_and_masks():
    teacher, student = lc.load("leanconv:unet?base=8&levels=2"), lc.load("leanconv:unet?base=4&levels=2")
    distil = Distillation(student, teacher)  # nothing is called the same and sized alike but the outputs
    assert distil(X, student(X)).isfinite()
    distil.close()
    distil = Distillation(student, teacher, features={"encoder.level1": "encoder.level1"})
    with pytest.raises(BadInput, match=r"encoder.level1: the student gives \(4, 4, 16, 16\), the teacher \(4, 8"):
        distil(X, student(X))
    assert float(Distillation(student, teacher, features=())(X, student(X)).detach()) > 0


def test_close_removes_every_hook_and_nothing_is_kept_alive():
    student, teacher = pair()
    hooks = [sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in x.modules()) for x in (student, teacher)]
    assert hooks == [0, 0]
    with Distillation(student, teacher) as distil:
        features = []
        hook = student.layer2[0].register_forward_hook(lambda m, a, out: features.append(weakref.ref(out)))
        distil(X, student(X))
        hook.remove()
        gc.collect()
        assert features[0]() is None
    for model in (student, teacher):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_copies_of_the_student_disturb_nothing():
    """An average of the weights is a deep copy that runs between the student's forward pass and the loss."""
    student, teacher = pair()
    distil = Distillation(student, teacher)
    average = copy.deepcopy(student)
    out = student(X)
    average(2 * X)
    found = distil(X, out)
    out = student(X)
    torch.testing.assert_close(distil(X, out), found)
    assert pickle.loads(pickle.dumps(student)) is not student


def test_a_shared_layer_is_compared_call_by_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())

        def forward(self, x):
            return self.block(self.block(x)).mean((2, 3))

    teacher, student = Twice(), Twice()
    distil = Distillation(student, teacher, features=["block"], output_weight=0)
    one = feature_loss(student.block(X), teacher.block(X))
    two = feature_loss(student.block(student.block(X)), teacher.block(teacher.block(X)))
    torch.testing.assert_close(distil(X, student(X)), (one + two) / 2)


def test_autocast_and_a_frozen_student():
    student, teacher = pair()
    distil = Distillation(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        out = student(X)
        loss = distil(X, out)
    assert loss.dtype == torch.float32
    loss.backward()
    student.requires_grad_(False)
    assert not distil(X, student(X)).requires_grad


def test_a_compiled_student_has_the_same_loss_and_gradients():
    """Traced and differentiated by torch.compile; without Inductor, whose compiler takes a minute."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)) for _ in range(2)]
    teacher = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = copy.deepcopy(teacher)
    nn.init.normal_(student[0][0].weight)
    distil = Distillation(student, teacher, features=["0", "1.0"])
    programs = []

    def counted(graph, inputs):
        programs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled, found = torch.compile(student, backend=counted), []
    for forward in (student, compiled, compiled, compiled):
        student.zero_grad()
        loss = distil(X, forward(X))
        loss.backward()
        found.append((loss.detach(), student[0][0].weight.grad.clone()))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0])
    assert len(programs) == 1  # no break, and no second program
    with torch.no_grad():
        student.eval()(X)
    assert not distil._student.seen


def test_hooks_that_came_too_late_are_named():
    student, teacher = pair()
    distil = Distillation(student, teacher)
    with pytest.raises(BadInput, match=r"layer2.0: the student gave 0 tensors.*before the student is compiled"):
        distil(X, torch.zeros(4, 10))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s, t: (s, s), BadInput, "the teacher is the student"),
        (lambda s, t: (s, nn.Sequential(s)), BadInput, "shares .* weights with the student"),
        (lambda s, t: (s, "runs/dense"), BadInput, "the teacher must be a torch.nn.Module, got str"),
        (lambda s, t: (s, t, {"temperature": 0}), BadInput, "temperature=0"),
        (lambda s, t: (s, t, {"output_weight": float("nan")}), BadInput, "output_weight=nan"),
        (lambda s, t: (s, t, {"activation": "relu"}), BadInput, "one of auto, softmax, sigmoid"),
        (lambda s, t: (s, t, {"features": "layer1"}), BadInput, '"auto", a list of layer names'),
        (lambda s, t: (s, t, {"features": ["layer9"]}), UnknownName, "the student has no layer 'layer9' .did you mean"),
        (lambda s, t: (s, t, {"features": {"layer1": "stage1"}}), UnknownName, "the teacher has no layer 'stage1'"),
    ],
)
def test_what_cannot_teach_is_refused(change, error, message):
    student, teacher, *options = change(*pair())
    with pytest.raises(error, match=message):
        Distillation(student, teacher, **(options[0] if options else {}))


@pytest.mark.parametrize("place", ["conv1.weight", "bn1.running_var"])
def test_weights_that_are_not_finite_cannot_teach(place):
    student, teacher = pair()
    teacher.state_dict()[place].view(-1)[0] = float("nan")
    with pytest.raises(BadInput, match=place):
        Distillation(student, teacher)


def test_answers_that_are_no_tensor():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = dense()

        def forward(self, x):
            return {"out": self.net(x)}

    student, teacher = Named(), Named()
    with pytest.raises(BadInput, match="the outputs are dict, not a tensor"):
        Distillation(student, teacher)(X, student(X))
    assert Distillation(student, teacher, output=lambda answer: answer["out"])(X, student(X)).isfinite()
