"""The connectivity page in a real browser, without a network."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from mnist_lightning import GNN, MNISTDataModule
from mnist_lightning.explain.connectivity import connectivity
from mnist_lightning.explain.page import connectivity_page

# Uses the page, then replaces its body by a JSON report, which the browser dumps.
SCRIPT = """
const problems = [], report = {};
window.onerror = message => { problems.push(message); };
window.alert = message => { problems.push(`alert: ${message}`); };
addEventListener("DOMContentLoaded", () => {
  const count = selector => document.querySelectorAll(selector).length;
  const slide = (id, value) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("input"));
  };
  const colours = () => [...document.querySelectorAll("#graph circle")].map(c => c.getAttribute("fill")).join();
  report.nodes = count("#graph circle");
  report.panels = count("#panels svg");
  const before = colours();
  slide("layer", 2);
  report.layer = document.getElementById("layer-name").textContent;
  report.recoloured = colours() !== before;
  slide("share", 50);
  report.edges = count("#graph line.edge");
  slide("share", 0);
  report.none = count("#graph line.edge");
  const node = document.querySelector("#superpixels [data-node='11']");
  node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
  report.marks = count(".mark");
  report.node = document.getElementById("node").textContent;
  document.getElementById("superpixels").dispatchEvent(new PointerEvent("pointerleave"));
  report.marks_after = count(".mark");
  document.querySelectorAll("#classes button")[4].click();
  report.evidence = document.querySelector("figure:last-child h2").textContent;
  const second = document.querySelectorAll("#digits button")[1];
  report.button = second.title;
  second.click();
  report.subtitle = document.getElementById("subtitle").textContent;
  report.elements = count("body script, body img");
  document.body.replaceChildren();
  const code = character => "\\\\u00" + character.charCodeAt(0).toString(16);  // the dump escapes these for HTML
  document.body.append(JSON.stringify({ problems, report }).replace(/[<>&]/g, code));
});
"""
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<script>"


@pytest.mark.slow
def test_page_in_a_browser(digits: MNISTDataModule, visit: Callable[[str, str], Any]) -> None:
    images, labels = digits.images_and_labels("test")
    model = GNN(width=8, depth=2).eval()
    explanations = [connectivity(model, images[i], int(labels[i])) for i in (7, 8)]
    page = connectivity_page(explanations, ["the first", f"the second {ATTACK}"], f"GNN {ATTACK}")
    visited = visit(page, SCRIPT)
    assert visited["problems"] == []
    report = visited["report"]
    edges = len(explanations[0].edge_importance)
    assert report["nodes"] == len(explanations[0].x)
    assert report["panels"] == 4
    assert report["layer"] == "after layer 2 of 2"
    assert report["recoloured"]
    assert (report["edges"], report["none"]) == (round(edges / 2), 0)
    assert (report["marks"], report["marks_after"]) == (3, 0)
    assert "Superpixel 11" in report["node"]
    assert f"{explanations[0].x[11, 1] * 784:.0f} pixels" in report["node"]
    assert report["evidence"] == "Evidence for 4"
    # Names with HTML are shown as text.
    assert report["button"] == f"the second {ATTACK}"
    assert report["subtitle"].startswith(f"the second {ATTACK}: predicted ")
    assert f"Model: GNN {ATTACK}." in report["subtitle"]
    assert report["elements"] == 2  # the page's own data and script


def test_names_with_html_stay_data(digits: MNISTDataModule) -> None:
    explanation = connectivity(GNN(width=8, depth=1).eval(), digits.images_and_labels("test")[0][7])
    plain, attacked = (connectivity_page([explanation], [name], name) for name in ("seven", ATTACK))
    assert plain.count("<") == attacked.count("<")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', attacked, re.S)
    content = json.loads(data)
    assert content["digits"][0]["name"] == content["model"] == ATTACK
