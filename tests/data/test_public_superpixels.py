"""Uses a generated file in the format of PyG's public graphs, because tests cannot download the original."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.datasets import MNISTSuperpixels

from mnist_lightning import MNISTSuperpixelsDataModule
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.data.superpixels import superpixel_graphs
from mnist_lightning.errors import InputError, SourceUnavailableError

ROOT = Path("root")
RAW = ROOT / "MNISTSuperpixels" / "raw" / "MNISTSuperpixels.pt"


def public_part(images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """Graphs in the format of PyG's file: positions (x, y) in pixels, any number of edges in any order."""
    part = []
    for image, label in zip(images, labels, strict=True):
        graph = superpixel_graphs(image[None])
        keep = torch.randperm(graph.edges.shape[1])[:500]
        part.append(
            {
                "x": graph.x[:, :1],
                "edge_index": graph.edges[:, keep].long(),
                "pos": graph.pos.flip(1) * 28 - 0.5,
                "y": label.view(1),
            }
        )
    return part


@pytest.fixture
def parts() -> list[list[dict[str, Tensor]]]:
    images, labels = read("digits", train=True)
    parts = [public_part(images[:40], labels[:40]), public_part(images[40:50], labels[40:50])]
    RAW.parent.mkdir(parents=True)
    torch.save(parts, RAW)
    return parts


def module(**options: Any) -> MNISTSuperpixelsDataModule:
    data = MNISTSuperpixelsDataModule(source="mnist_superpixels", root=str(ROOT), batch_size=16, val_size=8, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_graphs_match_those_read_by_pyg(parts: list[list[dict[str, Tensor]]]) -> None:
    theirs = MNISTSuperpixels(str(ROOT / "MNISTSuperpixels"), train=False)
    ours = next(module().batches("test")).to_data_list()
    assert len(ours) == len(theirs) == 10
    for mine, yours in zip(ours, theirs, strict=True):
        assert torch.equal(mine.x[:, :1], yours.x)
        torch.testing.assert_close(mine.pos, (yours.pos.flip(1) + 0.5) / 28)
        assert int(mine.y) == int(yours.y)
        assert sorted(mine.edge_index.t().tolist()) == sorted(yours.edge_index.t().tolist())
        assert mine.edge_index[1].equal(mine.edge_index[1].sort().values)


def test_rendered_images_resemble_the_digits(parts: list[list[dict[str, Tensor]]]) -> None:
    data = module()
    images = data.images_and_labels("train")[0]
    assert [len(data.images_and_labels(split)[1]) for split in ("train", "val", "test")] == [32, 8, 10]
    real = read("digits", train=True)[0][:32]
    assert torch.corrcoef(torch.stack([images.flatten(), real.flatten()]).float())[0, 1] > 0.85


@pytest.mark.slow
def test_train_a_gnn(parts: list[list[dict[str, Tensor]]], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.source=mnist_superpixels", f"--data.root={ROOT}", "--data.val_size=8", "--data.batch_size=16"]
    options += ["--data.copies=0", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config=gnn", *options])
    assert "GNN on mnist_superpixels" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"features": "moments"}, {"copies": 2}])
def test_public_graphs_have_no_images(parts: list[list[dict[str, Tensor]]], options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"mnist_superpixels has no images, so it needs features plain and copies 0"):
        module(**options)
    assert len(module(features="plain", copies=0).graphs) == 50


def test_missing_file() -> None:
    with pytest.raises(
        SourceUnavailableError, match=r"mnist_superpixels needs root/.*MNISTSuperpixels.pt; download it with torch_geom"
    ):
        module()
    with pytest.warns(UserWarning, match="TRAINING ON `digits`, NOT ON `mnist_superpixels`"):
        assert module(fallback="digits").source == "digits"


def test_damaged_file() -> None:
    RAW.parent.mkdir(parents=True)
    RAW.write_bytes(b"no graphs")
    with pytest.raises(InputError, match=r"MNISTSuperpixels.pt is not PyG's MNISTSuperpixels file, or is damaged"):
        module()
