"use strict";
// Keyboard and comfort; every page works without this script.

const main = document.querySelector("main");
const page = document.body.dataset.page;
const help = document.getElementById("help");
const toast = document.querySelector(".toast");
const DRAFT = "anomaly-vae draft ";
let toastTimer;

function say(text) {
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, 4000);
}

function isTyping(target) {
  return target.matches("input, textarea, select") || target.isContentEditable;
}

// ---------------------------------------------------------------- the queue

const rows = () => [...document.querySelectorAll(".queue tbody tr")];
const selected = () => document.querySelector(".queue tr.selected");
let undoable = null;

function select(row, focus = true) {
  if (!row) return;
  for (const other of rows()) other.classList.toggle("selected", other === row);
  if (focus) {
    row.focus({preventScroll: true});
    row.scrollIntoView({block: "nearest"});
  }
}

function step(by) {
  const all = rows(), at = all.indexOf(selected());
  const next = all[at + by];
  if (next) select(at < 0 ? all[0] : next);
  else follow(by > 0 ? "next" : "prev");
}

function follow(rel) {
  const link = document.querySelector(`main a[rel=${rel}]`);
  if (link) link.click();
  else say(rel === "next" ? "This is the last one." : "This is the first one.");
}

async function send(form, button) {
  const row = form.closest("tr"), body = new URLSearchParams(new FormData(form));
  if (button.name) body.set(button.name, button.value);
  const address = button.getAttribute("formaction") || form.action;
  const isUndo = button.classList.contains("undo");
  for (const one of form.elements) one.disabled = true;
  undoable = isUndo ? null : row.dataset.case; // the last that was pressed, not the last to answer
  const next = rows()[rows().indexOf(row) + 1];
  if (!isUndo && next && row.classList.contains("selected")) select(next); // quick hands do not wait
  try {
    const answer = await fetch(address, {method: "POST", body, headers: {"X-Fragment": "1"}});
    const text = await answer.text(), holder = document.createElement("template");
    holder.innerHTML = text;
    if (!answer.ok) {
      failed(row, form, holder.content.textContent.trim());
      return;
    }
    const fresh = holder.content.querySelector("tr"), isSelected = row.classList.contains("selected");
    row.replaceWith(fresh);
    if (isSelected) select(fresh);
    const name = fresh.dataset.case, changed = fresh.querySelector(".changed");
    if (changed) say(changed.textContent);
    else say(isUndo ? `Case ${name}: undone.` : `Case ${name}: ${button.value}. Press z to undo.`);
  } catch (error) {
    failed(row, form, "The service cannot be reached; the verdict was not stored. Try again.");
  }
}

function failed(row, form, text) {
  for (const one of form.elements) one.disabled = false;
  select(row);
  say(text);
}

if (page === "queue") {
  document.addEventListener("submit", event => {
    if (!event.submitter || !event.target.closest(".queue")) return;
    event.preventDefault();
    select(event.target.closest("tr"), false);
    send(event.target, event.submitter);
  });
  document.addEventListener("click", event => {
    const row = event.target.closest(".queue tbody tr");
    if (row && !event.target.closest("a, button")) select(row);
  });
  const wanted = rows().find(row => "#" + row.id === location.hash);
  select(wanted || rows()[0], Boolean(wanted));
}

function press(name) {
  const place = page === "queue" ? selected() : document.getElementById("verdict");
  const button = place && place.querySelector(`button[value=${name}]`);
  if (button) button.click();
}

function undo() {
  if (page === "queue") {
    const row = (undoable && document.getElementById(`case-${undoable}`)) || selected();
    const button = row && row.querySelector(".undo:not([hidden])");
    if (!button) return say("There is nothing to undo.");
    select(row, false);
    return button.click();
  }
  const button = document.querySelector("[data-undo] button, [data-own-undo]");
  if (button) button.click();
  else say("There is nothing to undo.");
}

