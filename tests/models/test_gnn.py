from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

from mnist_lightning import GNN, InputError, MNISTDataModule, MNISTSuperpixelsDataModule
from mnist_lightning.models.graph_convolutions import edge_geometry

CONVS = ["kernel", "gcn", "gat", "gin", "gatedgcn"]


@pytest.fixture
def batch(graphs: MNISTSuperpixelsDataModule) -> Batch:
    return next(graphs.batches("val"))


def module_with_moments() -> MNISTSuperpixelsDataModule:
    data = MNISTSuperpixelsDataModule(source="digits", batch_size=16, features="moments")
    data.prepare_data()
    data.setup("fit")
    return data


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of `forward` without `neighbors`."""
    return batch.x, batch.edge_index, batch.pos, batch.batch


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("pooling", ["mean", "max", "mean+max"])
def test_evidence_sums_to_the_logits(conv: str, pooling: str, batch: Batch) -> None:
    model = GNN(width=16, depth=2, conv=conv, pooling=pooling).eval()  # type: ignore[arg-type]
    evidence = model.evidence(batch.x, model.embeddings(*inputs(batch)[:3])[-1], batch.batch)
    assert evidence.shape == (len(batch.x), 10)
    sums = torch.zeros(batch.num_graphs, 10).index_add(0, batch.batch, evidence)
    torch.testing.assert_close(sums, model(*inputs(batch)), atol=1e-5, rtol=1e-5)


def test_background_nodes_have_no_evidence_but_send_messages(batch: Batch) -> None:
    model = GNN(width=16, depth=2).eval()
    data = batch.get_example(0)
    evidence = model.evidence(data.x, model.embeddings(data.x, data.edge_index, data.pos)[-1])
    assert (evidence[data.x[:, 0] == 0] == 0).all()
    assert (evidence[data.x[:, 0] > 0] != 0).any(dim=1).all()
    blank = int((data.x[:, 0] == 0).nonzero()[data.edge_index[0].bincount()[data.x[:, 0] == 0].argmax()])
    without = data.edge_index[:, data.edge_index[0] != blank]
    assert not torch.allclose(model(data.x, without, data.pos), model(data.x, data.edge_index, data.pos))


@pytest.mark.parametrize("conv", CONVS)
def test_updates_of_nodes_with_ink(conv: str, batch: Batch) -> None:
    model = GNN(width=8, depth=2, conv=conv, updates="ink").eval()  # type: ignore[arg-type]
    fast = model.unpack(batch)[0]
    torch.testing.assert_close(model(*fast), model(*inputs(batch)), atol=1e-5, rtol=1e-5)
    layers, ink = model.embeddings(*inputs(batch)[:3]), batch.x[:, 0] > 0
    for before, after in pairwise(layers):
        assert torch.equal(before[~ink], after[~ink])
        assert not torch.equal(before[ink], after[ink])
    to_background = ~ink[batch.edge_index[1]]
    kept = batch.edge_index[:, ~to_background]
    everywhere = GNN(width=8, depth=2, conv=conv).eval()  # type: ignore[arg-type]
    everywhere.load_state_dict(model.state_dict())
    assert not torch.allclose(everywhere(*fast), model(*fast))
    if conv == "kernel":  # it needs no edges to the nodes that it does not update
        torch.testing.assert_close(model(batch.x, kept, batch.pos, batch.batch), model(*fast), atol=1e-5, rtol=1e-5)


def test_an_image_without_ink() -> None:
    for updates in ("all", "ink"):
        model = GNN(width=8, depth=1, updates=updates).eval()  # type: ignore[arg-type]
        assert torch.equal(model.classify(torch.zeros(1, 28, 28, dtype=torch.uint8)), torch.zeros(1, 10))


@pytest.mark.parametrize("conv", CONVS)
def test_logits_do_not_depend_on_the_order_of_nodes_and_edges(conv: str, batch: Batch) -> None:
    model = GNN(width=16, conv=conv).eval()  # type: ignore[arg-type]
    data = batch.get_example(0)
    nodes, edges = torch.randperm(len(data.x)), torch.randperm(data.edge_index.shape[1])
    place = nodes.argsort()
    shuffled = model(data.x[nodes], place[data.edge_index[:, edges]], data.pos[nodes])
    torch.testing.assert_close(shuffled, model(data.x, data.edge_index, data.pos), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("conv", CONVS)
def test_neighbors_do_not_change_the_result(conv: str, batch: Batch) -> None:
    model = GNN(conv=conv).train()  # type: ignore[arg-type]
    fast = model(*model.unpack(batch)[0])
    fast.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    general = model(*inputs(batch))
    general.sum().backward()
    torch.testing.assert_close(general, fast, atol=1e-4, rtol=1e-4)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-3, rtol=1e-3)


def test_unpack_finds_neighbors_of_regular_graphs_only(batch: Batch) -> None:
    (*_, neighbors), labels = GNN(width=8).unpack(batch)
    assert neighbors.shape == (len(batch.x), 8)
    assert torch.equal(neighbors.flatten(), batch.edge_index[0])
    assert torch.equal(labels, batch.y)
    edges = batch.edge_index
    for irregular in (edges[:, 1:], edges.flip(1), edges[:, :0]):  # one edge missing, not sorted, no edges
        batch.edge_index = irregular
        assert GNN(width=8).unpack(batch)[0][-1] is None


def test_masks_of_explainers_apply_with_neighbors(batch: Batch) -> None:
    model = GNN(width=8, depth=2).eval()
    fast, edges = model.unpack(batch)[0], batch.edge_index
    set_masks(model, nn.Parameter(torch.full((edges.shape[1],), 0.5)), edges, apply_sigmoid=False)
    masked = model(*fast)
    torch.testing.assert_close(masked, model(*inputs(batch)))
    clear_masks(model)
    assert not torch.allclose(masked, model(*fast))


def test_moments(batch: Batch, digits: MNISTDataModule) -> None:
    model = GNN(width=8, depth=1, features="moments").eval()
    images = digits.images_and_labels("val")[0]
    inputs, labels = model.unpack(next(module_with_moments().batches("val")))
    count = len(labels)
    torch.testing.assert_close(model(*inputs), model.classify(images[:count]), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        nodes = model._standardized(inputs[0], inputs[2])
    assert nodes.shape[1] == model.embedding[0].in_features == 10
    assert (nodes.mean(dim=0).abs() < 0.6).all()
    assert ((nodes.std(dim=0) > 0.3) & (nodes.std(dim=0) < 2)).all()
    changed = inputs[0].clone()
    changed[:, 7] *= 2
    assert not torch.allclose(model(changed, *inputs[1:]), model(*inputs))


def test_model_and_data_need_the_same_features(batch: Batch) -> None:
    with pytest.raises(InputError, match="GNN with features moments takes 8 features per node, got 2; give the model"):
        GNN(width=8, features="moments").unpack(batch)
    assert GNN(width=8).unpack(batch)[0][0].shape[1] == 2


def test_edge_geometry_is_relative_to_the_target(batch: Batch) -> None:
    x, edge_index, pos, _ = inputs(batch)
    geometry = edge_geometry(x, edge_index, pos)
    mirrored = edge_geometry(x, edge_index, torch.stack([pos[:, 0], 1 - pos[:, 1]], dim=1))
    torch.testing.assert_close(mirrored[:, 1], -geometry[:, 1])
    torch.testing.assert_close(mirrored[:, [0, 2, 3]], geometry[:, [0, 2, 3]])
    edge = 17
    source, target = edge_index[:, edge]
    torch.testing.assert_close(geometry[edge, :2], (pos[source] - pos[target]) * 8)
    torch.testing.assert_close(geometry[edge, 3], x[source, 0] - x[target, 0])


def test_removing_edges(batch: Batch) -> None:
    model = GNN().eval()
    data = batch.get_example(0)
    logits = model(data.x, data.edge_index, data.pos)
    assert not torch.allclose(model(data.x, data.edge_index[:, 1:], data.pos), logits)
    assert model(data.x, data.edge_index[:, :0], data.pos).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"conv": "gat", "width": 30}, "width must be a multiple of 4 for conv gat, got 30"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GNN(**arguments)


@pytest.mark.parametrize("arguments", [{"width": 1}, {"depth": 1}, {"conv": "gat", "width": 32}])
def test_valid_arguments(arguments: dict[str, Any], batch: Batch) -> None:
    assert GNN(**arguments)(*inputs(batch)).shape == (batch.num_graphs, 10)


def test_image_batches_are_refused() -> None:
    message = r"GNN takes batches of graphs .*MNISTSuperpixelsDataModule.* returned a tuple of a float32 tensor"
    with pytest.raises(InputError, match=message):
        GNN().unpack((torch.rand(2, 1, 28, 28), torch.zeros(2)))
