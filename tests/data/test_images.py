from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_lightning import Augmentation, InputError, MNISTDataModule
from mnist_lightning.errors import SourceUnavailableError


def module(**options: Any) -> MNISTDataModule:
    data = MNISTDataModule(**{"source": "digits", "batch_size": 64, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def epoch(data: MNISTDataModule, number: int) -> tuple[Tensor, Tensor]:
    """Images and labels of one training epoch, without a Trainer."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


def shards(data: MNISTDataModule, loader: str, world_size: int) -> list[Tensor]:
    """Images of each of `world_size` processes."""
    images = []
    for rank in range(world_size):
        progress = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
        trainer = SimpleNamespace(world_size=world_size, global_rank=rank, fit_loop=progress)
        data.trainer = trainer  # type: ignore[assignment]
        images.append(torch.cat([raw.batch[0] for raw in getattr(data, loader)()]))
    return images


def unique(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_batch_shapes_types_and_range() -> None:
    data = module()
    for images, labels in (data.on_after_batch_transfer(b, 0) for b in data.train_dataloader()):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert labels.dtype == torch.int64


def test_default_validation_split_is_the_last_twelfth() -> None:
    data = module()
    train, val = data.images_and_labels("train")[0], data.images_and_labels("val")[0]
    assert (len(train), len(val), len(data.images_and_labels("test")[0])) == (1317, 120, 360)
    whole = torch.cat([train, val])
    assert torch.equal(whole, module(val_size=100).images_and_labels("train")[0].new_tensor(whole.numpy()))


@pytest.mark.mnist
def test_mnist_split_sizes() -> None:
    data = module(source="mnist")
    assert [len(data.images_and_labels(split)[1]) for split in ("train", "val", "test")] == [55_000, 5_000, 10_000]


def test_stratified_split_keeps_class_proportions_and_depends_on_the_seed() -> None:
    first, again, other = (module(stratify=True, val_size=0.2, seed=seed) for seed in (1, 1, 2))
    labels = first.images_and_labels("val")[1]
    shares = torch.cat([labels, first.images_and_labels("train")[1]]).bincount() * 0.2
    assert (labels.bincount() - shares).abs().max() <= 1
    assert torch.equal(first.images_and_labels("val")[0], again.images_and_labels("val")[0])
    assert not torch.equal(first.images_and_labels("val")[0], other.images_and_labels("val")[0])


def test_folds_partition_the_training_images() -> None:
    folds = [module(fold=f"{k}/3") for k in (1, 2, 3)]
    assert sorted(torch.cat([data._rows["val"] for data in folds]).tolist()) == list(range(1437))
    whole = torch.cat([data.images_and_labels("val")[1] for data in folds]).bincount()
    for data in folds:
        assert sorted(torch.cat([data._rows["train"], data._rows["val"]]).tolist()) == list(range(1437))
        assert data._rows["test"].tolist() == list(range(1437, 1797))
        assert (data.images_and_labels("val")[1].bincount() - whole / 3).abs().max() < 1


def test_folds_depend_on_the_seed_only() -> None:
    first, again, other = (
        module(fold="2/3", seed=seed, val_size=size) for seed, size in ((1, 0.1), (1, 400), (2, 0.1))
    )
    assert torch.equal(first._rows["val"], again._rows["val"])
    assert not torch.equal(first._rows["val"], other._rows["val"])


def test_each_epoch_has_every_image_once_in_a_new_order() -> None:
    data = module()
    first, second = epoch(data, 0), epoch(data, 1)
    assert len(first[0]) == len(data.images_and_labels("train")[0])
    assert unique(first[0]) == unique(second[0]) == unique(data.images_and_labels("train")[0].unsqueeze(1) / 255)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(("batch_size", "last"), [(47, 47), (46, 29), (1316, 1316), (1317, 1317), (1, 1)])
def test_a_last_batch_of_one_image_is_left_out(batch_size: int, last: int) -> None:
    sizes = [len(raw.batch[1]) for raw in module(batch_size=batch_size).train_dataloader()]
    assert sizes == [batch_size] * (len(sizes) - 1) + [last]
    assert 1317 - sum(sizes) == (batch_size in (47, 1316))


def test_every_process_needs_an_image() -> None:
    assert [len(images) for images in shards(module(val_size=2), "val_dataloader", 2)] == [1, 1]
    with pytest.raises(InputError, match="2 processes need 2 or more val images, but digits has 1"):
        shards(module(val_size=1), "val_dataloader", 2)


def test_order_and_augmentation_depend_on_seed_and_epoch_only() -> None:
    augment = Augmentation(elastic=1.0)
    first, again = (epoch(module(augment=augment, seed=3), 5) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for other in (epoch(module(augment=augment, seed=4), 5), epoch(module(augment=augment, seed=3), 6)):
        assert not torch.equal(first[0], other[0])
    # (seed 3, epoch 1) and (seed 4, epoch 0) have the same sum.
    assert not torch.equal(epoch(module(seed=3), 1)[1], epoch(module(seed=4), 0)[1])


def test_workers_do_not_change_the_batches() -> None:
    one, two = (epoch(module(augment=Augmentation(), num_workers=n), 2) for n in (0, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_only_training_images_are_augmented() -> None:
    data = module(augment=Augmentation())
    assert not unique(epoch(data, 0)[0]) & unique(data.images_and_labels("train")[0].unsqueeze(1) / 255)
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        images = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in loader])
        assert torch.equal(images, data.images_and_labels(split)[0].unsqueeze(1) / 255)


def test_batches_are_in_order_and_not_augmented() -> None:
    data = module(augment=Augmentation())
    images = torch.cat([images for images, _ in data.batches("train")])
    assert torch.equal(images, data.images_and_labels("train")[0].unsqueeze(1) / 255)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_shard_evaluation_without_repeated_images(world_size: int) -> None:
    data = module()
    parts = shards(data, "test_dataloader", world_size)
    images = data.images_and_labels("test")[0]
    assert sum(map(len, parts)) == len(images)
    for rank, shard in enumerate(parts):
        assert torch.equal(shard, images[rank::world_size])


def test_processes_shard_training_images_evenly() -> None:
    data = module()
    first, second = shards(data, "train_dataloader", 2)
    assert len(first) == len(second) == 659  # of 1,317: one image is in both shards
    assert len(unique(first) & unique(second)) <= 1
    assert unique(torch.cat([first, second])) == unique(data.images_and_labels("train")[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": -3}, "batch_size must be 1 or more, got -3"),
        ({"num_workers": -1}, "num_workers must be from 0 to 1024, got -1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"val_size": 0}, r"val_size must be 1 or more images, .* got 0"),
        ({"val_size": 1.5}, r"val_size must be 1 or more images, .* got 1.5"),
        ({"val_size": 1437}, "val_size must select 1 to 1,436 training images of digits, got 1437"),
        *(({"fold": fold}, f"fold must be k/K with .* got {fold}") for fold in ("0/5", "6/5", "2", "a/b", "1/1")),
        ({"fold": "1/142"}, "fold must have a K of at most 141, the size of the smallest class of digits, got 1/142"),
        ({"source": "mnits"}, "did you mean mnist"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(**arguments)


def test_arguments_at_their_limits() -> None:
    assert len(module(batch_size=1, num_workers=0, seed=0, val_size=1).images_and_labels("val")[0]) == 1
    assert len(module(num_workers=1024, val_size=1436).images_and_labels("train")[0]) == 1
    assert module(fold="141/141").images_and_labels("val")[1].unique().tolist() == list(range(10))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.usefixtures("no_network")
def test_missing_data_without_a_fallback() -> None:
    with pytest.raises(SourceUnavailableError, match="train-images-idx3-ubyte"):
        module(source="mnist", root="nowhere")


@pytest.mark.usefixtures("no_network")
def test_fallback_warns_and_changes_the_source() -> None:
    with pytest.warns(UserWarning, match="TRAINING ON `digits`, NOT ON `mnist`"):
        data = module(source="mnist", root="nowhere", fallback="digits")
    assert data.source == "digits"
    assert len(data.images_and_labels("test")[0]) == 360


@pytest.mark.usefixtures("no_network")
def test_damaged_data_do_not_trigger_the_fallback(tmp_path: Any) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03 cut short")
    with pytest.raises(InputError, match="damaged"):
        module(source="mnist", root=str(tmp_path), fallback="digits")
