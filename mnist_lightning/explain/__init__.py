"""Explains predictions: superpixels and edges of a GNN, saliency maps of image models."""

from typing import Literal

# Here because the command line reads the verbs' annotations before torch is imported.
Method = Literal["gradient", "occlusion", "gnn_explainer", "attention"]
