"""The verb `explore`: a report on a data set."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_lightning.evaluation.page import Picture, Table, picture, render, report_folder
from mnist_lightning.files import write_whole

if TYPE_CHECKING:  # `explore --help` answers before torch is imported
    from torch import Tensor

    from mnist_lightning.evaluation.explore.exploration import Exploration


def explore_data(source: str = "mnist", root: str | None = None, output: str = "data-report") -> Path:
    """Describes a data set: classes, intensities, sizes, neighbours, outliers, suspicious labels.

    Args:
        source: Name of the data source: mnist, fashion_mnist, kmnist, qmnist, emnist_digits, digits or folder:PATH.
            It is downloaded if it is not on disk.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.
        output: Folder of the report: index.html and the figures as PNG files.

    Returns:
        The page.

    Raises:
        InputError: If the source is neither on disk nor downloadable, or is damaged, or the output folder holds other
            files.
    """
    from mnist_lightning.data.sources import fetch, read
    from mnist_lightning.evaluation.explore.exploration import explore
    from mnist_lightning.evaluation.explore.figures import draw_all

    folder = report_folder(output)
    fetch(source, root)
    exploration = explore(read(source, root, train=True), read(source, root, train=False))
    folder.mkdir(parents=True, exist_ok=True)
    duplicates = exploration.duplicates()
    pictures: list[Picture] = []
    page = partial(
        render,
        "evaluation/templates/explore.html",
        source=source,
        exploration=exploration,
        table=_table(exploration),
        duplicates=[f"{exploration.name(first)} = {exploration.name(second)}" for first, second in duplicates],
        leaked=sum(first < exploration.train <= second for first, second in duplicates),
        centre=exploration.centres.nanmean(dim=0).tolist(),  # black images have no centre
        black=float((exploration.images == 0).float().mean()),
        pictures=pictures,
    )
    write_whole(folder / "index.html", page())  # a figure that fails costs no table
    pictures += [picture(figure, caption, folder / f"{name}.png") for name, figure, caption in draw_all(exploration)]
    write_whole(folder / "index.html", page())
    return folder / "index.html"


def _table(exploration: "Exploration") -> Table:
    """Makes a table of the classes: one column per class and one for all."""

    def by_class(values: "Tensor", form: str) -> list[str]:
        parts = [values[exploration.labels == digit] for digit in range(10)]
        return [format(float(part.mean()), form) if len(part) else "?" for part in (*parts, values)]

    rows = []
    for name, train in (("training", True), ("test", False)):
        counts = exploration.counts(train)
        rows.append([name, *(f"{count:,}" for count in (*counts, sum(counts)))])
    height, width = exploration.boxes.float().t()
    variability = (exploration.deviations / 255).square().sum(dim=(1, 2)).sqrt()  # distance from the mean image
    rows += [
        ["mean intensity", *by_class(exploration.intensity, ".3f")],
        ["height", *by_class(height, ".1f")],
        ["width", *by_class(width, ".1f")],
        ["variability", *(f"{value:.2f}" for value in (*variability, variability.mean()))],
    ]
    return Table("Classes", ["", *map(str, range(10)), "all"], rows)
