"""The page in a real browser: no request leaves, nothing fails, hover and sliders work."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mnist_lightning import GNN, MNISTDataModule
from mnist_lightning.explain.connectivity import connectivity
from mnist_lightning.explain.page import connectivity_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What a visitor does; what went wrong and what was seen lands in the body, which the browser dumps.
VISITOR = """
<script>
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
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_visit(digits: MNISTDataModule) -> None:
    images, labels = digits.images_and_labels("test")
    model = GNN(width=8, depth=2).eval()
    found = [connectivity(model, images[i], int(labels[i])) for i in (7, 8)]
    page = connectivity_page(found, ["the first", "the second"], "GNN")
    Path("page.html").write_text(page.replace("<head>", "<head>" + VISITOR))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *options, Path("page.html").resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    visit = json.loads(re.findall(r"<body>(.*?)</body>", done.stdout, re.S)[0].replace("&nbsp;", " "))
    assert visit["problems"] == []
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = visit["seen"]
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
