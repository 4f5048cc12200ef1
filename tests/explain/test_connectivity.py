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
    """A GNN that has learned something, so that its reasons are reasons."""
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
def found(model: GNN, image: Tensor) -> Connectivity:
    return connectivity(model, image)


def test_it_explains_the_models_own_answer(found: Connectivity, model: GNN, graphs: MNISTSuperpixelsDataModule) -> None:
    batch = next(graphs.batches("test")).get_example(7)
    torch.testing.assert_close(found.logits, model(batch.x, batch.edge_index, batch.pos)[0].detach())
    torch.testing.assert_close(found.node_evidence.sum(0), found.logits, atol=1e-4, rtol=0)
    assert found.target == found.predicted == int(found.logits.argmax())
    assert found.logits[found.runner_up] == found.logits.sort().values[-2]
    assert [len(layer) for layer in found.embeddings] == [len(found.x)] * 3
    assert not any(p.grad is not None for p in model.parameters())


def test_the_gradient_is_that_of_fading_an_edge_out(found: Connectivity, model: GNN) -> None:
    """Summed over all edges: the derivative by a factor on all messages, by differences."""

    exact = copy.deepcopy(model).double()

    def logit(factor: float) -> Tensor:
        hooks = [conv.register_message_forward_hook(lambda _, __, out: out * factor) for conv in exact.convs]
        # The order of the edges takes the general way, which the hooks are on.
        value = exact(found.x.double(), found.edge_index.flip(1), found.pos.double())[0, found.target].detach()
        for hook in hooks:
            hook.remove()
        return value

    slope = (logit(1 + 1e-6) - logit(1 - 1e-6)) / 2e-6
    torch.testing.assert_close(found.edge_importance.sum().double(), slope, atol=1e-3, rtol=1e-3)


def test_occlusion_is_the_fall_without_the_edge(found: Connectivity, model: GNN) -> None:
    falls = edge_importance(model, found.x, found.edge_index, found.pos, found.target, "occlusion")
    for edge in (0, 100, len(falls) - 1):
        kept = torch.arange(len(falls)) != edge
        without = model(found.x, found.edge_index[:, kept], found.pos)[0, found.target]
        torch.testing.assert_close(falls[edge], (found.logits[found.target] - without).detach(), atol=1e-4, rtol=1e-3)


def test_methods_agree_on_what_matters(found: Connectivity, model: GNN) -> None:
    falls = edge_importance(model, found.x, found.edge_index, found.pos, found.target, "occlusion")
    assert torch.corrcoef(torch.stack([falls, found.edge_importance]))[0, 1] > 0.5


def test_the_edges_importance_can_be_about_any_class(model: GNN, image: Tensor) -> None:
    about = [connectivity(model, image, target=digit).edge_importance for digit in (3, 8)]
    assert not torch.allclose(*about)


@pytest.mark.slow
def test_pygs_algorithms(model: GNN, image: Tensor) -> None:
    mask = connectivity(model, image, method="gnn_explainer").edge_importance
    assert mask.shape == (connectivity(model, image).edge_index.shape[1],)
    assert 0 <= mask.min() < mask.max() <= 1
    assert connectivity(model, image, method=DummyExplainer()).method == "DummyExplainer"
    again = connectivity(model, image)  # PyG's masks are gone
    torch.testing.assert_close(again.edge_importance, connectivity(model, image).edge_importance)


def test_attention_of_a_gnn_that_has_some(image: Tensor) -> None:
    mask = connectivity(GNN(width=8, conv="gat").eval(), image, method="attention").edge_importance
    assert 0 < mask.min() < mask.max() < 1


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"method": "attention"}, "AttentionExplainer cannot explain this model"),
        ({"method": "guess"}, "unknown method 'guess': there are gradient, occlusion"),
        ({"target": 10}, "target is 10"),
        ({"image": torch.rand(28, 28)}, r"float32 \[28, 28\], not uint8"),
    ],
)
def test_arguments_that_cannot_be_are_refused(wrong: dict[str, object], word: str, model: GNN, image: Tensor) -> None:
    with pytest.raises(InputError, match=word):
        connectivity(**{"model": model, "image": image, **wrong})  # type: ignore[arg-type]
