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
  let lookedAt = Date.now(), stream = null, begun = false, closed = false;
  const close = () => { stream?.close(); stream = null; };
  const open = () => {
    if (stream || closed || document.hidden) return; // a browser has six connections to an address: pages that nobody sees need none
    stream = new EventSource(`/runs/${encodeURIComponent(run.dataset.run)}/stream?place=${at}`);
    stream.onmessage = heard;
    stream.addEventListener("over", () => { closed = true; close(); });
  };
  const anew = async () => {
    closed = true;
    close();
    at = await charts.read();
    closed = false;
    open();
  };
  const heard = (event) => {
    const told = JSON.parse(event.data);
    at = event.lastEventId;
    if (told.parts) Object.entries(told.parts).forEach(([name, html]) => { document.getElementById(name).innerHTML = html; });
    if (told.anew || (told.charts && charts.add(told.charts))) anew();
    if (begun && (told.parts?.events || (told.charts && Date.now() - lookedAt > 10000))) {
      lookedAt = Date.now();
      look();
    }
    begun = true;
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  look();
  open();
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("form[data-act]")) return; // those that come and go with the run's state
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
});
