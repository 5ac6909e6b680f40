// The page: a client of the same API as everybody. It keeps its chat and gallery in memory, and writes nothing down.

const $ = (id) => document.getElementById(id);
const about = document.body.dataset;
const LONGEST_SIDE = 1024; // of images that are sent; the model sees far smaller ones
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const PREVIEWS = 7;

let messages = []; // the chat, as the API has it
let attached = []; // pictures for the next message: a data URI, and a Blob of a mask or null
let answering = null; // AbortController while an answer comes

// ---- elements and the API

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function settings(form) {
  const chosen = {};
  for (const { name, value } of form.querySelectorAll("input[name]")) if (value !== "") chosen[name] = Number(value);
  return chosen;
}

function reuse(form, chosen) {
  for (const field of form.querySelectorAll("input[name]")) if (field.name in chosen) field.value = chosen[field.name];
  form.querySelector("details").open = true;
}

// The seed, and what is not as it is at first.
function described(form, chosen) {
  const usual = (name) => form.querySelector(`input[name=${name}]`).defaultValue;
  const told = Object.entries(chosen).filter(([name, value]) => String(value) !== usual(name));
  return told.map(([name, value]) => `${name.replace("_", "-")} ${value}`).join(" · ");
}

// `body` is an object for JSON, or a form.
async function* events(path, body, signal) {
  const headers = $("key").value ? { authorization: `Bearer ${$("key").value}` } : {};
  if (body instanceof FormData) {
    body.append("model", about.model);
    body.append("stream", "true");
  } else {
    headers["content-type"] = "application/json";
    body = JSON.stringify({ model: about.model, stream: true, ...body });
  }
  const response = await fetch(path, { method: "POST", headers, body, signal });
  if (!response.ok) throw new Error(await problem(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection was lost");
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      const data = event.slice(event.indexOf("data: ") + 6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

async function problem(response) {
  const told = await response.json().catch(() => ({}));
  const wait = response.headers.get("retry-after");
  return (told.error?.message ?? `status ${response.status}`) + (wait ? ` (in ${wait} seconds)` : "");
}

// ---- tabs

const tabs = [$("tab-chat"), $("tab-draw")];

function show(tab) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  $("new-chat").style.visibility = tab === $("tab-chat") ? "visible" : "hidden";
}

for (const tab of tabs) {
  tab.onclick = () => show(tab);
  tab.onkeydown = (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs[1 - tabs.indexOf(tab)];
    show(other);
    other.focus();
  };
}

// ---- images to talk about, and to change

async function attach(blob, name = "the image") {
  const url = URL.createObjectURL(blob);
  const image = element("img", { src: url });
  try {
    await image.decode();
    const shrink = Math.min(1, LONGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    add(shrink === 1 && SENT_AS_THEY_ARE.includes(blob.type) ? await dataUri(blob) : redrawn(image, shrink));
  } catch {
    fail(`cannot read ${name} as an image`);
  } finally {
    URL.revokeObjectURL(url);
  }
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = reject;
    reader.readAsDataURL(blob);
  });
}

function redrawn(image, shrink) {
  const canvas = element("canvas", { width: image.naturalWidth * shrink, height: image.naturalHeight * shrink });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function add(uri, mask = null) {
  const picture = { uri, mask };
  attached.push(picture);
  const remove = element("button", { type: "button", className: "thumb", title: "Remove" }, element("img", { src: uri, alt: "Attached image" }));
  const mark = element("button", { type: "button", className: "link", textContent: mask ? "Marked" : "Mark", title: "Mark where it may change" });
  const shown = element("div", {}, remove, mark);
  remove.onclick = () => {
    attached.splice(attached.indexOf(picture), 1);
    shown.remove();
  };
  mark.onclick = () => brush(picture, mark);
  $("attached").append(shown);
  show($("tab-chat"));
  $("question").focus();
}

for (let number = 0; number < Number(about.examples); number++) {
  const src = `examples/${number}.png`;
  const button = element("button", { type: "button", className: "thumb", title: "Ask about this" }, element("img", { src, alt: `Example ${number + 1}` }));
  button.onclick = async () => attach(await (await fetch(src)).blob());
  $("examples").append(button);
}

$("file").onchange = async () => {
  for (const file of $("file").files) await attach(file, file.name);
  $("file").value = "";
};
$("attach").onkeydown = (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  $("file").click();
};
document.onpaste = (event) => {
  for (const file of event.clipboardData.files) attach(file, file.name);
};
document.ondragover = (event) => {
  event.preventDefault();
  $("drop").hidden = false;
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
};
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  for (const file of event.dataTransfer.files) attach(file, file.name);
};

// ---- the brush

async function brush(picture, mark) {
  const [image, marks] = [$("brush-picture"), $("brush-marks")];
  image.src = picture.uri;
  await image.decode();
  [marks.width, marks.height] = [image.naturalWidth, image.naturalHeight]; // clears it, too
  const pen = marks.getContext("2d");
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = getComputedStyle(marks).color;
  let empty = true;
  const at = (event) => [event.offsetX * marks.width / marks.clientWidth, event.offsetY * marks.height / marks.clientHeight];
  marks.onpointerdown = (event) => {
    marks.setPointerCapture(event.pointerId);
    pen.lineWidth = Number($("brush-size").value) / 100 * marks.width;
    pen.beginPath();
    pen.moveTo(...at(event));
    marks.onpointermove(event);
  };
  marks.onpointermove = (event) => {
    if (!event.buttons) return;
    pen.lineTo(...at(event));
    pen.stroke();
    empty = false;
  };
  $("brush-clear").onclick = () => {
    pen.clearRect(0, 0, marks.width, marks.height);
    empty = true;
  };
  $("brush-done").onclick = async () => {
    picture.mask = empty ? null : await maskOf(marks);
    mark.textContent = empty ? "Mark" : "Marked";
    $("brush").close();
    $("question").focus();
  };
  $("brush").showModal();
}

// As the API wants it: transparent where the picture may change.
function maskOf(marks) {
  const mask = element("canvas", { width: marks.width, height: marks.height });
  const paper = mask.getContext("2d");
  paper.fillRect(0, 0, mask.width, mask.height);
  paper.globalCompositeOperation = "destination-out";
  paper.drawImage(marks, 0, 0);
  return new Promise((resolve) => mask.toBlob(resolve, "image/png"));
}

function blobOf(uri) {
  const [head, data] = uri.split(",");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5, head.indexOf(";")) });
}