// ---------------------------------------------------------------- keys

const open = {
  queue: () => selected() && selected().querySelector("a").click(),
};
const keys = {
  j: () => (page === "queue" ? step(1) : follow("next")),
  k: () => (page === "queue" ? step(-1) : follow("prev")),
  o: () => open[page] && open[page](),
  Enter: () => open[page] && open[page](),
  a: () => press("anomaly"),
  n: () => press("normal"),
  u: () => press("unsure"),
  z: undo,
  e: () => { const note = document.getElementById("note"); if (note) note.focus(); },
  s: () => {
    const snooze = document.getElementById("snooze");
    if (!snooze) return;
    snooze.open = true;
    document.getElementById("reason").focus();
  },
  q: () => { const back = document.querySelector("[data-back]"); if (back) back.click(); },
  "/": () => { const filter = document.getElementById("filter"); if (filter) { filter.focus(); filter.select(); } },
  "?": () => help.showModal(),
};

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || help.open) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const isControl = event.target.closest("a, button, summary");
  const action = event.key === "Enter" && isControl ? null : keys[event.key];
  if (!action || event.repeat && !"jk".includes(event.key)) return;
  event.preventDefault();
  action();
});
for (const button of document.querySelectorAll("[data-help]")) {
  button.addEventListener("click", () => help.showModal());
}

// ---------------------------------------------------------------- drafts of notes

for (const area of document.querySelectorAll("textarea[data-draft]")) {
  const name = DRAFT + area.dataset.draft;
  if (!area.value) area.value = sessionStorage.getItem(name) || "";
  area.addEventListener("input", () => sessionStorage.setItem(name, area.value));
  area.form.addEventListener("submit", () => sessionStorage.setItem(DRAFT + "sent", name));
}
const sent = sessionStorage.getItem(DRAFT + "sent");
if (sent && page !== "error" && page !== "sign-in") { // the note arrived
  sessionStorage.removeItem(sent);
  sessionStorage.removeItem(DRAFT + "sent");
  for (const area of document.querySelectorAll("textarea[data-draft]")) {
    if (DRAFT + area.dataset.draft === sent) area.value = "";
  }
}

// ---------------------------------------------------------------- what-if

const slider = document.getElementById("step");
if (slider) {
  const figures = document.getElementById("figures"), alphas = slider.dataset.alphas.split(" ");
  let timer, number = 0;
  const refresh = async () => {
    const mine = ++number, query = new URLSearchParams(new FormData(slider.form));
    figures.classList.add("waiting");
    const answer = await fetch(`${slider.form.action}?${query}`, {headers: {"X-Fragment": "1"}});
    const text = await answer.text();
    if (mine !== number) return; // a later one is on its way
    figures.innerHTML = text;
    figures.classList.remove("waiting");
    if (answer.ok) history.replaceState(null, "", `?${query}`);
  };
  slider.addEventListener("input", () => {
    const alpha = String(Number(alphas[slider.value]));
    document.getElementById("alpha").textContent = alpha;
    slider.setAttribute("aria-valuetext", alpha);
    clearTimeout(timer);
    timer = setTimeout(refresh, 120);
  });
  for (const choice of slider.form.querySelectorAll("select")) {
    choice.addEventListener("change", () => slider.form.requestSubmit());
  }
}

// ---------------------------------------------------------------- dropped files

for (const drop of document.querySelectorAll("[data-drop]")) {
  const input = drop.querySelector("input"), chosen = drop.form || input.form;
  const list = () => {
    const names = [...input.files].map(file => file.name).join(", ");
    chosen.querySelector(".chosen").textContent = names;
  };
  input.addEventListener("change", list);
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, event => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", event => {
    event.preventDefault();
    drop.classList.remove("over");
    input.files = event.dataTransfer.files;
    list();
  });
}

if (document.querySelector("[data-reload]")) setTimeout(() => location.reload(), 5000);
