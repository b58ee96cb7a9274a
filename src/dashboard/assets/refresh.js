// Fetches the page again and puts its new figures in place. The page is complete without it.
"use strict";
(() => {
  const EVERY_MS = 5000;
  const button = document.getElementById("pause");
  let paused = false;

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Paused" : "Pause";
  });

  // The nth element of its kind is the same one after the exchange.
  const place = (element) => {
    const same = [...document.querySelectorAll(`main ${element.tagName}`)];
    return [element.tagName, same.indexOf(element)];
  };

  async function refresh() {
    if (paused || document.hidden || String(document.getSelection())) return;
    const answer = await fetch("/", { headers: { accept: "text/html" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [now, next] = [document.querySelector("main"), fresh.querySelector("main")];
    if (!next) return;
    const focus = now.contains(document.activeElement) ? place(document.activeElement) : null;
    const open = [...now.querySelectorAll("details[open]")].map((details) => details.id);
    const scrolled = [...now.querySelectorAll(".wide")].map((wide) => wide.scrollLeft);
    now.replaceChildren(...next.childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    now.querySelectorAll(".wide").forEach((wide, at) => { wide.scrollLeft = scrolled[at] ?? 0; });
    if (focus && focus[1] >= 0) {
      document.querySelectorAll(`main ${focus[0]}`)[focus[1]]?.focus({ preventScroll: true });
    }
  }

  setInterval(() => refresh().catch(() => {}), EVERY_MS);
})();
