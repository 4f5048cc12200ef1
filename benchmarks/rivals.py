"""Alternatives to the speedrun for `time_to_accuracy.py`: other people's recipes, and ours without the framework.

Each runs in its own process with as few imports as possible, and prints one JSON line: the seconds of training, without
the tests, and the test accuracy.

    python benchmarks/rivals.py official --seed 0
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

ROOT = Path(os.environ.get("MNIST_LIGHTNING_DATA", "data"))
Result = dict[str, float]


def official(seed: int) -> Result:
    """Trains PyTorch's example (github.com/pytorch/examples, mnist): Adadelta, batch size 64, one transform per image.

    It stops after the first epoch with 99 % test accuracy. The speedrun does not use the test images to decide when to
    stop.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train = DataLoader(torchvision.datasets.MNIST(ROOT, transform=transform), 64, shuffle=True)
    test = DataLoader(torchvision.datasets.MNIST(ROOT, train=False, transform=transform), 1000)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    epochs, seconds = 0, 0.0
    while epochs < 14:
        epochs += 1
        began = time.perf_counter()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - began
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test)
        if right >= 9_900:
            break
    return {"seconds": seconds, "accuracy": right / 10_000, "epochs": epochs}


def one_epoch(seed: int) -> Result:
    """Trains the published one-epoch recipe (tuomaso, train_mnist_fast): Adam, one cycle, unshuffled, in 32 bits."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    (images, labels), (test_images, test_labels) = _whole(train=True), _whole(train=False)
    train, test = (_standardized(images), labels), (_standardized(test_images), test_labels)
    batches = torch.arange(len(labels)).split(256)
    return _one_cycle(model, train, test, batches, lr=0.01, precision=torch.float32)


def bare(seed: int) -> Result:
    """Trains the speedrun's recipe in a bare loop: same model, images, precision, batches and validation."""
    torch.manual_seed(seed)
    blocks = [nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU()]
    blocks += [nn.Conv2d(16, 48, 3), nn.MaxPool2d(2), nn.BatchNorm2d(48), nn.ReLU()]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(768, 128), nn.ReLU(), nn.Linear(128, 10))
    model.to(memory_format=torch.channels_last)
    train, test = _whole(train=True), _whole(train=False)
    val = (train[0][55_000:], train[1][55_000:])
    batches = torch.randperm(55_000).split(256)[:130]
    prepare = partial(_standardized, crop=2)
    return _one_cycle(model, train, test, batches, 0.02, torch.bfloat16, smoothing=0.1, val=val, prepare=prepare)


def _one_cycle(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    batches: Sequence[Tensor],
    lr: float,
    precision: torch.dtype,
    smoothing: float = 0.0,
    val: tuple[Tensor, Tensor] | None = None,
    prepare: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008 - stateless
) -> Result:
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)

    def accuracy(images: Tensor, labels: Tensor) -> float:
        model.eval()
        with torch.inference_mode(), mixed:
            answers = torch.cat([model(prepare(part)).argmax(1) for part in images.split(256)])
        return float((answers == labels).float().mean())

    began = time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.7, 0.9), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches), cycle_momentum=False)
    images, labels = train
    for index in batches:
        with mixed:
            logits = model(prepare(images[index]))
        loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if val is not None:
        accuracy(*val)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "accuracy": accuracy(*test)}


def _standardized(images: Tensor, crop: int = 0) -> Tensor:
    """Converts uint8 [B, 28, 28] to float [B, 1, side, side], standardised."""
    kept = slice(crop, 28 - crop)
    return ((images.unsqueeze(1).float().div_(255) - 0.1307) / 0.3081)[..., kept, kept]


def _whole(train: bool) -> tuple[Tensor, Tensor]:
    """Reads all images, uint8 [N, 28, 28], and labels, int64 [N]."""
    dataset = torchvision.datasets.MNIST(ROOT, train=train)
    return dataset.data, dataset.targets


def stock(seed: int) -> Result:
    """Trains the speedrun's recipe as in Lightning's tutorials: one transform per image, metrics in each step."""
    import lightning as L
    import torchmetrics

    from mnist_lightning import CNN

    class Stock(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            shape = {"channels": [16, 48], "kernel_size": [5, 3], "padding": "valid", "crop": 2, "widths": [128]}
            self.net = CNN(batch_norm="pooled", **shape)
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            logits = self.net(batch[0]).float()
            loss = F.cross_entropy(logits, batch[1], label_smoothing=0.1)
            self.accuracy(logits, batch[1])
            self.log_dict({"train/loss": loss, "train/acc": self.accuracy}, prog_bar=True)
            return loss

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.accuracy(self.net(batch[0]).float(), batch[1])
            self.log("test/acc", self.accuracy)

        def configure_optimizers(self) -> object:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.02, betas=(0.7, 0.9))
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps, cycle_momentum=False)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    L.seed_everything(seed, verbose=False)
    train = torchvision.datasets.MNIST(ROOT, transform=transforms.ToTensor())
    test = torchvision.datasets.MNIST(ROOT, train=False, transform=transforms.ToTensor())
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=130, precision="bf16-mixed", accelerator="cpu", enable_model_summary=False
    )
    model = Stock()
    began = time.perf_counter()
    trainer.fit(model, DataLoader(train, 256, shuffle=True))
    seconds = time.perf_counter() - began
    (result,) = trainer.test(model, DataLoader(test, 256), verbose=False)
    return {"seconds": seconds, "accuracy": result["test/acc"]}


RIVALS: dict[str, Callable[[int], Result]] = {
    "official": official,
    "one_epoch": one_epoch,
    "bare": bare,
    "stock": stock,
}


def main() -> None:
    """Trains one alternative."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(RIVALS[arguments.rival](arguments.seed)))


if __name__ == "__main__":
    main()
