"""`mnist-lightning connectivity`: from a checkpoint and some digits to a page or a picture."""

from io import BytesIO
from pathlib import Path

from mnist_lightning.checkpoint import load
from mnist_lightning.errors import InputError
from mnist_lightning.explain.connectivity import Method, connectivity
from mnist_lightning.explain.digits import digits_asked_for
from mnist_lightning.explain.drawings import connectivity_sheet
from mnist_lightning.explain.page import connectivity_page
from mnist_lightning.files import writable, write_whole
from mnist_lightning.models.gnn import GNN


def write_connectivity(
    checkpoint: str,
    index: int | None = None,
    indices: str | None = None,
    image: str | None = None,
    output: str = "connectivity.html",
    method: Method = "gradient",
    target: int | None = None,
    source: str | None = None,
    root: str | None = None,
) -> Path:
    """Shows through which superpixels and edges a GNN recognises digits.

    Without `index`, `indices` and `image` it shows the first test digit of each class.

    Args:
        checkpoint: A checkpoint of a GNN, or a run's folder, whose best checkpoint is taken.
        index: Number of a test image.
        indices: Numbers of several, as in 0,7,42.
        image: A picture of a digit of your own, in its place.
        output: File to write: an interactive page (.html), or a picture (.png, .svg, .pdf).
        method: How the edges' importance is found: the logit's gradient, its fall without the edge (occlusion), PyG's
            GNNExplainer, or the attention of a GNN that has some.
        target: Class that the edges' importance is about; by default the predicted one.
        source: Where the test images come from; by default what the run was trained on.
        root: Folder of the data; by default $MNIST_LIGHTNING_DATA, else `data`.

    Returns:
        The file that was written.

    Raises:
        InputError: If a file or an argument cannot be used.
    """
    path = writable(output, [".html", ".png", ".svg", ".pdf"])
    model = load(checkpoint)
    if not isinstance(model, GNN):
        raise InputError(f"{checkpoint} holds a {type(model).__name__}; connectivity explains a GNN")
    digits = digits_asked_for(checkpoint, index, indices, image, source, root)
    found = [connectivity(model, picture, label, target, method) for _, picture, label in digits]
    if path.suffix == ".html":
        names = [name for name, _, _ in digits]
        write_whole(path, connectivity_page(found, names, str(Path(checkpoint))).encode())
    else:
        content = BytesIO()
        connectivity_sheet(found).savefig(content, format=path.suffix[1:], dpi=110)
        write_whole(path, content.getvalue())
    return path
