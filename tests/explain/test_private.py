"""Explanations leave a shared model alone: threads get the answers of a single thread, and nothing stays behind."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.explain import ExplainerAlgorithm, GNNExplainer

from mnist_lightning import CNN, GNN, LeNet5
from mnist_lightning.explain.connectivity import connectivity
from mnist_lightning.explain.private import private
from mnist_lightning.explain.saliency import grad_cam, input_gradients, occlusion

Explain = Callable[[Any, Tensor], Tensor]


def edges(method: Any) -> Explain:
    return lambda model, image: connectivity(model, image, target=3, method=method).edge_importance


def pixels(method: Callable[..., Tensor]) -> Explain:
    return lambda model, image: method(model, image[None], torch.tensor([3]))


def traces(model: nn.Module) -> list[Any]:
    """Modes, hooks, masks and gradients of a model."""
    modules = [
        (module.training, vars(module).get("_explain"), *(len(v) for k, v in vars(module).items() if "_hooks" in k))
        for module in model.modules()
    ]
    return [*modules, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conv", "explain", "calls"),
    [
        ("kernel", edges("gradient"), 48),
        ("gat", edges("attention"), 16),
        (None, pixels(grad_cam), 48),
        (None, pixels(input_gradients), 16),
        (None, pixels(occlusion), 8),
        pytest.param("kernel", edges("occlusion"), 4, marks=pytest.mark.slow),
        pytest.param("kernel", edges("gnn_explainer"), 4, marks=pytest.mark.slow),
    ],
)
def test_threads_share_a_model(conv: Any, explain: Explain, calls: int, images: Tensor) -> None:
    model = (GNN(width=8, depth=1, conv=conv) if conv else LeNet5()).eval()
    before = traces(model)
    some = images[: max(2, calls // 6)]
    maps, logits = [explain(model, image) for image in some], model.classify(some)
    with ThreadPoolExecutor(8) as threads:
        order = [i % len(some) for i in range(calls)]
        classified = threads.map(lambda i: model.classify(some[i : i + 1])[0], order)
        for i, found in zip(order, threads.map(lambda i: explain(model, some[i]), order), strict=True):
            assert torch.equal(found, maps[i])
            torch.testing.assert_close(next(classified), logits[i])
    assert traces(model) == before


@pytest.mark.parametrize(
    ("model", "explain"),
    [(GNN(width=8, depth=1), edges(method)) for method in ("gradient", GNNExplainer(epochs=2))]
    + [(CNN(), pixels(method)) for method in (grad_cam, input_gradients)],
)
def test_a_model_in_training_mode_is_explained_and_unchanged(model: Any, explain: Explain, images: Tensor) -> None:
    before, tensors = traces(model.train()), {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    found = explain(model, images[0])
    assert traces(model) == before
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    torch.manual_seed(0)
    assert torch.equal(explain(model.eval(), images[0]), found)


class Broken(ExplainerAlgorithm):  # type: ignore[misc]
    """Fails in the middle of an explanation."""

    def supports(self) -> bool:
        return True

    def forward(self, model: nn.Module, *_: Any, **__: Any) -> None:
        model.register_forward_hook(print)
        raise RuntimeError("broken")


def test_a_failed_explanation_leaves_nothing_behind(images: Tensor) -> None:
    model = GNN(width=8, depth=1)
    before = traces(model)
    with pytest.raises(RuntimeError, match="broken"):
        edges(Broken())(model, images[0])
    assert traces(model) == before


@pytest.mark.parametrize("compiled", [lambda model: torch.compile(model, backend="eager"), lambda model: model])
def test_compiled_models(compiled: Callable[[Any], Any], images: Tensor) -> None:
    for model, explain in ((LeNet5().eval(), pixels(grad_cam)), (GNN(width=8, depth=1).eval(), edges("gradient"))):
        expected = explain(model, images[0])
        model.compile(backend="eager")
        assert torch.equal(explain(compiled(model), images[0]), expected)


class Tricky(nn.Module):
    """Keeps its layers in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = self.again = nn.Linear(2, 2)
        self.layers = {"all": [self.layer, (self.again,)]}
        self.apply_layer = self.layer.forward
        self.parent = [self]
        self.seen = self.layer(torch.ones(2)) * 2  # torch cannot deepcopy the result of a computation


def test_a_copy_shares_the_weights_only() -> None:
    model = Tricky()
    own, copies = private(model)
    assert own.layer is own.again is own.layers["all"][0] is own.layers["all"][1][0] is copies[model.layer]
    assert own.layer is not model.layer
    assert own.apply_layer.__self__ is own.layer  # type: ignore[attr-defined]
    assert own.parent == [own]
    own.layer.weight.sum().backward()
    assert model.layer.weight.grad is None
    assert own.layer.weight.data_ptr() == model.layer.weight.data_ptr()
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert torch.equal(private(normed)[0](torch.ones(2)), normed(torch.ones(2)))
