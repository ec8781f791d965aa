// Follows one message: what the stream tells, and time that passes without it, reads its stages again.
(() => {
  "use strict";
  const LOOK_MS = 3000;
  let source = null;
  let timer = null;

  const section = () => document.querySelector("[data-journey]");
  const look = () => section()?.dispatchEvent(new Event("moved"));

  const end = () => {
    source?.close();
    clearInterval(timer);
    source = timer = null;
  };

  const begin = () => {
    const shown = section();
    if (!shown || shown.hasAttribute("data-over")) return end();
    if (source) return;
    source = new EventSource(shown.dataset.journey);
    source.onmessage = look;
    timer = setInterval(look, LOOK_MS);
  };

  begin();
  document.addEventListener("htmx:after:swap", begin);
  addEventListener("pagehide", end);
  addEventListener("pageshow", begin);
})();
