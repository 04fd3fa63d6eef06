"use strict";
// The page of tools/playground.py. Masks are rows of 0 and 1 (hidden) on the patch grid of the first model that is ticked.

const element = id => document.getElementById(id);
const canvas = element("canvas"), context = canvas.getContext("2d");
const WIDTH = 448;  // of the canvas, about, in pixels
let models = [], image = null, mask = [], seed = 0;
let picture = new Image();

function make(tag, parent, properties = {}) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

async function ask(name, body) {
  const response = await fetch(name, body === undefined ? {} : { method: "POST", body });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function attempt(action) {
  element("problem").textContent = "";
  try { await action(); } catch (error) { element("problem").textContent = error.message; }
}

// ---- models and images --------------------------------------------------------------------------------------------

const ticked = () => models.filter(model => model.box.checked);
const first = () => ticked()[0] || models[0];

function addModel(model, index) {
  const card = make("article", element("right")), label = make("label", make("h2", card));
  model.box = make("input", label, { type: "checkbox", checked: index < 4, onchange: () => attempt(changeModels) });
  label.append(` ${model.name} `);
  make("small", label, { textContent: model.about });
  model.numbers = make("p", card, { className: "numbers" });
  model.columns = make("div", card, { className: "columns" });
  models.push({ ...model, index });
}

async function changeModels() {
  const of = first(), unit = element("unit").value, kind = element("kind").value;
  fill(element("kind"), of.kinds, kind, of.kind);
  fill(element("unit"), of.units, +unit, of.unit);
  const scale = Math.max(1, Math.floor(WIDTH / of.size[1]));
  [canvas.height, canvas.width] = of.size.map(side => side * scale);
  if (image !== null) await showImage();
  if (mask.length !== of.grid[0] || mask[0].length !== of.grid[1]) await drawMask();
  else changed();
}

function fill(select, values, ...wishes) {
  select.replaceChildren(...values.map(value => new Option(value)));
  select.value = [...wishes, values[0]].find(value => values.includes(value));
}

function addImage({ id, name }) {
  const button = make("button", element("images"), { title: name, role: "option" });
  make("img", button, { src: `image?image=${id}&model=0`, alt: name, loading: "lazy" });
  button.onclick = () => attempt(() => chooseImage(id, button));
  return () => chooseImage(id, button);
}

async function chooseImage(id, button) {
  for (const other of element("images").children) other.ariaSelected = other === button;
  image = id;
  await showImage();
  changed();
}

async function showImage() {
  const next = Object.assign(new Image(), { src: `image?image=${image}&model=${first().index}` });
  picture = next;
  await next.decode().catch(() => {});  // one that can't be read: the cards of the models say why
  paint();
}

async function upload(files) {
  for (const file of files) {
    const choose = addImage(await ask(`upload?name=${encodeURIComponent(file.name)}`, file));
    await choose();
  }
}

// ---- the mask -----------------------------------------------------------------------------------------------------

let draws = 0;  // masks that were asked for, and edits

async function drawMask() {
  element("percent").textContent = `${element("ratio").value} %`;
  const draw = ++draws, answer = await ask("draw", JSON.stringify({
    model: first().index, kind: element("kind").value, unit: +element("unit").value,
    ratio: element("ratio").value / 100, seed,
  }));
  if (draw !== draws) return;  // it was asked for another since, or the mask was edited
  mask = answer.mask;
  changed();
}

function editMask(edit) {
  draws++;
  mask = mask.map(row => row.map(edit));
  changed();
}

function paint() {
  const { width, height } = canvas, [rows, columns] = first().grid;
  const across = width / columns, down = height / rows;
  context.imageSmoothingEnabled = false;  // whole pixels, as everywhere on the page
  context.clearRect(0, 0, width, height);
  if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, width, height);
  context.fillStyle = "rgba(128, 128, 128, 0.88)";
  mask.forEach((row, y) => row.forEach((hidden, x) => {
    if (hidden) context.fillRect(x * across, y * down, across, down);
  }));
  const unit = +element("unit").value / first().size[1] * width;
  context.strokeStyle = "rgba(255, 255, 255, 0.35)";
  context.beginPath();
  for (let x = unit; x < width; x += unit) { context.moveTo(x, 0); context.lineTo(x, height); }
  for (let y = unit; y < height; y += unit) { context.moveTo(0, y); context.lineTo(width, y); }
  context.stroke();
}

