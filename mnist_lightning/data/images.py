"""Batches of MNIST-like images."""

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mnist_lightning.checks import at_least, check_types, fold_of, hints_of
from mnist_lightning.data.augment import Augmentation
from mnist_lightning.data.sources import class_names, fetch, read
from mnist_lightning.errors import InputError, SourceUnavailableError


class RawBatch(NamedTuple):
    """Batch as the DataLoader returns it, before `on_after_batch_transfer`.

    Attributes:
        batch: Images, uint8 [B, 28, 28], and labels, int64 [B], or graphs as a PyG `Batch`.
        noise: Random numbers for the augmentation, or None for a batch without augmentation.
    """

    batch: Any
    noise: Tensor | tuple[Tensor, Tensor] | None


def mixed_seed(*parts: int) -> int:
    """Hashes several numbers into one seed, so that (seed 0, epoch 1) and (seed 1, epoch 0) are unrelated.

    Example:
        >>> mixed_seed(0, 1) == mixed_seed(1, 0)
        False
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


class ImageBatches(Dataset[RawBatch]):
    """In-memory split that returns whole batches.

    The DataLoader calls `__getitems__` once per batch instead of `__getitem__` once per image. A batch of 128 takes
    0.1 ms instead of 6 ms.

    Args:
        images: uint8 [N, 28, 28].
        labels: int64 [N].
        augment: Augmentation to draw random numbers for, or None.
        seed: Seed of these random numbers, together with `epoch` and the first index of the batch. The numbers
            therefore survive a resume and do not depend on the number of workers.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Augmentation | None, seed: int) -> None:
        self.images, self.labels, self.augment, self.seed = images, labels, augment, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> RawBatch:
        """Returns the batch with these indices."""
        index = torch.tensor(indices)
        batch = self.images.index_select(0, index), self.labels.index_select(0, index)
        noise = None if self.augment is None else self.augment.draw(len(indices), self.generator(indices))
        return RawBatch(batch, noise)

    def generator(self, indices: list[int]) -> torch.Generator:
        """Returns the seeded generator for the augmentation of the batch with these indices."""
        return torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch, indices[0]))


