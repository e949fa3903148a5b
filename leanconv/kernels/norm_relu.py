"""Which ReLU alone reads which BatchNorm's result: found by tracing each module's forward, its children left whole."""

from collections import Counter

from torch import fx, nn

_KINDS = (nn.BatchNorm2d, nn.ReLU)


class _Whole(fx.Tracer):
    """Every child is one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def norms_before_relus(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Pairs of `nn.BatchNorm2d` and `nn.ReLU`. Both are called once, by one forward, and have no hooks.

    A forward that cannot be traced (it asks for values or sizes) gives no pairs, and none of its children is in one.
    """
    found: list[tuple[nn.Module, nn.Module]] = []
    calls: Counter[nn.Module] = Counter()
    for parent in model.modules():
        if not any(type(each) in _KINDS for each in parent.modules()) or type(parent) in _KINDS:
            continue
        try:
            graph = _Whole().trace(parent)
        except Exception:  # whatever a foreign forward raises when it meets a proxy
            calls.update({child: 2 for child in parent.children()})
            continue
        called = {
            node: parent.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
        }
        calls.update(called.values())
        for node, module in called.items():
            readers = list(node.users)
            if type(module) is nn.BatchNorm2d and len(readers) == 1 and readers[0] in called:
                found.append((module, called[readers[0]]))
    return {
        norm: relu
        for norm, relu in found
        if type(relu) is nn.ReLU and all(calls[each] == 1 and not _hooked(each) for each in (norm, relu))
    }


def _hooked(module: nn.Module) -> bool:
    return any(value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict))
