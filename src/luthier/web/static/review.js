/* A review by keys: a, t, b choose; digits score; c comments, f flags; Enter saves, u takes back, p and n go to the rows beside. */
"use strict";

const told = document.getElementById("told");
const form = document.getElementById("rate");
const undo = document.getElementById("undo");

const send = async (address, body) => {
  if (told.dataset.busy) return;
  told.dataset.busy = "yes";
  try {
    const answer = await fetch(address, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
    const text = (await answer.text()).trim();
    if (answer.ok) return location.assign(text);
    told.textContent = answer.status === 422 ? "this is not a rating that can be kept" : text;
  } catch (error) {
    told.textContent = "the page's server does not answer: is luthier review still running? Nothing was kept of this row.";
  }
  delete told.dataset.busy;
};

const takeBack = () => send("/undo", { reviewer: undo.dataset.reviewer });
undo?.addEventListener("click", takeBack);

const said = () => {
  const given = new FormData(form), scores = { a: {}, b: {} };
  form.querySelectorAll("[data-scale] :checked").forEach((box) => {
    scores[box.name[0]][box.name.slice(2)] = Number(box.value);
  });
  return {
    reviewer: form.dataset.reviewer, pair: form.dataset.pair, preferred: given.get("preferred") ?? "none", scores,
    comment: given.get("comment").trim(), flagged: given.has("flagged"),
  };
};

form?.addEventListener("submit", (event) => { event.preventDefault(); send("/ratings", said()); });

const scales = form ? [...form.querySelectorAll("[data-scale]")] : [];
const focusOn = (scale) => (scale.querySelector(":checked") ?? scale.querySelector("input")).focus();

const choose = (value) => {
  form.querySelector(`[name=preferred][value=${value}]`).checked = true;
  if (scales.length) focusOn(scales[0]);
};

const score = (digit) => {
  const at = scales.indexOf(document.activeElement.closest("[data-scale]"));
  if (at < 0) return;
  scales[at].querySelector(`[value="${digit}"]`).checked = true;
  focusOn(scales[Math.min(at + 1, scales.length - 1)]);
};

const keys = {
  a: () => choose("a"), b: () => choose("b"), t: () => choose("tie"), c: () => document.getElementById("comment").focus(),
  f: () => document.getElementById("flagged").click(), Enter: () => form.requestSubmit(), u: takeBack,
  p: () => document.getElementById("earlier")?.click(), n: () => document.getElementById("later")?.click(),
};

document.addEventListener("keydown", (event) => {
  const at = document.activeElement;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (at.matches("textarea, input:not([type=radio]):not([type=checkbox])")) {
    if (event.key === "Escape") at.blur();
    return;
  }
  if (event.key === "Enter" && at.matches("a, button, summary")) return;
  const act = /^[1-5]$/.test(event.key) && form ? () => score(event.key) : form || event.key === "u" ? keys[event.key] : undefined;
  if (act && undo) {
    event.preventDefault();
    act();
  }
});
