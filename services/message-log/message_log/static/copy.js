// A [data-copy] button copies the text of the element whose id it names, and says so.
(() => {
  "use strict";
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    const said = button.parentElement.querySelector("[data-copied]");
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = button.dataset.copiedWord;
    } catch {
      said.textContent = button.dataset.refusedWord;
    }
    setTimeout(() => { said.textContent = ""; }, 4000);
  });
  const show = () => document.querySelectorAll("button[data-copy]").forEach((button) => { button.hidden = false; });
  show();
  document.addEventListener("htmx:after:swap", show);
})();
