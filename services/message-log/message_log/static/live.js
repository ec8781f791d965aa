// Tells of what came to a list since it was read: "12 new · Show", in the words that the bar brings (data-…-word). Nothing moves until somebody asks for it.
(() => {
  "use strict";
  const SAY_MS = 2000;
  let current = null;

  class Tail {
    constructor(bar) {
      this.bar = bar;
      this.words = bar.dataset;
      this.after = bar.dataset.after;
      this.fresh = new Set();
      this.changed = new Set();
      this.state = bar.querySelector("[data-live-state]");
      this.said = bar.querySelector("[data-live-said]");
      this.show = bar.querySelector("[data-live-show]");
      this.pause = bar.querySelector("[data-live-pause]");
      this.rows = new Map(
        [...document.querySelectorAll("[data-id]")].map((row) => [row.dataset.id, Date.parse(row.dataset.updated)]),
      );
      this.pause.addEventListener("click", () => (this.source ? this.stop() : this.start()));
      bar.hidden = false;
      this.start();
    }

    start() {
      const mark = this.bar.dataset.live.includes("?") ? "&" : "?";
      this.source = new EventSource(`${this.bar.dataset.live}${mark}after=${encodeURIComponent(this.after)}`);
      this.source.onmessage = (event) => this.take(event);
      this.source.onopen = () => this.tell();
      this.source.onerror = () => {
        if (this.source) this.state.textContent = this.source.readyState === EventSource.CLOSED
          ? this.words.endedWord : this.words.interruptedWord;
      };
      this.pause.textContent = this.words.pauseWord;
      this.pause.setAttribute("aria-pressed", "false");
      this.tell();
    }

    stop() {
      this.source.close();
      this.source = null;
      this.pause.textContent = this.words.resumeWord;
      this.pause.setAttribute("aria-pressed", "true");
      this.state.textContent = this.words.pausedWord;
    }

    end() {
      this.source?.close();
      clearTimeout(this.timer);
    }

    take(event) {
      const told = JSON.parse(event.data);
      this.after = event.lastEventId;
      if (this.bar.dataset.only && told.id !== this.bar.dataset.only) return;
      const shown = this.rows.get(told.id);
      if (shown === undefined && Date.parse(told.at) >= Date.parse(this.bar.dataset.since)) this.fresh.add(told.id);
      else if (shown === undefined || shown < Date.parse(told.updated)) this.changed.add(told.id);
      this.timer ??= setTimeout(() => { this.timer = null; this.said.textContent = this.news(); }, SAY_MS);
      this.tell();
    }

    news() {
      const parts = [[this.fresh.size, this.words.freshWord], [this.changed.size, this.words.changedWord]];
      const language = document.documentElement.lang;
      return parts.filter(([count]) => count)
        .map(([count, words]) => words.replace("{count}", count.toLocaleString(language))).join(", ");
    }

    tell() {
      const news = this.news();
      this.state.textContent = news || this.words.liveWord;
      this.show.hidden = !news;
    }
  }

  const begin = () => {
    const bar = document.querySelector("[data-live]");
    if (current?.bar === bar) return;
    current?.end();
    current = bar && new Tail(bar);
  };

  begin();
  document.addEventListener("htmx:after:swap", begin);
  addEventListener("pagehide", () => { current?.end(); current = null; });
  addEventListener("pageshow", begin);
})();
