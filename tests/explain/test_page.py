"""The page in a real browser: no request leaves, nothing fails, hover and sliders work."""

from collections.abc import Callable
from typing import Any

import pytest

from mnist_lightning import GNN, MNISTDataModule
from mnist_lightning.explain.connectivity import connectivity
from mnist_lightning.explain.page import connectivity_page

# What a visitor does; what went wrong and what was seen lands in the body, which the browser dumps.
VISITOR = """
const problems = [], seen = {};
window.onerror = message => { problems.push(message); };
addEventListener("DOMContentLoaded", () => {
  const count = selector => document.querySelectorAll(selector).length;
  const slide = (id, value) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("input"));
  };
  const colours = () => [...document.querySelectorAll("#graph circle")].map(c => c.getAttribute("fill")).join();
  seen.nodes = count("#graph circle");
  seen.panels = count("#panels svg");
  const before = colours();
  slide("layer", 2);
  seen.layer = document.getElementById("layer-name").textContent;
  seen.recoloured = colours() !== before;
  slide("share", 50);
  seen.edges = count("#graph line.edge");
  slide("share", 0);
  seen.none = count("#graph line.edge");
  const node = document.querySelector("#superpixels [data-node='11']");
  node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
  seen.marks = count(".mark");
  seen.node = document.getElementById("node").textContent;
  document.getElementById("superpixels").dispatchEvent(new PointerEvent("pointerleave"));
  seen.left = count(".mark");
  document.querySelectorAll("#classes button")[4].click();
  seen.evidence = document.querySelector("figure:last-child h2").textContent;
  document.querySelectorAll("#digits button")[1].click();
  seen.second = document.getElementById("subtitle").textContent;
  document.body.replaceChildren();
  document.body.append(JSON.stringify({ problems, seen }));
});
"""


@pytest.mark.slow
def test_a_visit(digits: MNISTDataModule, visit: Callable[[str, str], Any]) -> None:
    images, labels = digits.images_and_labels("test")
    model = GNN(width=8, depth=2).eval()
    found = [connectivity(model, images[i], int(labels[i])) for i in (7, 8)]
    visited = visit(connectivity_page(found, ["the first", "the second"], "GNN"), VISITOR)
    assert visited["problems"] == []
    seen = visited["seen"]
    edges = len(found[0].edge_importance)
    assert seen["nodes"] == len(found[0].x)
    assert seen["panels"] == 4
    assert seen["layer"] == "after round 2 of 2"
    assert seen["recoloured"]
    assert (seen["edges"], seen["none"]) == (round(edges / 2), 0)
    assert (seen["marks"], seen["left"]) == (3, 0)
    assert "Superpixel 11" in seen["node"]
    assert f"{found[0].x[11, 1] * 784:.0f} pixels" in seen["node"]
    assert seen["evidence"] == "Evidence for 4"
    assert seen["second"].startswith("the second")