// A unit lies under [x, y], which are shares of the canvas: its cells as [row, column].
function unitAt([x, y]) {
  const { size, grid } = first(), side = +element("unit").value * grid[0] / size[0];
  const top = Math.floor(y * grid[0] / side) * side, left = Math.floor(x * grid[1] / side) * side;
  const cells = [];
  for (let row = top; row < Math.min(top + side, grid[0]); row++)
    for (let column = left; column < Math.min(left + side, grid[1]); column++) cells.push([row, column]);
  return cells;
}

function placeOf(event) {
  const box = canvas.getBoundingClientRect();
  const share = (value, from, length) => Math.min(Math.max((value - from) / length, 0), 1 - 1e-6);
  return [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
}

let stroke = null;  // {value, place}: what a pointer that is down makes of units, and where it was last

function extendStroke(event) {
  const to = placeOf(event), from = stroke.place, steps = 2 * Math.max(...first().grid);
  const count = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * steps));
  for (let i = 0; i <= count; i++)  // events are rarer than units that a fast pointer crosses
    for (const [row, column] of unitAt(from.map((value, axis) => value + (to[axis] - value) * i / count)))
      mask[row][column] = stroke.value;
  stroke.place = to;
  changed();
}

canvas.onpointerdown = event => {
  if (!mask.length) return;
  canvas.setPointerCapture(event.pointerId);
  draws++;
  const place = placeOf(event);
  stroke = { place, value: unitAt(place).every(([row, column]) => mask[row][column]) ? 0 : 1 };
  extendStroke(event);
};
canvas.onpointermove = event => { if (stroke) extendStroke(event); };
canvas.onpointerup = canvas.onpointercancel = () => { stroke = null; };

function saveMask() {
  const sheet = Object.assign(document.createElement("canvas"), { width: mask[0].length, height: mask.length });
  const pen = sheet.getContext("2d");
  mask.forEach((row, y) => row.forEach((hidden, x) => {
    pen.fillStyle = hidden ? "white" : "black";
    pen.fillRect(x, y, 1, 1);
  }));
  Object.assign(document.createElement("a"), { href: sheet.toDataURL(), download: "mask.png" }).click();
}

// ---- reconstructions ----------------------------------------------------------------------------------------------

let wanted = 0, running = false;

// The mask or the image is another one. While models compute, only the newest is kept for later.
async function changed() {
  paint();
  wanted++;
  if (running || image === null) return;
  running = document.body.ariaBusy = true;
  for (let done = 0; done !== wanted;) {
    done = wanted;
    const request = { image, mask };
    for (const model of models) if (!model.box.checked) clear(model);
    for (const model of ticked()) await reconstruct(model, request);
  }
  running = document.body.ariaBusy = false;
}

async function reconstruct(model, request) {
  try {
    const seen = await ask("reconstruct", JSON.stringify({ model: model.index, ...request }));
    model.numbers.className = "numbers";
    model.numbers.textContent = seen.numbers;
    model.columns.replaceChildren();
    for (const [name, source] of seen.columns) {
      const figure = make("figure", model.columns);
      make("img", figure, { src: source, alt: name, className: model.size[1] < 128 ? "small" : "" });
      make("figcaption", figure, { textContent: name });
    }
  } catch (error) {
    clear(model);
    model.numbers.className = "problem";
    model.numbers.textContent = error.message;
  }
}

function clear(model) {
  model.numbers.textContent = "";
  model.columns.replaceChildren();
}

// ---- start --------------------------------------------------------------------------------------------------------

const redraw = () => attempt(drawMask);
element("draw").onclick = () => { seed++; redraw(); };
element("kind").onchange = element("unit").onchange = element("ratio").oninput = redraw;
element("invert").onclick = () => editMask(hidden => 1 - hidden);
element("clear").onclick = () => editMask(() => 0);
element("save").onclick = saveMask;
element("files").onchange = event => attempt(() => upload(event.target.files));
document.ondragover = event => { event.preventDefault(); document.body.classList.add("over"); };
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = event => {
  event.preventDefault();
  document.body.classList.remove("over");
  attempt(() => upload(event.dataTransfer.files));
};

attempt(async () => {
  const state = await ask("state");
  state.models.forEach(addModel);
  element("ratio").value = Math.round(first().ratio * 100);
  const choices = state.images.map(addImage);
  await changeModels();
  if (choices.length) await choices[0]();
});
