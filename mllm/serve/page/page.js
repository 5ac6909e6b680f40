// The page: a client of the same API as everybody. It keeps its chat and gallery in memory, and writes nothing down.

const $ = (id) => document.getElementById(id);
const about = document.body.dataset;
const LONGEST_SIDE = 1024; // of images that are sent; the model sees far smaller ones
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const PREVIEWS = 7;

let messages = []; // the chat, as the API has it
let attached = []; // data URIs for the next message
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

async function* events(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  const request = { method: "POST", headers, body: JSON.stringify({ model: about.model, stream: true, ...body }), signal };
  const response = await fetch(path, request);
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

// ---- images to talk about

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

function add(uri) {
  attached.push(uri);
  const remove = element("button", { type: "button", className: "thumb", title: "Remove" }, element("img", { src: uri, alt: "Attached image" }));
  remove.onclick = () => {
    attached.splice([...$("attached").children].indexOf(remove), 1);
    remove.remove();
  };
  $("attached").append(remove);
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

async function ask(text, images) {
  const question = bubble("user");
  for (const uri of images) question.append(element("img", { src: uri, alt: "Your image" }));
  question.append(element("p", { textContent: text }));
  const parts = [...images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
  const said = { role: "user", content: parts };
  const answer = { role: "assistant", content: "", images: [] };
  const shown = bubble("assistant waiting");
  const words = shown.appendChild(element("p"));
  let sketch = null; // of the image under way
  const chosen = settings($("ask"));
  answering = new AbortController();
  $("ask").querySelector(".send").textContent = "Stop";
  try {
    for await (const chunk of events("v1/chat/completions", { messages: [...messages, said], partial_images: PREVIEWS, ...chosen }, answering.signal)) {
      chosen.seed = chunk.seed;
      const delta = chunk.choices[0]?.delta ?? {};
      answer.content += delta.content ?? "";
      words.textContent = answer.content;
      for (const image of delta.partial_images ?? []) {
        sketch ??= shown.appendChild(element("figure", {}, element("img", { alt: `Drawing: ${text}` }), progress()));
        sketch.firstChild.src = image.image_url.url;
        sketch.lastChild.value = image.progress;
      }
      for (const image of delta.images ?? []) {
        sketch?.remove();
        sketch = null;
        answer.images.push(image);
        shown.append(drawing(image.image_url.url, text, chosen.seed));
      }
      if (delta.content || delta.partial_images || delta.images) shown.classList.remove("waiting");
      shown.scrollIntoView({ block: "end" });
    }
    if (!answer.content && !answer.images.length) words.textContent = "(no words)";
  } catch (error) {
    if (error.name !== "AbortError") {
      fail(error.message);
      if (!$("question").value) $("question").value = text;
      if (!attached.length) images.forEach(add);
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
  const images = attached;
  attached = [];
  $("attached").replaceChildren();
  $("question").value = "";
  ask(text, images);
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
