// Draws the table in each figure[data-chart] as stacked bars: columns are the series, coloured as their heads are,
// rows the bars; a click on a bar follows the link of its row.
(() => {
  "use strict";
  const drawn = new Map();

  const seriesOf = (table) =>
    [...table.tHead.rows[0].cells].slice(1).map((head, column) => ({
      label: head.textContent.trim(),
      data: [...table.tBodies[0].rows].map((row) => Number(row.cells[column + 1].dataset.n)),
      backgroundColor: getComputedStyle(head.firstElementChild).color,
      borderColor: getComputedStyle(document.querySelector("main")).getPropertyValue("background-color"),
      borderWidth: 0,
      barPercentage: 1,
      categoryPercentage: 0.9,
    }));

  const draw = (figure) => {
    const table = figure.querySelector("table");
    const box = figure.querySelector(".canvas");
    const links = [...table.querySelectorAll("tbody a")];
    const style = getComputedStyle(figure.querySelector("figcaption"));
    box.hidden = false;
    drawn.get(figure)?.destroy();
    const grid = getComputedStyle(table.rows[0]).borderBottomColor;
    drawn.set(figure, new Chart(box.querySelector("canvas"), {
      type: "bar",
      data: { labels: links.map((link) => link.textContent), datasets: seriesOf(table) },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "index", intersect: false },
        onClick: (event, [hit]) => hit && links[hit.index].click(),
        color: style.color,
        font: { family: style.fontFamily },
        scales: {
          x: { stacked: true, grid: { display: false }, ticks: { color: style.color, maxRotation: 0, autoSkipPadding: 16 } },
          y: { stacked: true, beginAtZero: true, grid: { color: grid }, border: { display: false }, ticks: { color: style.color, precision: 0, maxTicksLimit: 4 } },
        },
        plugins: { legend: { position: "bottom", labels: { color: style.color, boxWidth: 12, boxHeight: 12 } } },
      },
    }));
  };

  const drawAll = () => {
    for (const [figure, chart] of drawn) {
      if (!figure.isConnected) {
        chart.destroy();
        drawn.delete(figure);
      }
    }
    document.querySelectorAll("figure[data-chart]").forEach(draw);
  };

  drawAll();
  document.addEventListener("htmx:after:swap", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
