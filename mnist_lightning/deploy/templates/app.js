// Gradio's own sketch pad and image field store uploads as files, and its events store values in the session. This script
// sends a data URL to a server function and shows the HTML that it returns, so that nothing is stored.
const find = selector => element.querySelector(selector);
const canvas = find("canvas"), pen = canvas.getContext("2d"), side = canvas.width, file = find("input");
const answers = find(".answers"), hint = answers.innerHTML;
let strokes = [], photo = null, pointer = null, latest = 0;

function draw() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, side, side);
  if (photo) {
    const scale = side / Math.max(photo.width, photo.height);
    const [width, height] = [photo.width * scale, photo.height * scale];
    pen.drawImage(photo, (side - width) / 2, (side - height) / 2, width, height);
  }
  Object.assign(pen, { lineWidth: side / 14, lineCap: "round", lineJoin: "round", strokeStyle: "#111" });
  for (const stroke of strokes) {
    pen.beginPath();
    for (const point of [stroke[0], ...stroke]) pen.lineTo(...point);  // a line to its own start draws a dot
    pen.stroke();
  }
}

function copy(picture, width, height, margin = 0) {
  const result = document.createElement("canvas"), context = result.getContext("2d");
  [result.width, result.height] = [width + 2 * margin, height + 2 * margin];
  if (margin) {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, result.width, result.height);
  }
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, margin, margin, width, height);
  return result;
}

async function classify(picture) {
  const request = ++latest;
  answers.ariaBusy = true;
  const html = picture ? await server.answer(picture) : hint;
  if (request !== latest) return;  // a newer request is on its way
  const failure = "No answer: the server has stopped, or its terminal shows an error.";
  answers.innerHTML = html ?? `<p class="problem" role="alert">${failure}</p>`;
  answers.ariaBusy = false;
}

function reset(picture = null) {
  [strokes, photo, pointer] = [[], picture, null];
  draw();
}

// The margin keeps strokes off the picture's edge: parts cut off by the edge are dropped as background.
const classifyDrawing = () => classify(strokes.length ? copy(canvas, side, side, side / 14).toDataURL() : "");

async function load(blob) {
  if (!blob) return;
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await picture.decode();
    // Shrinking saves upload time, and re-encoding removes metadata such as the location.
    const { naturalWidth, naturalHeight } = picture, scale = Math.min(1, 1024 / Math.max(naturalWidth, naturalHeight));
    reset(copy(picture, ...[naturalWidth, naturalHeight].map(size => Math.max(1, Math.round(size * scale)))));
    classify(photo.toDataURL());
  } catch {
    reset();
    classify(blob.name || "the pasted file");  // the server answers with an error message
  } finally {
    URL.revokeObjectURL(picture.src);
  }
}

function undo() {
  [strokes, photo] = [strokes.slice(0, -1), null];
  draw();
  classifyDrawing();
}

function position(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * side / box.width, (event.clientY - box.top) * side / box.height];
}

canvas.addEventListener("pointerdown", event => {
  if (pointer !== null || event.button > 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  if (photo) reset();
  pointer = event.pointerId;
  strokes.push([position(event)]);
  draw();
});
canvas.addEventListener("pointermove", event => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  strokes.at(-1).push(...(events.length ? events : [event]).map(position));
  draw();
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => {
  if (event.pointerId !== pointer) return;
  pointer = null;
  classifyDrawing();
});
const tools = { undo, clear: () => { reset(); classify(""); }, photo: () => file.click() };
for (const button of element.querySelectorAll("button")) button.onclick = tools[button.dataset.tool];
file.onchange = () => { load(file.files[0]); file.value = ""; };
document.addEventListener("keydown", event => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { event.preventDefault(); undo(); }
});
document.addEventListener("paste", event => load(event.clipboardData.files[0]));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => { event.preventDefault(); load(event.dataTransfer.files[0]); });
draw();