class EpochSampler(DistributedSampler[int]):
    """DistributedSampler that also sets the epoch of its dataset, which the augmentation seed depends on."""

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. Lightning calls this before each epoch; in your own training loop, call it yourself."""
        super().set_epoch(epoch)
        self.dataset.epoch = epoch  # type: ignore[attr-defined]


def _identity(batch: Any) -> Any:
    return batch  # not a lambda: spawned workers pickle the collate function


class MNISTDataModule(LightningDataModule):
    """Batches of digits: `(images, labels)` with float images [B, 1, 28, 28] in [0, 1] and int64 labels [B].

    Splits stay in memory as uint8. `on_after_batch_transfer` scales and augments each batch on its device. Lightning
    calls this method for you. In your own training loop, call it on each batch:

        >>> data = MNISTDataModule(source="digits", batch_size=64)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> loader = data.train_dataloader()
        >>> loader.sampler.set_epoch(0)
        >>> images, labels = data.on_after_batch_transfer(next(iter(loader)), 0)
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 28, 28]), torch.Size([64]))

    Args:
        source: `mnist`, `fashion_mnist`, `kmnist`, `qmnist`, `emnist_digits`, `digits` (1,797 real digits shipped
            with scikit-learn; needs no network) or `folder:PATH` (one subfolder per class).
        root: Data folder. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.
        fallback: Source to use, with a warning, if `source` is neither on disk nor downloadable. Without a fallback,
            this raises an error.
        batch_size: Training images per batch and process. Evaluation stores no gradients and uses batches four times
            as large.
        augment: Ranges of the random distortions of training images, or null for no augmentation.
        val_size: Validation images, as a number or as a fraction of the training images. 1/12 of MNIST's 60,000
            training images is 5,000.
        stratify: Whether to validate on a random sample with the class proportions of the training images, instead
            of on the last training images.
        fold: Fold of a K-fold cross-validation, `k/K` such as `2/5`, or null for none. The validation images are the
            k-th of K stratified folds of the training images. It replaces `val_size` and `stratify`. The folds of one
            seed are disjoint and together contain every training image once.
        seed: Seed of the order, the augmentation, the stratified sample and the folds. Default: the seed of
            `seed_everything`.
        num_workers: DataLoader worker processes. 0 is fastest here, because a batch takes 0.1 ms.

    Raises:
        InputError: If an argument is out of range, or the source is unknown, missing or damaged.
    """

    def __init__(
        self,
        source: str = "mnist",
        root: str | None = None,
        fallback: str | None = None,
        batch_size: int = 128,
        augment: Augmentation | None = None,
        val_size: int | float = 1 / 12,
        stratify: bool = False,
        fold: str | None = None,
        seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        check_types(hints_of(MNISTDataModule), locals())
        super().__init__()
        at_least(1, batch_size=batch_size)
        if not 0 <= num_workers <= 1024:
            raise InputError(f"num_workers must be from 0 to 1024, got {num_workers}")
        at_least(0, seed=seed or 0)
        if not val_size > 0 or (isinstance(val_size, float) and val_size >= 1):
            raise InputError(f"val_size must be 1 or more images, or a fraction between 0 and 1, got {val_size}")
        if fold is not None:
            fold_of(fold)
        self.source = source
        self.root = root
        self.fallback = fallback
        self.batch_size = batch_size
        self.augment = augment
        self.val_size = val_size
        self.stratify = stratify
        self.fold = fold
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.num_workers = num_workers
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        self._origin: dict[str, Any] = {}
        self._rows: dict[str, Tensor] = {}  # indices into all images of the source, test images last

    def prepare_data(self) -> None:
        """Downloads the source, or switches to `fallback`. Lightning calls this in one process per machine."""
        try:
            self._fetch(self.source)
        except SourceUnavailableError as unavailable:
            if self.fallback is None:
                raise
            self._fetch(self.fallback)
            rank_zero_warn(f"TRAINING ON `{self.fallback}`, NOT ON `{self.source}`. {unavailable}")
            self.source = self.fallback

    def setup(self, stage: str) -> None:
        """Reads the splits, in every process. Switches to `fallback` if the source is missing."""
        if self._splits:
            return
        try:
            images, labels = self._read(train=True)
        except SourceUnavailableError:
            if self.fallback is None:
                raise
            self.source = self.fallback
            images, labels = self._read(train=True)
        train, val = self._split(labels)
        tests = self._read(train=False)
        self._splits = {"train": (images[train], labels[train]), "val": (images[val], labels[val]), "test": tests}
        checksum = crc32(b"".join(part[1].numpy().tobytes() for part in (self._splits["train"], self._splits["val"])))
        self._origin = {"source": self.source, "classes": class_names(self.source), "labels": checksum}
        self._rows = {"train": train, "val": val, "test": torch.arange(len(labels), len(labels) + len(tests[1]))}

    def state_dict(self) -> dict[str, Any]:
        """Returns the source that was really used, its classes, and a checksum of the labels, for checkpoints."""
        return self._origin

    def _fetch(self, source: str) -> None:
        fetch(source, self.root)

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        return read(self.source, self.root, train=train)

    def _split(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the training images and of the validation images."""
        if self.fold is not None:
            return self._split_fold(labels.numpy(), *fold_of(self.fold))
        count = len(labels)
        size = round(count * self.val_size) if isinstance(self.val_size, float) else self.val_size
        if not 0 < size < count:
            accepted = f"1 to {count - 1:,} training images of {self.source}"
            raise InputError(f"val_size must select {accepted}, got {self.val_size}")
        if not self.stratify:
            return torch.arange(count - size), torch.arange(count - size, count)
        from sklearn.model_selection import train_test_split

        classes, counts = np.unique(labels.numpy(), return_counts=True)
        if min(size, count - size) < len(classes) or counts.min() < 2:
            raise InputError(
                f"stratify needs at least one training and one validation image of each class: val_size must select "
                f"{len(classes)} to {count - len(classes):,} of the {count:,} images of {self.source}, at least 2 of "
                f"each class, got val_size {self.val_size} and a class of {counts.min()}"
            )
        train, val = train_test_split(
            np.arange(count), test_size=size, stratify=labels.numpy(), random_state=mixed_seed(self.seed)
        )
        return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(val))

    def _split_fold(self, labels: NDArray[np.int64], number: int, folds: int) -> tuple[Tensor, Tensor]:
        """Indices of the training images and of the validation images of a fold, counted from 1."""
        from sklearn.model_selection import StratifiedKFold

        smallest = np.unique(labels, return_counts=True)[1].min()
        if folds > smallest:
            accepted = f"a K of at most {smallest}, the size of the smallest class of {self.source}"
            raise InputError(f"fold must have {accepted}, got {self.fold}")
        splits = StratifiedKFold(folds, shuffle=True, random_state=mixed_seed(self.seed)).split(labels, labels)
        train, val = next(islice(splits, number - 1, None))
        return torch.from_numpy(train), torch.from_numpy(val)

    def images_and_labels(self, split: str) -> tuple[Tensor, Tensor]:
        """Returns a whole split as stored in memory: uint8 [N, 28, 28] and int64 [N]. Call `setup` first.

        Args:
            split: `train`, `val` or `test`.
        """
        return self._splits[split]

    def batches(self, split: str, device: torch.device | str = "cpu") -> Iterator[Any]:
        """Yields all batches of a split for evaluation: in order, without augmentation, not sharded across processes.

        Args:
            split: `train`, `val` or `test`.
            device: Device to move the batches to.
        """
        dataset = self._dataset(split, augmented=False)
        for part in torch.split(torch.arange(len(dataset)), self._evaluation_batch_size):
            batch = self.transfer_batch_to_device(dataset.__getitems__(part.tolist()), torch.device(device), 0)
            yield self.on_after_batch_transfer(batch, 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scales a batch to [0, 1] and augments training batches, on the device of the batch.

        Args:
            batch: A `RawBatch`. Anything else, such as Lightning's example inputs, only gets the training's precision.
            dataloader_idx: Unused.

        Returns:
            `(images, labels)`: float [B, 1, 28, 28] and int64 [B]. `MNISTSuperpixelsDataModule` returns a PyG `Batch`.
        """
        return self._augmented(*batch) if isinstance(batch, RawBatch) else self._in_precision(batch)

    def _augmented(self, batch: Any, noise: Any) -> Any:
        """Prepares the content of a `RawBatch` for the model."""
        images, labels = batch
        images = images.unsqueeze(1).float().div_(255)
        if self.augment is not None and noise is not None:
            images = self.augment(images, noise)
        return self._in_precision(images), labels

    def _in_precision(self, values: Any) -> Any:
        """Converts floats to the precision of the training. Lightning does so too early: before images are scaled."""
        return values if self.trainer is None else self.trainer.precision_plugin.convert_input(values)

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches, reshuffled every epoch and sharded across processes, without a last batch of one image."""
        dataset = self._dataset("train", augmented=True)
        sampler = EpochSampler(dataset, *self._shard("train"), seed=mixed_seed(self.seed))
        if self.trainer is not None:  # when a training is resumed, workers start before Lightning sets the epoch
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        single = len(sampler) > 1 and len(sampler) % self.batch_size == 1  # batch norm fails on a single image
        return self._loader(dataset, sampler, self.batch_size, drop_last=single)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches, in order and sharded across processes without repeated images."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches, in order and sharded across processes without repeated images."""
        return self._evaluation_loader("test")

    predict_dataloader = test_dataloader

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        dataset = self._dataset(split, augmented=False)
        # Lightning's default DistributedSampler repeats images to give every process the same number.
        sampler = UnrepeatedDistributedSampler(dataset, *self._shard(split), shuffle=False)
        return self._loader(dataset, sampler, self._evaluation_batch_size)

    def _dataset(self, split: str, augmented: bool) -> Any:
        """Dataset of a split. Subclasses with other batches override this and `_augmented`."""
        return ImageBatches(*self._splits[split], self.augment if augmented else None, self.seed)

    def _shard(self, split: str) -> tuple[int, int]:
        """Number of processes and rank of this process. Each process needs an image."""
        processes, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        count = len(self._splits[split][1])
        if count < processes:
            needed = f"{processes} processes need {processes} or more {split} images"
            raise InputError(f"{needed}, but {self.source} has {count}; use fewer --trainer.devices")
        return processes, rank

    @property
    def _evaluation_batch_size(self) -> int:
        return 4 * self.batch_size

    def _loader(
        self, dataset: Any, sampler: DistributedSampler[int], batch_size: int, drop_last: bool = False
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=_identity,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # seeds the workers; the default would advance the generator used by dropout
        )
