import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from mnist_lightning import GNN, InputError, MNISTSuperpixelsDataModule
from mnist_lightning.models.graph_convolutions import edge_geometry

CONVS = ["kernel", "gcn", "gat", "gin", "gatedgcn"]


@pytest.fixture
def batch(graphs: MNISTSuperpixelsDataModule) -> Batch:
    return next(graphs.batches("val"))


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch.x, batch.edge_index, batch.pos, batch.batch


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("pooling", ["mean", "max", "mean+max"])
def test_the_nodes_evidence_adds_up_to_the_logits(conv: str, pooling: str, batch: Batch) -> None:
    model = GNN(width=16, depth=2, conv=conv, pooling=pooling).eval()  # type: ignore[arg-type]
    evidence = model.evidence(batch.x, model.embeddings(*inputs(batch)[:3])[-1], batch.batch)
    assert evidence.shape == (len(batch.x), 10)
    summed = torch.zeros(batch.num_graphs, 10).index_add(0, batch.batch, evidence)
    torch.testing.assert_close(summed, model(*inputs(batch)), atol=1e-5, rtol=1e-5)


def test_superpixels_without_ink_are_no_evidence_but_are_heard_through_others(batch: Batch) -> None:
    model = GNN(width=16, depth=2).eval()
    data = batch.get_example(0)
    evidence = model.evidence(data.x, model.embeddings(data.x, data.edge_index, data.pos)[-1])
    assert (evidence[data.x[:, 0] == 0] == 0).all()
    assert (evidence[data.x[:, 0] > 0] != 0).any(dim=1).all()
    blank = int((data.x[:, 0] == 0).nonzero()[data.edge_index[0].bincount()[data.x[:, 0] == 0].argmax()])
    without = data.edge_index[:, data.edge_index[0] != blank]
    assert not torch.allclose(model(data.x, without, data.pos), model(data.x, data.edge_index, data.pos))


@pytest.mark.parametrize("conv", CONVS)
def test_the_order_of_nodes_and_edges_means_nothing(conv: str, batch: Batch) -> None:
    model = GNN(width=16, conv=conv).eval()  # type: ignore[arg-type]
    data = batch.get_example(0)
    nodes, edges = torch.randperm(len(data.x)), torch.randperm(data.edge_index.shape[1])
    place = nodes.argsort()
    shuffled = model(data.x[nodes], place[data.edge_index[:, edges]], data.pos[nodes])
    torch.testing.assert_close(shuffled, model(data.x, data.edge_index, data.pos), atol=1e-5, rtol=1e-4)


def test_the_fast_way_is_that_of_message_passing(batch: Batch) -> None:
    model = GNN().train()
    x, edge_index, pos, graph = inputs(batch)
    fast = model(x, edge_index, pos, graph)
    fast.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    # Edges in another order take the general way.
    general = model(x, edge_index.flip(1), pos, graph)
    general.sum().backward()
    torch.testing.assert_close(general, fast, atol=1e-4, rtol=1e-4)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-3, rtol=1e-3)


def test_it_sees_where_its_neighbors_lie(batch: Batch) -> None:
    """Mirrored digits are other digits to the kernel, with nothing but the edges to tell."""
    x, edge_index, pos, _ = inputs(batch)
    geometry = edge_geometry(x, edge_index, pos)
    mirrored = edge_geometry(x, edge_index, torch.stack([pos[:, 0], 1 - pos[:, 1]], dim=1))
    torch.testing.assert_close(mirrored[:, 1], -geometry[:, 1])
    torch.testing.assert_close(mirrored[:, [0, 2, 3]], geometry[:, [0, 2, 3]])
    edge = 17
    source, target = edge_index[:, edge]
    torch.testing.assert_close(geometry[edge, :2], (pos[source] - pos[target]) * 8)
    torch.testing.assert_close(geometry[edge, 3], x[source, 0] - x[target, 0])


def test_an_edge_can_be_taken_away(batch: Batch) -> None:
    model = GNN().eval()
    data = batch.get_example(0)
    whole = model(data.x, data.edge_index, data.pos)
    assert not torch.allclose(model(data.x, data.edge_index[:, 1:], data.pos), whole)
    assert model(data.x, data.edge_index[:, :0], data.pos).isfinite().all()


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"conv": "gat", "width": 30}])
def test_arguments_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="width is"):
        GNN(**wrong)  # type: ignore[arg-type]


def test_images_are_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"GNN takes batches of graphs .*MNISTSuperpixelsDataModule.* gave it a tuple of"
    ):
        GNN().unpack((torch.rand(2, 1, 28, 28), torch.zeros(2)))
