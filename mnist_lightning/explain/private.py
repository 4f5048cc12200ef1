"""Private copies of models: explanations add hooks and masks, which other threads must not see."""

from collections import OrderedDict
from types import MethodType
from typing import Any, TypeVar

from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def private(model: AnyModule) -> tuple[AnyModule, dict[nn.Module, nn.Module]]:
    """Copies a model's modules. The copy uses the same weights, and gradients of its parameters stay its own.

    Hooks, masks, modes and gradients of the copy do not change the model, so several threads can explain one model at
    once. The copy of a compiled model is not compiled, because compiled code skips hooks.

    Args:
        model: Any module.

    Returns:
        The copy, in the mode of the model, and the copy of each module.
    """
    copies: dict[int, Any] = {}
    modules: dict[nn.Module, nn.Module] = {}

    def copy(value: Any) -> Any:
        if id(value) in copies:
            return copies[id(value)]
        if isinstance(value, nn.Parameter):
            copies[id(value)] = nn.Parameter(value.detach(), value.requires_grad)
        elif isinstance(value, nn.Module):
            original = getattr(value, "_orig_mod", None)  # inside the module that torch.compile returns
            if original is not None:
                return copy(original)
            copies[id(value)] = modules[value] = object.__new__(type(value))
            attributes = {name: copy(item) for name, item in list(vars(value).items())}
            vars(modules[value]).update(attributes, _compiled_call_impl=None)
        elif isinstance(value, MethodType):
            return MethodType(value.__func__, copy(value.__self__))
        elif type(value) in (dict, OrderedDict):
            return type(value)((key, copy(item)) for key, item in list(value.items()))
        elif type(value) in (list, tuple, set):
            return type(value)(copy(item) for item in list(value))
        return copies.get(id(value), value)

    return copy(model), modules
