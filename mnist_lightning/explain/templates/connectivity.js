"use strict";
const all = JSON.parse(document.getElementById("data").textContent);
const state = { digit: 0, chosen: 0, node: null, pinned: null, layer: 0, component: 0, share: 25 };
const $ = id => document.getElementById(id);
const CIVIDIS = [[0,34,78],[42,63,108],[87,92,109],[124,123,120],[165,156,116],[210,192,96],[254,232,56]];
const EVIDENCE = [[179,88,6],[241,163,64],[254,224,182],[247,247,247],[189,215,238],[92,155,205],[22,84,150]];

function mix(ramp, t) {  // t in [0, 1]
  const place = Math.min(Math.max(t, 0), 1) * (ramp.length - 1);
  const low = Math.min(Math.floor(place), ramp.length - 2), part = place - low;
  return `rgb(${ramp[low].map((v, i) => Math.round(v + (ramp[low + 1][i] - v) * part)).join()})`;
}
const grey = t => `rgb(${Array(3).fill(Math.round(255 * t)).join()})`;
const cssRamp = ramp => `linear-gradient(90deg, ${ramp.map(c => `rgb(${c.join()})`).join()})`;
const signed = (v, n = 2) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(n);

function svg(parent, name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

// Adds the pixels of each node as one path, and the borders between nodes as another.
function outline(digit) {
  if (digit.areas) return;
  digit.areas = digit.x.map(() => "");
  digit.borders = "";
  digit.segments.forEach((node, pixel) => {
    const row = Math.floor(pixel / 28), column = pixel % 28;
    digit.areas[node] += `M${column} ${row}h1v1h-1z`;
    if (column < 27 && digit.segments[pixel + 1] !== node) digit.borders += `M${column + 1} ${row}v1`;
    if (row < 27 && digit.segments[pixel + 28] !== node) digit.borders += `M${column} ${row + 1}h1`;
  });
  digit.order = digit.importance.map((_, e) => e).sort((a, b) => Math.abs(digit.importance[b]) - Math.abs(digit.importance[a]));
}

function pixels(parent, digit, opacity = 1) {
  const group = svg(parent, "g", { "shape-rendering": "crispEdges", opacity });
  svg(group, "rect", { width: 28, height: 28, fill: "#000" });
  digit.image.forEach((value, pixel) => {
    if (value) svg(group, "rect", { x: pixel % 28, y: Math.floor(pixel / 28), width: 1, height: 1, fill: grey(value / 255) });
  });
}

function areas(parent, digit, fill) {
  const group = svg(parent, "g", { "shape-rendering": "crispEdges" });
  digit.areas.forEach((path, node) => svg(group, "path", { d: path, fill: fill(node), "data-node": node }));
}

function borders(parent, digit, colour) {
  svg(parent, "path", { d: digit.borders, stroke: colour, "stroke-width": .08, fill: "none", "pointer-events": "none" });
}

function mark(parent, digit) {
  if (state.node === null) return;
  const inside = new Set();
  digit.segments.forEach((node, pixel) => { if (node === state.node) inside.add(pixel); });
  let path = "";
  for (const pixel of inside) {
    const row = Math.floor(pixel / 28), column = pixel % 28;
    if (row === 0 || !inside.has(pixel - 28)) path += `M${column} ${row}h1`;
    if (row === 27 || !inside.has(pixel + 28)) path += `M${column} ${row + 1}h1`;
    if (column === 0 || !inside.has(pixel - 1)) path += `M${column} ${row}v1`;
    if (column === 27 || !inside.has(pixel + 1)) path += `M${column + 1} ${row}v1`;
  }
  svg(parent, "path", { d: path, class: "mark", stroke: "var(--mark)", "stroke-width": .3, "stroke-linecap": "square", fill: "none", "pointer-events": "none" });
}

const neighbours = (digit, node) => digit.edges.map((edge, e) => [e, ...edge]).filter(edge => edge[2] === node);

function drawGraph(parent, digit) {
  pixels(parent, digit, .35);
  const largest = Math.max(...digit.importance.map(Math.abs)) || 1;
  const count = Math.round(digit.edges.length * state.share / 100);
  $("shown").textContent = `${count} of ${digit.edges.length}`;
  const line = (e, attributes) => {
    const [from, to] = digit.edges[e].map(node => digit.pos[node]);
    svg(parent, "line", { x1: from[1] * 28, y1: from[0] * 28, x2: to[1] * 28, y2: to[0] * 28, "stroke-linecap": "round", "pointer-events": "none", ...attributes });
  };
  for (const e of digit.order.slice(0, count).reverse()) {
    const strength = Math.abs(digit.importance[e]) / largest;
    line(e, { class: "edge", stroke: digit.importance[e] < 0 ? "var(--against)" : "var(--for)", "stroke-width": .06 + .34 * strength, opacity: .25 + .75 * strength });
  }
  if (state.node !== null) for (const [e] of neighbours(digit, state.node)) line(e, { stroke: "var(--mark)", "stroke-width": .12 });
  const colours = digit.embeddings[state.layer].map(components => components[state.component]);
  const low = Math.min(...colours), range = Math.max(...colours) - low || 1;
  digit.pos.forEach((place, node) => svg(parent, "circle", {
    cx: place[1] * 28, cy: place[0] * 28, r: node === state.node ? .75 : .5, "data-node": node,
    fill: mix(CIVIDIS, (colours[node] - low) / range),
    stroke: node === state.node ? "var(--mark)" : "#fff", "stroke-width": node === state.node ? .25 : .1 }));
}

// A class, its value as a bar and as text. Only numbers may enter this HTML: names are set by textContent.
function classRow(c, value, largest, text) {
  const half = 50 * Math.abs(value) / largest;
  return `<b>${c}</b><span class="bar"><i style="left:${value < 0 ? 50 - half : 50}%;width:${half}%;` +
    `background:var(--${value < 0 ? "against" : "for"})"></i></span><span>${text}</span>`;
}

function drawClasses(digit) {
  const largest = Math.max(...digit.logits.map(Math.abs)) || 1;
  $("classes").replaceChildren(...digit.logits.map((logit, c) => {
    const button = document.createElement("button");
    button.className = "class";
    button.setAttribute("aria-pressed", c === state.chosen);
    button.innerHTML = classRow(c, logit, largest, `${signed(logit, 1)} · ${(100 * digit.probabilities[c]).toFixed(1)} %`);
    button.onclick = () => { state.chosen = c; draw(); };
    return button;
  }));
}

function drawNode(digit) {
  const node = state.node;
  if (node === null) {
    $("node").innerHTML = `<p class="hint">Point at a superpixel to see its evidence for each class. Click it to keep it selected. Click a class to see the evidence for that class.</p>`;
    return;
  }
  const evidence = digit.evidence[node], largest = Math.max(...digit.evidence.flat().map(Math.abs)) || 1;
  $("node").innerHTML = `<h2>Superpixel ${node}</h2>` +
    `<p>${Math.round(digit.x[node][1] * 784)} pixels, mean intensity ${digit.x[node][0].toFixed(2)}, ` +
    `centre in row ${(digit.pos[node][0] * 28).toFixed(1)}, column ${(digit.pos[node][1] * 28).toFixed(1)}</p>` +
    evidence.map((value, c) => `<div class="class${c === state.chosen ? " current" : ""}">${classRow(c, value, largest, signed(value))}</div>`).join("") +
    `<p>Receives from ${neighbours(digit, node).map(([, from]) => from).join(", ")}</p>`;
}

function draw() {
  const digit = all.digits[state.digit];
  outline(digit);
  const predicted = digit.logits.indexOf(Math.max(...digit.logits));
  document.title = $("title").textContent = `Why ${predicted}?`;
  $("subtitle").textContent = `${digit.name}: predicted ${predicted} with ${(100 * digit.probabilities[predicted]).toFixed(1)} %` +
    (digit.label === null ? "" : digit.label === predicted ? ", correct" : `, but the label is ${digit.label}`) +
    `. ${digit.pos.length} superpixels, ${digit.edges.length} edges. Model: ${all.model}. Edge importance: ${all.method}.`;
  for (const element of document.querySelectorAll(".target")) element.textContent = digit.target;
  for (const element of document.querySelectorAll(".chosen")) element.textContent = state.chosen;
  $("layer").max = digit.embeddings.length - 1;
  $("layer-name").textContent = state.layer ? `after layer ${state.layer} of ${digit.embeddings.length - 1}` : "before message passing";
  for (const id of ["digit", "superpixels", "graph", "evidence"]) $(id).replaceChildren();
  pixels($("digit"), digit);
  areas($("digit"), digit, () => "transparent");
  borders($("digit"), digit, "#5aa9e6");
  areas($("superpixels"), digit, node => grey(digit.x[node][0]));
  borders($("superpixels"), digit, "#5aa9e6");
  drawGraph($("graph"), digit);
  const values = digit.evidence.map(row => row[state.chosen]), largest = Math.max(...values.map(Math.abs)) || 1;
  areas($("evidence"), digit, node => mix(EVIDENCE, .5 + .5 * values[node] / largest));
  borders($("evidence"), digit, "#0002");
  $("scale").textContent = largest.toFixed(2);
  for (const id of ["digit", "superpixels", "evidence"]) mark($(id), digit);
  drawClasses(digit);
  drawNode(digit);
  [...$("digits").children].forEach((button, d) => button.setAttribute("aria-pressed", d === state.digit));
}

function choose(d) {
  const { logits } = all.digits[d];
  Object.assign(state, { digit: d, node: null, pinned: null, chosen: logits.indexOf(Math.max(...logits)) });
  draw();
}

for (const id of ["digit", "superpixels", "graph", "evidence"]) {
  const nodeOf = event => event.target.dataset.node === undefined ? null : Number(event.target.dataset.node);
  const show = node => { if (node !== state.node) { state.node = node; draw(); } };
  $(id).addEventListener("pointermove", event => show(nodeOf(event) ?? state.pinned));
  $(id).addEventListener("pointerleave", () => show(state.pinned));
  $(id).addEventListener("click", () => { state.pinned = state.node === state.pinned ? null : state.node; });
}
$("share").oninput = event => { state.share = Number(event.target.value); draw(); };
$("layer").oninput = event => { state.layer = Number(event.target.value); draw(); };
$("component").oninput = event => { state.component = Number(event.target.value); draw(); };
all.digits[0].embeddings[0][0].forEach((_, c) => $("component").append(new Option(c + 1, c)));
$("ramp-embedding").style.background = cssRamp(CIVIDIS);
$("ramp-evidence").style.background = cssRamp(EVIDENCE);
if (all.digits.length > 1) all.digits.forEach((digit, d) => {
  const button = document.createElement("button");
  button.title = digit.name;
  pixels(svg(button, "svg", { viewBox: "0 0 28 28" }), digit);
  button.onclick = () => choose(d);
  $("digits").append(button);
});
choose(0);
