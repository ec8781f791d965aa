// Keys for those who work here all day. The sheet (?) lists them, and its box turns the single letters off.
(() => {
  "use strict";
  const CHORD_MS = 1500;
  const OFF = "sendwhy-keys-off";
  const sheet = document.getElementById("keys");
  const opener = document.querySelector("[data-keys-open]");
  if (!sheet || !opener) return;
  const said = document.querySelector("[data-key-said]");
  const box = sheet.querySelector("[data-keys-on]");
  let goUntil = 0;

  // A browser may refuse to keep anything: then the choice lasts for this page.
  const isOff = () => { try { return localStorage.getItem(OFF) === "1"; } catch { return !box.checked; } };
  const keep = () => { try { localStorage.setItem(OFF, box.checked ? "0" : "1"); } catch { /* as said above */ } };

  // A page's list, or, where it has none, its tables.
  const rows = () => ["main .rows .row-link", "main tbody th[scope=row] a"]
    .map((each) => [...document.querySelectorAll(each)].filter((link) => link.checkVisibility()))
    .find((links) => links.length) ?? [];

  const step = (by) => {
    const links = rows();
    const here = links.indexOf(document.activeElement);
    const to = here < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(here + by, 0), links.length - 1);
    links[to]?.focus();
    links[to]?.scrollIntoView({ block: "nearest" });
  };

  const find = () => {
    const field = document.querySelector("main input[type=search]");
    field?.focus();
    field?.select();
    return Boolean(field);
  };

  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      said.textContent = said.dataset.copiedText;
    } catch {
      said.textContent = said.dataset.refusedText;
    }
    setTimeout(() => { said.textContent = ""; }, 4000);
  };

  const acts = {
    "/": find,
    "?": () => sheet.showModal(),
    j: () => step(1),
    k: () => step(-1),
    c: copy,
    g: () => { goUntil = Date.now() + CHORD_MS; },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || sheet.open || isOff()) return;
    if (event.target.closest("input, select, textarea, [contenteditable]")) return;
    const goes = Date.now() < goUntil && document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    goUntil = 0;
    if (goes) {
      event.preventDefault();
      goes.click();
    } else if (Object.hasOwn(acts, event.key) && acts[event.key]() !== false) {
      event.preventDefault();
    }
  });

  box.checked = !isOff();
  box.addEventListener("change", keep);
  opener.hidden = false;
  opener.addEventListener("click", () => {
    document.getElementById("menu").hidePopover();
    sheet.showModal();
  });
})();
