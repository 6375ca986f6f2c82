"use strict";
const MASKED = "rgb(124, 116, 104)"; // the mean colour, as in the images that maecli draws
const SCALE = 4; // canvas pixels for one of the image
const LARGEST = 64 * 2 ** 20; // bytes; the server takes no more
const at = (id) => document.getElementById(id);
const state = { image: null, rows: 0, columns: 0, order: [], masked: new Set(), seed: 2, asked: 0, busy: false };
state.place = 0; // the patch that keys mask or show
const picture = new Image();

async function ask(address, body) {
  const answer = await fetch(address, { method: "POST", body });
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.error);
  return document;
}

function say(text) {
  at("message").textContent = text;
}

async function take(file) {
  if (!file) return;
  if (file.size > LARGEST) return say(`${file.name} is larger than ${LARGEST / 2 ** 20} MiB`);
  say("");
  try {
    const given = await ask(`image?seed=${state.seed}`, file);
    Object.assign(state, given, { place: 0 });
    picture.src = at("original").src = given.original;
    await picture.decode();
    at("canvas").width = picture.width * SCALE;
    at("canvas").height = picture.height * SCALE;
    at("work").hidden = false;
    maskByRatio();
    if (!at("nearest").hidden) showSimilar(await ask(`similar?image=${given.image}`, ""));
  } catch (error) {
    say(error.message);
  }
}

function maskByRatio() {
  const kept = Math.max(1, Math.floor(state.order.length * (1 - Number(at("ratio").value)) + 1e-9));
  state.masked = new Set(state.order.slice(kept));
  update();
}

function draw() {
  const canvas = at("canvas"), pen = canvas.getContext("2d");
  const width = canvas.width / state.columns, height = canvas.height / state.rows;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  pen.fillStyle = MASKED;
  const corner = (patch) => [(patch % state.columns) * width, Math.floor(patch / state.columns) * height];
  for (const patch of state.masked) pen.fillRect(...corner(patch), width, height);
  if (canvas.matches(":focus-visible")) {
    const [left, top] = corner(state.place);
    pen.lineWidth = SCALE;
    for (const [colour, inset] of [["black", SCALE / 2], ["white", 1.5 * SCALE]]) {
      pen.strokeStyle = colour;
      pen.strokeRect(left + inset, top + inset, width - 2 * inset, height - 2 * inset);
    }
  }
  at("share").textContent = `${Math.round((100 * state.masked.size) / (state.rows * state.columns))} %`;
}

// One question at a time: what was drawn meanwhile is asked when the answer is there.
async function update() {
  draw();
  state.asked += 1;
  if (state.busy) return;
  state.busy = true;
  for (let answered = 0; answered !== state.asked; ) {
    answered = state.asked;
    try {
      const body = JSON.stringify({ image: state.image, masked: [...state.masked] });
      const found = await ask("reconstruct", body);
      at("result").src = found.reconstruction;
      at("psnr").textContent = found.psnr === null ? "" : `PSNR ${found.psnr.toFixed(2)} dB`;
      at("note").textContent = found.note;
      say("");
    } catch (error) {
      say(error.message);
    }
  }
  state.busy = false;
}

function showSimilar(found) {
  at("similar").replaceChildren(
    ...found.map((one) => {
      const figure = document.createElement("figure"), image = document.createElement("img");
      const caption = document.createElement("figcaption");
      image.src = one.image;
      image.alt = one.name;
      caption.textContent = `${one.name} ${one.similarity}`;
      figure.append(image, caption);
      return figure;
    })
  );
}

function brush(event) {
  if (!event.buttons || state.image === null) return;
  const box = at("canvas").getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * state.columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * state.rows);
  if (row < 0 || column < 0 || row >= state.rows || column >= state.columns) return;
  paint(row * state.columns + column);
}

// The arrow keys move a frame from patch to patch; the space bar masks or shows the patch in it.
function press(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -state.columns, ArrowDown: state.columns };
  if (event.key === " ") paint(state.place);
  else if (event.key in steps) {
    const patches = state.rows * state.columns;
    state.place = (state.place + steps[event.key] + patches) % patches;
    draw();
  } else return;
  event.preventDefault();
}

function paint(patch) {
  if (state.masked.has(patch) === at("mask").checked) return;
  if (at("mask").checked) state.masked.add(patch);
  else state.masked.delete(patch);
  update();
}

at("file").addEventListener("change", (event) => take(event.target.files[0]));
at("ratio").addEventListener("input", maskByRatio);
at("again").addEventListener("click", async () => {
  state.seed += 1;
  try {
    state.order = await ask(`order?patches=${state.order.length}&seed=${state.seed}`, "");
    maskByRatio();
  } catch (error) {
    say(error.message);
  }
});
for (const kind of ["pointerdown", "pointermove"]) at("canvas").addEventListener(kind, brush);
for (const kind of ["focus", "blur"]) at("canvas").addEventListener(kind, draw);
at("canvas").addEventListener("keydown", press);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
fetch("model").then((answer) => answer.json()).then((found) => {
  at("model").textContent = found.model;
  at("ratio").value = found.mask_ratio;
  at("nearest").hidden = found.gallery === 0;
});
