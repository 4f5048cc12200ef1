"""What the page of `mnist-lightning app` is made of: a sheet to draw on, and what the models say."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

from PIL import Image
from torch import Tensor

HINT = '<p class="hint">The answer appears here when you lift the pen.</p>'

PAGE = f"""
<header>
  <h1>Which digit is it?</h1>
  <p>Draw one, or paste, drop or choose a photo of one. Nothing is kept.</p>
</header>
<main>
  <section>
    <canvas width="448" height="448" role="img" aria-label="Sheet to draw a digit on"></canvas>
    <div class="tools">
      <button type="button" data-tool="undo" title="Ctrl+Z">Undo</button>
      <button type="button" data-tool="clear">Clear</button>
      <button type="button" data-tool="photo">Photo</button>
      <input type="file" accept="image/*" hidden>
    </div>
  </section>
  <section class="answers" aria-live="polite">{HINT}</section>
</main>
"""

STYLE = """
--for: #2166ac; --against: #d95f02; --line: var(--border-color-primary);
--soft: color-mix(in srgb, currentColor 65%, transparent);
color: var(--body-text-color); line-height: 1.4;
h1, h2, p, figure { margin: 0; }
h1 { font-size: 1.6rem; font-weight: 650; }
header p, .hint, .note, figcaption { color: var(--soft); }
main { display: grid; grid-template: "sheet models" auto "seen models" 1fr / min(24rem, 40%) minmax(0, 1fr);
       gap: 1rem 1.5rem; margin-top: .8rem; }
@media (max-width: 46rem) { margin: 0 -2rem;  /* of what Gradio leaves blank on both sides */
                            main { grid-template: "sheet" "models" "seen" / minmax(0, 1fr); } }
canvas { display: block; width: 100%; aspect-ratio: 1; background: #fff; cursor: crosshair; touch-action: none;
         border: 1px solid var(--line); border-radius: .5rem; box-sizing: border-box; }
.tools { display: flex; gap: .5rem; margin-top: .5rem; }
button { flex: 1; padding: .6rem; font: inherit; color: inherit; background: var(--block-background-fill);
         border: 1px solid var(--line); border-radius: .5rem; cursor: pointer; }
button:hover { border-color: var(--soft); }
button:focus-visible { outline: 3px solid #d6007a; }
.answers { display: contents; }
.answers > * { grid-area: models; align-self: start; }
.answers[aria-busy=true] > * { opacity: .6; }
.problem { padding: .8rem 1rem; border-left: 4px solid var(--against); background: var(--block-background-fill); }
.answers > .seen { grid-area: seen; display: flex; gap: .8rem; align-items: center; }
.seen img { flex: none; width: 7rem; image-rendering: pixelated; }
.models { display: flex; flex-wrap: wrap; gap: .8rem; }
.model { flex: 1 1 min(10.5rem, 47%); max-width: 18rem; padding: .8rem; box-sizing: border-box;
         border: 1px solid var(--line); border-radius: .5rem; }
h2 { font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
.verdict { display: flex; align-items: center; gap: .6rem; margin-bottom: .4rem; line-height: 1.25; }
.verdict b { font-size: 3.2rem; font-weight: 650; }
.remark { display: block; min-height: 1.25em; color: var(--against); font-size: .9rem; }
.bar { display: grid; grid-template-columns: 1ch minmax(0, 1fr) 3.6em; gap: .4rem; align-items: center;
       font-size: .8rem; font-variant-numeric: tabular-nums; }
.bar i { height: .55rem; min-width: 1px; border-radius: .15rem; background: var(--for); }
.bar span { text-align: right; }
figure { margin: .8rem 0 .4rem; }
img { display: block; width: 100%; border-radius: .3rem; }
figcaption { margin-top: .3rem; }
figcaption, .note { font-size: .85rem; }
"""

# What Gradio's own editor and image field send stays on the server as a file, and what its events bring stays there
# with the session. This sheet asks with a data URL and is answered with HTML, and neither is left anywhere.
SCRIPT = """
const find = selector => element.querySelector(selector);
const sheet = find("canvas"), pen = sheet.getContext("2d"), side = sheet.width, file = find("input");
const answers = find(".answers"), blank = answers.innerHTML;
let strokes = [], photo = null, pointer = null, asked = 0;

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
    for (const place of [stroke[0], ...stroke]) pen.lineTo(...place);  // a line to where it starts makes a dot
    pen.stroke();
  }
}

function copy(picture, width, height, margin = 0) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [width + 2 * margin, height + 2 * margin];
  if (margin) {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, margin, margin, width, height);
  return canvas;
}

