import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_geometric.explain import DummyExplainer

from mnist_lightning import GNN, InputError, MNISTDataModule, MNISTSuperpixelsDataModule
from mnist_lightning.explain.connectivity import Connectivity, connectivity, edge_importance


@pytest.fixture(scope="module")
def model(data_root: Path) -> GNN:
    """A GNN trained for one epoch, because explanations of random weights are noise."""
    torch.manual_seed(0)
    data = MNISTSuperpixelsDataModule(source="digits", root=str(data_root), batch_size=64)
    data.prepare_data()
    data.setup("fit")
    model = GNN(width=16, depth=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in data.batches("train"):
        loss = model.loss(model(batch.x, batch.edge_index, batch.pos, batch.batch), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


@pytest.fixture
def image(digits: MNISTDataModule) -> Tensor:
    return digits.images_and_labels("test")[0][7]


@pytest.fixture
def explanation(model: GNN, image: Tensor) -> Connectivity:
    return connectivity(model, image)


def test_explains_the_prediction(explanation: Connectivity, model: GNN, image: Tensor) -> None:
    assert torch.equal(explanation.logits, model.classify(image[None])[0])
    torch.testing.assert_close(explanation.node_evidence.sum(0), explanation.logits, atol=1e-4, rtol=0)
    assert explanation.target == explanation.predicted == int(explanation.logits.argmax())
    assert explanation.logits[explanation.runner_up] == explanation.logits.sort().values[-2]
    assert [len(layer) for layer in explanation.embeddings] == [len(explanation.x)] * 3
    assert not any(p.grad is not None for p in model.parameters())


def test_gradient_is_the_derivative_by_message_strength(explanation: Connectivity, model: GNN) -> None:
    """The sum over all edges equals the numerical derivative by a factor on all messages."""
    exact = copy.deepcopy(model).double()

    def logit(factor: float) -> Tensor:
        hooks = [conv.register_message_forward_hook(lambda _, __, out: out * factor) for conv in exact.convs]
        x, edge_index, pos = explanation.x.double(), explanation.edge_index, explanation.pos.double()
        value = exact(x, edge_index, pos)[0, explanation.target].detach()
        for hook in hooks:
            hook.remove()
        return value

    slope = (logit(1 + 1e-6) - logit(1 - 1e-6)) / 2e-6
    torch.testing.assert_close(explanation.edge_importance.sum().double(), slope, atol=1e-3, rtol=1e-3)


def test_occlusion_is_the_decrease_without_the_edge(explanation: Connectivity, model: GNN) -> None:
    x, edge_index, pos, target = explanation.x, explanation.edge_index, explanation.pos, explanation.target
    decreases = edge_importance(model, x, edge_index, pos, target, "occlusion")
    for edge in (0, 100, len(decreases) - 1):
        kept = torch.arange(len(decreases)) != edge
        without = model(x, edge_index[:, kept], pos)[0, target]
        torch.testing.assert_close(
            decreases[edge], (explanation.logits[target] - without).detach(), atol=1e-4, rtol=1e-3
        )


def test_methods_correlate(explanation: Connectivity, model: GNN, image: Tensor) -> None:
    occlusion = connectivity(model, image, method="occlusion").edge_importance
    assert torch.corrcoef(torch.stack([occlusion, explanation.edge_importance]))[0, 1] > 0.5


def test_target(model: GNN, image: Tensor) -> None:
    three, eight = (connectivity(model, image, target=digit) for digit in (3, 8))
    assert (three.target, eight.target) == (3, 8)
    assert not torch.allclose(three.edge_importance, eight.edge_importance)


@pytest.mark.slow
def test_algorithms_of_pyg(model: GNN, image: Tensor) -> None:
    before = connectivity(model, image).edge_importance
    mask = connectivity(model, image, method="gnn_explainer").edge_importance
    assert mask.shape == before.shape
    assert 0 <= mask.min() < mask.max() <= 1
    assert connectivity(model, image, method=DummyExplainer()).method == "DummyExplainer"
    assert torch.equal(connectivity(model, image).edge_importance, before)  # the model keeps no mask


def test_attention_of_gat(image: Tensor) -> None:
    mask = connectivity(GNN(width=8, conv="gat").eval(), image, method="attention").edge_importance
    assert 0 < mask.min() < mask.max() < 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "attention"}, "AttentionExplainer cannot explain this model"),
        ({"method": "guess"}, "method must be one of gradient, occlusion, gnn_explainer, attention, got 'guess'"),
        ({"target": 10}, "target must be a class from 0 to 9, got 10"),
        ({"target": -1}, "target must be a class from 0 to 9, got -1"),
        ({"image": torch.rand(28, 28)}, r"image must be torch.uint8 \[28, 28\], got torch.float32 \[28, 28\]"),
        ({"image": torch.zeros(1, 28, 28, dtype=torch.uint8)}, r"got torch.uint8 \[1, 28, 28\]"),
    ],
)
def test_invalid_arguments(wrong: dict[str, object], words: str, model: GNN, image: Tensor) -> None:
    with pytest.raises(InputError, match=words):
        connectivity(**{"model": model, "image": image, **wrong})  # type: ignore[arg-type]
