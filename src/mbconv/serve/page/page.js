// Pictures in, labels out: one request a picture, so that each is shown as soon as it is there.
const $ = (selector, within = document) => within.querySelector(selector);
const limits = document.body.dataset;
const explains = "explains" in limits;
const entries = []; // { file, url, card, results }, in the order in which they came
const AT_ONCE = 4;
let running = 0;
const waiting = [];

// 0.9167 -> 91.7%; never rounded up to 100% or down to 0%.
function percent(share) {
  const text = (100 * share).toFixed(1) + "%";
  if (text === "100.0%" && share < 1) return ">99.9%";
  if (text === "0.0%" && share > 0) return "<0.1%";
  return text;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function post(path, file) {
  for (let tries = 0; ; tries++) {
    const form = new FormData();
    form.append("files", file, file.name || "picture");
    const answer = await fetch(path, { method: "POST", body: form });
    if (answer.status !== 503 || tries === 5) return answer;
    await pause(Number(answer.headers.get("Retry-After")) || 1);
  }
}

async function sentence(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

function add(files) {
  for (const file of files) {
    const card = $("#card").content.firstElementChild.cloneNode(true);
    const entry = { file, card, url: URL.createObjectURL(file), name: file.name || "pasted picture" };
    $("h2", card).textContent = $("h2", card).title = entry.name;
    const image = $(".seen img", card);
    image.alt = entry.name;
    image.onerror = () => { image.hidden = true; $(".blank", card).hidden = false; };
    image.src = entry.url;
    const remove = $(".remove", card);
    remove.setAttribute("aria-label", `Remove ${entry.name}`);
    remove.onclick = () => { drop(entry); $("#choose").focus(); };
    entries.push(entry);
    $("#cards").append(card);
    waiting.push(entry);
  }
  shape();
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    send(waiting.shift()).finally(() => { running--; next(); });
  }
}

async function send(entry) {
  if (!entries.includes(entry)) return;
  if (entry.file.size > Number(limits.upload)) {
    return fail(entry, `${entry.name} is larger than ${limits.most}; choose a smaller file.`);
  }
  const started = performance.now();
  try {
    const answer = await post("predict?top=5", entry.file);
    const whole = performance.now() - started;
    if (!answer.ok) return fail(entry, await sentence(answer));
    const result = (await answer.json()).results[0];
    entry.results = result.predictions;
    show(entry, result, whole);
  } catch {
    fail(entry, "The server did not answer, or the file could not be read. Is the server running?");
  }
}

function fail(entry, text) {
  const status = $(".status", entry.card);
  status.textContent = text;
  status.classList.add("problem");
  $(".pair", entry.card).hidden = true;
  say(text);
}

function show(entry, result, whole) {
  $(".status", entry.card).hidden = true;
  const list = $(".labels", entry.card);
  for (const guess of result.predictions) {
    const row = document.createElement(explains ? "button" : "div");
    row.className = "row";
    const [label, figure, track, fill] = ["span", "span", "span", "span"].map((tag) =>
      document.createElement(tag));
    label.textContent = guess.label;
    figure.textContent = percent(guess.score);
    [figure.className, track.className, fill.className] = ["figure", "track", "fill"];
    fill.style.width = `${100 * guess.score}%`;
    track.append(fill);
    row.append(label, figure, track);
    if (explains) {
      row.type = "button";
      row.title = `Show what speaks for ${guess.label}`;
      row.onclick = () => explain(entry, guess, row);
    }
    const item = document.createElement("li");
    item.append(row);
    list.append(item);
  }
  const batch = result.batch > 1 ? `, in a batch of ${result.batch}` : "";
  $(".time", entry.card).textContent =
    `${result.milliseconds.toFixed(0)} ms at the server${batch}; ${whole.toFixed(0)} ms in all`;
  const best = result.predictions[0];
  say(`${entry.name}: ${best.label}, ${percent(best.score)}`);
  compare();
  if (explains) return explain(entry, best, $(".row", list));
}

async function explain(entry, guess, row) {
  for (const other of entry.card.querySelectorAll(".row")) other.setAttribute("aria-pressed", other === row);
  const why = $(".why", entry.card);
  try {
    const answer = await post(`explain?index=${guess.index}`, entry.file);
    if (!answer.ok) throw new Error(await sentence(answer));
    const url = URL.createObjectURL(await answer.blob());
    if (row.getAttribute("aria-pressed") !== "true") return URL.revokeObjectURL(url);
    if (entry.heat) URL.revokeObjectURL(entry.heat);
    entry.heat = url;
    const image = $(".heat img", entry.card);
    image.src = url;
    image.alt = `Places that spoke for ${guess.label}`;
    $(".heat", entry.card).hidden = false;
    why.textContent = `Right: what the network sees; bright places spoke for ${guess.label}.`;
  } catch (error) {
    why.textContent = error.message;
  }
  why.hidden = false;
}

function drop(entry) {
  entries.splice(entries.indexOf(entry), 1);
  entry.card.remove();
  URL.revokeObjectURL(entry.url);
  if (entry.heat) URL.revokeObjectURL(entry.heat);
  shape();
  compare();
}

function shape() {
  $("#drop").classList.toggle("small", entries.length > 0);
  $("#clear").hidden = entries.length < 2;
}

// The labels that lead in any picture against all pictures.
function compare() {
  const read = entries.filter((entry) => entry.results);
  $("#compare").hidden = read.length < 2;
  const table = $("#compare table");
  table.replaceChildren();
  if (read.length < 2) return;
  const best = new Map();
  for (const entry of read) {
    for (const { label, index, score } of entry.results.slice(0, 2)) {
      const known = best.get(index);
      if (!known || known.score < score) best.set(index, { label, index, score });
    }
  }
  const head = table.createTHead().insertRow();
  head.append(document.createElement("td"));
  for (const entry of read) {
    const cell = document.createElement("th");
    cell.scope = "col";
    const image = new Image();
    image.src = entry.url;
    image.alt = "";
    image.onerror = () => image.remove();
    const name = document.createElement("span");
    name.textContent = name.title = entry.name;
    cell.append(image, name);
    head.append(cell);
  }
  const body = table.createTBody();
  for (const { label, index } of [...best.values()].sort((a, b) => b.score - a.score).slice(0, 12)) {
    const row = body.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = label;
    row.append(name);
    for (const entry of read) {
      const cell = row.insertCell();
      const found = entry.results.find((guess) => guess.index === index);
      cell.textContent = found ? percent(found.score) : "–";
      if (!found) cell.title = "not among its five best";
      cell.style.setProperty("--v", found ? found.score : 0);
      cell.classList.toggle("best", entry.results[0].index === index);
    }
  }
}

function say(text) { $("#news").textContent = text; }

for (const [button, input] of [["#choose", "#files"], ["#photograph", "#camera"]]) {
  $(button).onclick = () => $(input).click();
  $(input).onchange = (event) => { add(event.target.files); event.target.value = ""; };
}
$("#clear").onclick = () => { [...entries].forEach(drop); $("#choose").focus(); };
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  add(event.dataTransfer.files);
});
