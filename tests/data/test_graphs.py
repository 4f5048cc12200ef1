from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data

from mnist_lightning import InputError, MNISTDataModule, MNISTSuperpixelsDataModule, PositionAugmentation
from mnist_lightning.data.graphs import batch_of
from mnist_lightning.data.superpixels import SuperpixelGraphs


def module(**options: Any) -> MNISTSuperpixelsDataModule:
    data = MNISTSuperpixelsDataModule(**{"source": "digits", "batch_size": 64, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def epoch(data: MNISTSuperpixelsDataModule, number: int) -> list[Batch]:
    """Batches of one training epoch, without a Trainer."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a[key], b[key])
        for a, b in zip(first, second, strict=True)
        for key in ("x", "pos", "edge_index", "y")
    )


def one_by_one(graphs: SuperpixelGraphs, rows: Tensor, labels: Tensor) -> list[Data]:
    """The same graphs as PyG users build them: one `Data` object per graph."""
    result = []
    for row, label in zip(rows.tolist(), labels, strict=True):
        nodes = slice(*graphs.node_ptr[row : row + 2].tolist())
        edges = slice(*graphs.edge_ptr[row : row + 2].tolist())
        result.append(
            Data(
                x=graphs.x[nodes],
                edge_index=graphs.edges[:, edges].long(),
                y=label,
                pos=graphs.pos[nodes],
                segments=graphs.segments[row : row + 1],
            )
        )
    return result


def assert_same_batch(ours: Batch, theirs: Batch) -> None:
    assert sorted(ours.keys()) == sorted(theirs.keys())
    for key in theirs.keys():  # noqa: SIM118 - no mapping
        assert torch.equal(ours[key], theirs[key]), key
        assert ours[key].dtype == theirs[key].dtype
    assert ours.num_graphs == theirs.num_graphs
    for name in ("_slice_dict", "_inc_dict"):
        mine, yours = getattr(ours, name), getattr(theirs, name)
        assert mine.keys() == yours.keys()
        assert all(torch.equal(mine[key], yours[key]) for key in yours)


def test_batch_of_is_bit_identical_to_pyg(graphs: MNISTSuperpixelsDataModule) -> None:
    rows, labels = torch.tensor([5, 1000, 0, 5, 1796]), torch.arange(5)
    ours = batch_of(graphs.graphs, rows, labels)
    assert_same_batch(ours, Batch.from_data_list(one_by_one(graphs.graphs, rows, labels)))
    again = ours.to_data_list()
    assert torch.equal(again[1].edge_index, one_by_one(graphs.graphs, rows, labels)[1].edge_index)


def test_batch_of_graphs_of_different_sizes() -> None:
    # Two graphs, of 3 nodes and 2 edges and of 2 nodes and 1 edge.
    graphs = SuperpixelGraphs(
        x=torch.rand(5, 2),
        pos=torch.rand(5, 2),
        edges=torch.tensor([[0, 1, 1], [1, 2, 0]], dtype=torch.uint8),
        node_ptr=torch.tensor([0, 3, 5]),
        edge_ptr=torch.tensor([0, 2, 3]),
        segments=torch.zeros(2, 28, 28, dtype=torch.uint8),
    )
    rows, labels = torch.tensor([1, 0, 1]), torch.tensor([7, 8, 9])
    ours = batch_of(graphs, rows, labels)
    assert ours.batch.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert ours.edge_index.tolist() == [[1, 2, 3, 6], [0, 3, 4, 5]]
    assert_same_batch(ours, Batch.from_data_list(one_by_one(graphs, rows, labels)))


def test_splits_match_the_image_splits(graphs: MNISTSuperpixelsDataModule, digits: MNISTDataModule) -> None:
    for split in ("train", "val", "test"):
        images, labels = digits.images_and_labels(split)
        batches = list(graphs.batches(split))
        assert torch.equal(torch.cat([batch.y for batch in batches]), labels)
        painted = [
            batch.x[:, 0][batch.segments[g].long() + batch.ptr[g]] for batch in batches for g in range(batch.num_graphs)
        ]
        # Superpixels keep the mean intensity and approximate the digit.
        torch.testing.assert_close(torch.stack(painted).mean((1, 2)), images.float().mean((1, 2)) / 255)
        assert (torch.stack(painted) - images / 255).square().mean() < 0.02


@pytest.mark.parametrize("options", [{"stratify": True, "val_size": 0.2}, {"fold": "2/5"}])
def test_shuffled_split_selects_the_matching_graphs(options: dict[str, Any]) -> None:
    data = module(**options)
    (batch, *_) = data.batches("val")
    image, label = (part[0] for part in data.images_and_labels("val"))
    painted = batch.x[:, 0][batch.segments[0].long()]
    torch.testing.assert_close(painted.mean(), image.float().mean() / 255)
    assert batch.y[0] == label


def test_each_epoch_has_every_graph_once_in_a_new_order() -> None:
    data = module()
    first, second = epoch(data, 0), epoch(data, 1)
    assert sum(batch.num_graphs for batch in first) == 1317
    assert not equal(first, second)
    intensities = [torch.cat([batch.x[:, 0] for batch in batches]).sort().values for batches in (first, second)]
    assert torch.equal(*intensities)


def test_order_and_augmentation_depend_on_seed_and_epoch_only() -> None:
    augment = PositionAugmentation()
    first, again, other = (epoch(module(augment=augment, seed=seed), 5) for seed in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)
    assert not equal(first, epoch(module(augment=augment, seed=3), 6))


@pytest.mark.slow
def test_workers_do_not_change_the_batches() -> None:
    assert equal(*(epoch(module(augment=PositionAugmentation(), num_workers=n), 2) for n in (0, 2)))


def test_augmentation_changes_only_nodes_of_training_graphs() -> None:
    plain, augmented = module(), module(augment=PositionAugmentation())
    for a, b in zip(epoch(plain, 0), epoch(augmented, 0), strict=True):
        assert not torch.isclose(a.pos, b.pos).all(dim=1).any()
        assert torch.equal(a.edge_index, b.edge_index)
        assert torch.equal(a.x[:, 1], b.x[:, 1])
    for split in ("val", "test"):
        assert equal(list(plain.batches(split)), list(augmented.batches(split)))


def test_training_batches_come_from_copies_and_evaluation_does_not() -> None:
    plain, copied = module(), module(copies=1)
    first, again, other = epoch(copied, 5), epoch(module(copies=1), 5), epoch(copied, 6)
    assert equal(first, again)
    assert not equal(first, other)
    undistorted = epoch(plain, 5)
    assert all(torch.equal(a.y, b.y) for a, b in zip(first, undistorted, strict=True))
    of_images = [a.x.equal(b.x) for a, b in zip(first, undistorted, strict=True)]
    assert 0 < sum(of_images) < len(of_images)  # the others are from the copy
    for split in ("train", "val", "test"):
        assert equal(list(plain.batches(split)), list(copied.batches(split)))


def test_copies_keep_the_order_of_the_images() -> None:
    data = module(copies=1, stratify=True, val_size=0.2)
    (copy,), rows = data._open_copies(build=False), data._rows["train"]
    painted = copy.x[:, 0][copy.segments[rows].flatten(1).long() + copy.node_ptr[rows, None]]
    images = data.images_and_labels("train")[0].flatten(1) / 255
    same, other = (torch.cosine_similarity(painted, part).mean() for part in (images, images.roll(1, 0)))
    assert same > other + 0.15


def test_evaluation_builds_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(copies=1)
    opened = []
    monkeypatch.setattr(data, "_open_copies", lambda build: opened.append(build))
    for function in ("test", "fit"):
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=function))  # type: ignore[assignment]
        data.prepare_data()
        assert opened == ([True] if function == "fit" else [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "shapes"}, "features must be one of plain, moments, got 'shapes'"),
        ({"copies": -1}, "copies must be 0 or more, got -1"),
    ],
)
def test_invalid_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MNISTSuperpixelsDataModule(**options)


def test_moments() -> None:
    data = module(features="moments", augment=PositionAugmentation())
    plain = module(augment=PositionAugmentation())
    batch = epoch(data, 0)[0]
    assert batch.x.shape[1] == 8
    assert torch.equal(batch.x[:, :2], epoch(plain, 0)[0].x)


def test_augmentation_does_not_modify_the_cached_graphs() -> None:
    data = module(augment=PositionAugmentation())
    before = data.graphs.pos.clone()
    epoch(data, 0)
    assert torch.equal(data.graphs.pos, before)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_shard_evaluation_without_repeated_graphs(world_size: int) -> None:
    data = module()
    parts = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)  # type: ignore[assignment]
        parts.append(torch.cat([raw.batch.y for raw in data.test_dataloader()]))
    labels = data.images_and_labels("test")[1]
    for rank, shard in enumerate(parts):
        assert torch.equal(shard, labels[rank::world_size])


def test_batches_can_be_moved_to_a_device(graphs: MNISTSuperpixelsDataModule) -> None:
    loader: DataLoader[Any] = graphs.val_dataloader()
    moved = graphs.transfer_batch_to_device(next(iter(loader)), torch.device("meta"), 0)
    assert moved.batch.x.device.type == "meta"
    assert moved.batch.segments.device.type == "meta"
