"""Table of a model's layers, at the start of a training."""

from typing import Any

from lightning.pytorch.callbacks import ModelSummary

from mnist_lightning.evaluation.page import Table, print_result


class LayerTable(ModelSummary):
    """Prints a row per layer and the number of parameters. Lightning's summary takes eight lines more."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *_: Any,
        **__: Any,
    ) -> None:
        """Prints the table."""
        columns = dict(summary_data)
        shown = {"layer": "Name", "class": "Type", "parameters": "Params", "output": "Out sizes"}
        header = [name for name, key in shown.items() if key in columns]
        rows = list(zip(*(columns[shown[name]] for name in header), strict=True))
        title = f"{total_parameters:,} parameters, {model_size:.1f} MB"
        if trainable_parameters < total_parameters:
            title += f", {trainable_parameters:,} of them are trained"
        print_result(Table(title, header, rows))