// ---- chat

function bubble(role) {
  const made = element("article", { className: role });
  $("welcome").hidden = true;
  $("log").append(made);
  made.scrollIntoView({ block: "end" });
  return made;
}

function fail(message) {
  const told = bubble("error");
  told.setAttribute("role", "alert");
  told.textContent = message;
}

// What the chat answers, or, for a picture with a mask, the edit: { seed, text, sketches, images }, each if there is one.
async function* reply(said, text, pictures, chosen, signal) {
  const marked = pictures.find((picture) => picture.mask);
  if (!marked) {
    const body = { messages: [...messages, said], partial_images: PREVIEWS, ...chosen };
    for await (const { seed, choices } of events("v1/chat/completions", body, signal)) {
      const delta = choices[0]?.delta ?? {};
      yield { seed, text: delta.content, sketches: delta.partial_images, images: delta.images };
    }
    return;
  }
  const form = new FormData();
  const ordered = [marked, ...pictures.filter((picture) => picture !== marked)];
  for (const { uri } of ordered) form.append(ordered.length > 1 ? "image[]" : "image", blobOf(uri), "image");
  form.append("mask", marked.mask, "mask.png");
  const fields = { prompt: text, partial_images: PREVIEWS, guidance: chosen.guidance, seed: chosen.seed };
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) form.append(name, value);
  for await (const event of events("v1/images/edits", form, signal)) {
    const image = { type: "image_url", image_url: { url: `data:image/png;base64,${event.b64_json}` }, progress: event.progress };
    yield event.type.endsWith("completed") ? { seed: event.seed, text: event.answer, images: [image] } : { seed: event.seed, sketches: [image] };
  }
}

async function ask(text, pictures) {
  const question = bubble("user");
  for (const { uri } of pictures) question.append(element("img", { src: uri, alt: "Your image" }));
  question.append(element("p", { textContent: text }));
  const parts = [...pictures.map(({ uri }) => ({ type: "image_url", image_url: { url: uri } })), { type: "text", text }];
  const said = { role: "user", content: parts };
  const answer = { role: "assistant", content: "", images: [] };
  const shown = bubble("assistant waiting");
  const words = shown.appendChild(element("p"));
  let sketch = null; // of the image under way
  const chosen = settings($("ask"));
  answering = new AbortController();
  $("ask").querySelector(".send").textContent = "Stop";
  try {
    for await (const piece of reply(said, text, pictures, chosen, answering.signal)) {
      chosen.seed = piece.seed;
      answer.content += piece.text ?? "";
      words.textContent = answer.content;
      for (const image of piece.sketches ?? []) {
        sketch ??= shown.appendChild(element("figure", {}, element("img", { alt: `Drawing: ${text}` }), progress()));
        sketch.firstChild.src = image.image_url.url;
        sketch.lastChild.value = image.progress;
      }
      for (const image of piece.images ?? []) {
        sketch?.remove();
        sketch = null;
        const { url } = image.image_url;
        answer.images.push({ type: image.type, image_url: { url } });
        const made = drawing(url, text, chosen.seed);
        const change = element("button", { type: "button", className: "link", textContent: "Change", onclick: () => add(url) });
        made.lastChild.append(" ", change);
        shown.append(made);
      }
      if (piece.text || piece.sketches || piece.images) shown.classList.remove("waiting");
      shown.scrollIntoView({ block: "end" });
    }
    if (!answer.content && !answer.images.length) words.textContent = "(no words)";
  } catch (error) {
    if (error.name !== "AbortError") {
      fail(error.message);
      if (!$("question").value) $("question").value = text;
      if (!attached.length) pictures.forEach(({ uri, mask }) => add(uri, mask));
    }
  }
  answering = null;
  sketch?.remove();
  shown.classList.remove("waiting");
  $("ask").querySelector(".send").textContent = "Send";
  if (answer.content || answer.images.length) {
    messages.push(said, answer);
    shown.append(caption(chosen, () => reuse($("ask"), chosen)));
  } else if (!words.textContent) shown.remove();
  $("log").lastElementChild.scrollIntoView({ block: "end" });
}

