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
    """What a bare loop sees in one epoch."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


def shards(data: MNISTDataModule, loader: str, world_size: int) -> list[Tensor]:
    """The images that each of several processes would see, as Lightning tells each its rank."""
    seen = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)  # type: ignore[assignment]
        seen.append(torch.cat([batch.images for batch in getattr(data, loader)()]))
    return seen


def unique(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_batches_keep_the_contract() -> None:
    data = module()
    for images, labels in (data.on_after_batch_transfer(b, 0) for b in data.train_dataloader()):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert labels.dtype == torch.int64


def test_the_last_twelfth_of_the_training_images_validates() -> None:
    data = module()
    train, val = data.images_and_labels("train")[0], data.images_and_labels("val")[0]
    assert (len(train), len(val), len(data.images_and_labels("test")[0])) == (1317, 120, 360)
    whole = torch.cat([train, val])
    assert torch.equal(whole, module(val_size=100).images_and_labels("train")[0].new_tensor(whole.numpy()))


@pytest.mark.mnist
def test_mnist_is_split_as_everybody_does() -> None:
    data = module(source="mnist")
    assert [len(data.images_and_labels(split)[1]) for split in ("train", "val", "test")] == [55_000, 5_000, 10_000]


def test_a_stratified_split_has_the_classes_shares_and_depends_on_the_seed() -> None:
    first, again, other = (module(stratify=True, val_size=0.2, seed=seed) for seed in (1, 1, 2))
    labels = first.images_and_labels("val")[1]
    shares = torch.cat([labels, first.images_and_labels("train")[1]]).bincount() * 0.2
    assert (labels.bincount() - shares).abs().max() <= 1
    assert torch.equal(first.images_and_labels("val")[0], again.images_and_labels("val")[0])
    assert not torch.equal(first.images_and_labels("val")[0], other.images_and_labels("val")[0])


def test_every_image_is_trained_on_once_an_epoch_in_a_new_order() -> None:
    data = module()
    first, second = epoch(data, 0), epoch(data, 1)
    assert len(first[0]) == len(data.images_and_labels("train")[0])
    assert unique(first[0]) == unique(second[0]) == unique(data.images_and_labels("train")[0].unsqueeze(1) / 255)
    assert not torch.equal(first[0], second[0])


def test_seed_and_epoch_decide_order_and_augmentation() -> None:
    augment = Augmentation(elastic=1.0)
    first, again = (epoch(module(augment=augment, seed=3), 5) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for other in (epoch(module(augment=augment, seed=4), 5), epoch(module(augment=augment, seed=3), 6)):
        assert not torch.equal(first[0], other[0])
    # One seed's second epoch is not another's first.
    assert not torch.equal(epoch(module(seed=3), 1)[1], epoch(module(seed=4), 0)[1])


def test_workers_change_nothing() -> None:
    one, two = (epoch(module(augment=Augmentation(), num_workers=n), 2) for n in (0, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_only_training_images_are_distorted() -> None:
    data = module(augment=Augmentation())
    assert not unique(epoch(data, 0)[0]) & unique(data.images_and_labels("train")[0].unsqueeze(1) / 255)
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        images = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in loader])
        assert torch.equal(images, data.images_and_labels(split)[0].unsqueeze(1) / 255)


def test_batches_of_a_split_come_in_its_order_undistorted() -> None:
    data = module(augment=Augmentation())
    images = torch.cat([images for images, _ in data.batches("train")])
    assert torch.equal(images, data.images_and_labels("train")[0].unsqueeze(1) / 255)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_share_evaluation_images_without_repeating_any(world_size: int) -> None:
    data = module()
    seen = shards(data, "test_dataloader", world_size)
    images = data.images_and_labels("test")[0]
    assert sum(map(len, seen)) == len(images)
    for rank, shard in enumerate(seen):
        assert torch.equal(shard, images[rank::world_size])


def test_processes_share_training_images_evenly() -> None:
    data = module()
    seen = shards(data, "train_dataloader", 2)
    assert len(seen[0]) == len(seen[1]) == 659  # of 1,317: one is seen by both
    assert len(unique(seen[0]) & unique(seen[1])) <= 1
    assert unique(torch.cat(seen)) == unique(data.images_and_labels("train")[0])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"val_size": 0}, "val_size is 0"),
        ({"val_size": 1.5}, "val_size is 1.5"),
        ({"val_size": 5000}, "1,437 training images"),
        ({"source": "mnits"}, "did you mean mnist"),
    ],
)
def test_arguments_that_cannot_be_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        module(**wrong)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.usefixtures("no_network")
def test_without_a_fallback_absent_data_are_an_error() -> None:
    with pytest.raises(SourceUnavailableError, match="train-images-idx3-ubyte"):
        module(source="mnist", root="nowhere")


@pytest.mark.usefixtures("no_network")
def test_the_fallback_is_loud_and_changes_the_name() -> None:
    with pytest.warns(UserWarning, match="TRAINING ON `digits`, NOT ON `mnist`"):
        data = module(source="mnist", root="nowhere", fallback="digits")
    assert data.source == "digits"
    assert len(data.images_and_labels("test")[0]) == 360


@pytest.mark.usefixtures("no_network")
def test_damaged_data_are_no_reason_to_fall_back(tmp_path: Any) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03 cut short")
    with pytest.raises(InputError, match="damaged"):
        module(source="mnist", root=str(tmp_path), fallback="digits")
