/* What is alive on a page: filters, parts that are asked for again, a run's stream, buttons, one key. */
"use strict";

const part = async (place, address) => {
  const answer = await fetch(address);
  if (answer.ok) place.innerHTML = await answer.text(); // the server's own templates, escaped there
};

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  const text = document.getElementById("text");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && text) {
    event.preventDefault();
    text.focus();
    text.select();
  }
});

const list = document.getElementById("table");
if (list) {
  const form = document.getElementById("filters");
  const show = async () => {
    const chosen = new Set([...list.querySelectorAll(":checked")].map((box) => box.value));
    const at = document.activeElement.closest("#table") && (document.activeElement.value || document.activeElement.href);
    await part(list, "/table?" + new URLSearchParams(new FormData(form)));
    list.querySelectorAll("input").forEach((box) => { box.checked = chosen.has(box.value); });
    if (at) [...list.querySelectorAll("input, a")].find((each) => each.value === at || each.href === at)?.focus();
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => { event.preventDefault(); show(); });
  setInterval(() => { if (!document.hidden) show(); }, 3000);
}

const place = document.querySelector("[data-curves]");
const run = document.getElementById("run");
if (place) {
  const charts = new Charts(place);
  charts.read().then((at) => { if (run) live(charts, at); });
}

function live(charts, at) {
  const looked = document.getElementById("looked-at");
  const look = () => part(looked, looked.dataset.part);
  let lookedAt = Date.now(), reading = false, begun = false;
  const stream = new EventSource(`/runs/${encodeURIComponent(run.dataset.run)}/stream?place=${at}`);
  const anew = async () => {
    if (reading) return;
    reading = true;
    stream.close();
    live(charts, await charts.read());
  };
  look();
  stream.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.parts) Object.entries(told.parts).forEach(([name, html]) => { document.getElementById(name).innerHTML = html; });
    if (told.anew || (told.charts && charts.add(told.charts))) anew();
    if (begun && (told.parts?.events || (told.charts && Date.now() - lookedAt > 10000))) {
      lookedAt = Date.now();
      look();
    }
    begun = true;
  };
  stream.addEventListener("over", () => stream.close());
}

document.querySelectorAll("form[data-act]").forEach((form) => form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (form.dataset.act && !confirm(form.dataset.act)) return;
  const told = document.getElementById("told"), buttons = document.querySelectorAll("[data-act] button");
  buttons.forEach((button) => { button.disabled = true; });
  told.textContent = "asked; it is done after the step …";
  try {
    told.textContent = (await (await fetch(form.action, { method: "POST" })).text()).trim();
  } catch (error) {
    told.textContent = "the page's server does not answer: is luthier ui still running?";
  }
  buttons.forEach((button) => { button.disabled = false; });
}));