async function ask(value) {
  const mine = ++asked;
  answers.ariaBusy = true;
  const found = value ? await server.answer(value) : blank;
  if (mine !== asked) return;  // there is a newer question
  const none = "No answer: the server has ended, or says in its terminal what went wrong.";
  answers.innerHTML = found ?? `<p class="problem" role="alert">${none}</p>`;
  answers.ariaBusy = false;
}

function show(picture = null) {
  [strokes, photo, pointer] = [[], picture, null];
  draw();
}

// A drawing gets a margin: what runs out of a picture is taken for the table that a paper lies on.
const askDrawing = () => ask(strokes.length ? copy(sheet, side, side, side / 14).toDataURL() : "");

async function take(blob) {
  if (!blob) return;
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await picture.decode();
    // Of a large photo no more leaves the browser than is looked at, and nothing of what a camera notes beside it.
    const { naturalWidth, naturalHeight } = picture, scale = Math.min(1, 1024 / Math.max(naturalWidth, naturalHeight));
    show(copy(picture, ...[naturalWidth, naturalHeight].map(size => Math.max(1, Math.round(size * scale)))));
    ask(photo.toDataURL());
  } catch {
    show();
    ask(blob.name || "what was pasted");  // the server says what is wrong with it
  } finally {
    URL.revokeObjectURL(picture.src);
  }
}

function undo() {
  [strokes, photo] = [strokes.slice(0, -1), null];
  draw();
  askDrawing();
}

function place(event) {
  const box = sheet.getBoundingClientRect();
  return [(event.clientX - box.left) * side / box.width, (event.clientY - box.top) * side / box.height];
}

sheet.addEventListener("pointerdown", event => {
  if (pointer !== null || event.button > 0) return;
  event.preventDefault();
  sheet.setPointerCapture(event.pointerId);
  if (photo) show();
  pointer = event.pointerId;
  strokes.push([place(event)]);
  draw();
});
sheet.addEventListener("pointermove", event => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  strokes.at(-1).push(...(events.length ? events : [event]).map(place));
  draw();
});
for (const end of ["pointerup", "pointercancel"]) sheet.addEventListener(end, event => {
  if (event.pointerId !== pointer) return;
  pointer = null;
  askDrawing();
});
const tools = { undo, clear: () => { show(); ask(""); }, photo: () => file.click() };
for (const button of element.querySelectorAll("button")) button.onclick = tools[button.dataset.tool];
file.onchange = () => { take(file.files[0]); file.value = ""; };
document.addEventListener("keydown", event => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { event.preventDefault(); undo(); }
});
document.addEventListener("paste", event => take(event.clipboardData.files[0]));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => { event.preventDefault(); take(event.dataTransfer.files[0]); });
draw();
"""


@dataclass(frozen=True)
class Answer:
    """What one model says of one digit.

    Attributes:
        name: The model's.
        probabilities: float [10].
        milliseconds: That it took to find them.
        remark: Doubts, if there are any.
        why: A picture of why it says so, PNG, and its caption; None if there is none.
    """

    name: str
    probabilities: Tensor
    milliseconds: float
    remark: str
    why: tuple[bytes, str] | None


def answers_html(digit: Tensor, milliseconds: float, answers: Sequence[Answer]) -> str:
    """All models' answers side by side, and the digit as they see it.

    Args:
        digit: uint8 [28, 28].
        milliseconds: That it took to make it of the picture.
        answers: One a model.
    """
    content = BytesIO()
    Image.fromarray(digit.numpy()).save(content, "png")
    return (
        f'<div class="models">{"".join(map(_answer_html, answers))}</div>'
        f'<div class="seen"><img src="{_url(content.getvalue())}" alt="The digit in 28 x 28 pixels"><div>'
        f'<p>What the models see</p><p class="note">28 x 28 pixels, as in MNIST, made of the picture in '
        f"{milliseconds:.1f} ms</p></div></div>"
    )


def problem_html(message: str) -> str:
    """What is wrong with a picture, in place of answers."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def _answer_html(answer: Answer) -> str:
    shares = [100 * share for share in answer.probabilities.tolist()]
    best = int(answer.probabilities.argmax())
    bars = "".join(
        f'<div class="bar"><b>{digit}</b><i style="width:{share:.1f}%"></i><span>{share:.1f} %</span></div>'
        for digit, share in enumerate(shares)
    )
    figure = ""
    if answer.why is not None:
        picture, caption = answer.why
        figure = f'<figure><img src="{_url(picture)}" alt=""><figcaption>{caption}</figcaption></figure>'
    return (
        f'<section class="model"><h2>{escape(answer.name)}</h2>'
        f'<p class="verdict"><b>{best}</b><span>{shares[best]:.1f} %<i class="remark">{answer.remark}</i></span></p>'
        f'{bars}{figure}<p class="note">answered in {answer.milliseconds:.1f} ms</p></section>'
    )


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