function caption(chosen, again) {
  const button = element("button", { type: "button", className: "link", textContent: "Use again", onclick: again });
  return element("footer", {}, element("small", { textContent: described($("ask"), chosen) }), button);
}

function progress() {
  return element("progress", { value: 0, max: 1, ariaLabel: "Progress" });
}

function drawing(uri, prompt, seed) {
  const save = element("a", { href: uri, download: `${prompt.replace(/\W+/g, "_").slice(0, 40)}_${seed}.png`, textContent: "Download" });
  return element("figure", {}, element("img", { src: uri, alt: `Drawn: ${prompt}` }), element("figcaption", {}, save));
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  if (answering) return answering.abort();
  const text = $("question").value.trim();
  if (!text && !attached.length) return $("question").focus();
  const pictures = attached;
  attached = [];
  $("attached").replaceChildren();
  $("question").value = "";
  ask(text, pictures);
};

$("new-chat").onclick = () => {
  answering?.abort();
  messages = [];
  $("log").replaceChildren();
  $("welcome").hidden = false;
  $("question").focus();
};

// ---- drawings

async function paint(prompt, chosen) {
  const stop = new AbortController();
  const image = element("img", { alt: `Drawing: ${prompt}` });
  const bar = progress();
  const end = element("button", { type: "button", className: "link", textContent: "Stop", onclick: () => stop.abort() });
  const text = element("figcaption", {}, element("span", { textContent: prompt }), element("small", { textContent: described($("paint"), chosen) }), bar, end);
  const tile = element("figure", { className: "waiting" }, image, text);
  $("gallery").prepend(tile);
  try {
    for await (const event of events("v1/images/generations", { prompt, partial_images: PREVIEWS, ...chosen }, stop.signal)) {
      image.src = `data:image/png;base64,${event.b64_json}`;
      bar.value = event.progress ?? 1;
    }
    const again = element("button", { type: "button", className: "link", textContent: "Use again" });
    again.onclick = () => {
      $("prompt").value = prompt;
      reuse($("paint"), { ...chosen, n: 1 });
      $("prompt").focus();
    };
    const discuss = element("button", { type: "button", className: "link", textContent: "Ask", onclick: () => add(image.src) });
    end.replaceWith(drawing(image.src, prompt, chosen.seed).querySelector("a"), again, discuss);
    image.alt = `Drawn: ${prompt}`;
  } catch (error) {
    tile.remove();
    if (error.name !== "AbortError") throw error;
  } finally {
    bar.remove();
    tile.classList.remove("waiting");
  }
}

$("paint").onsubmit = async (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  const { n = 1, seed = Math.floor(Math.random() * 2 ** 31), ...chosen } = settings($("paint"));
  $("draw-error").hidden = true;
  // The last is begun first, as each is put before those that are there.
  const places = [...Array(n).keys()].reverse();
  const done = await Promise.allSettled(places.map((place) => paint(prompt, { ...chosen, seed: seed + place })));
  const failed = done.find((one) => one.status === "rejected");
  if (failed) {
    $("draw-error").textContent = failed.reason.message;
    $("draw-error").hidden = false;
  }
};

// ---- keys, and what is kept for this tab alone

for (const [area, form] of [[$("question"), $("ask")], [$("prompt"), $("paint")]]) {
  area.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!answering || form !== $("ask")) form.requestSubmit();
  };
}
document.onkeydown = (event) => {
  if (event.key === "Escape") answering?.abort();
};
if (about.key === "1") {
  $("key-field").hidden = false;
  $("key").value = sessionStorage.getItem("key") ?? "";
  $("key").onchange = () => sessionStorage.setItem("key", $("key").value);
}
$("question").focus();
