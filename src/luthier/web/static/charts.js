/* Charts of a page: drawn from JSON, longer as events come, in the page's own colours. uPlot draws. */
"use strict";

const MOST = 4000; // points of a curve; with more they are asked for anew, thinned
const HEIGHT = 190;
const STEPS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((ten) => [ten, 2 * ten, 5 * ten]); // between the numbers below a chart
const COLOURS = ["--train", "--validation", "--third", "--fourth", "--bad", "--good"];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function tickText(tick) {
  const rounded = Number(tick.toPrecision(6));
  return rounded !== 0 && Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
}

/* Of curves with an interval, what lies between its ends: the two series behind the curve's own. */
function bands(chart) {
  let place = 1;
  return chart.curves.flatMap((curve, number) => {
    const at = place;
    place += curve.low.length ? 3 : 1;
    return curve.low.length ? [{ series: [at + 2, at + 1], fill: colour(COLOURS[number % COLOURS.length]) + "22" }] : [];
  });
}

function options(chart, width) {
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }));
  return {
    width, height: HEIGHT, padding: [8, 8, 0, 0],
    cursor: { sync: { key: "step" }, points: { size: 6 } },
    scales: { x: { time: false } },
    legend: { live: true },
    axes: [{ ...axis, size: 26, incrs: STEPS }, { ...axis, size: 58, values: (_, ticks) => ticks.map(tickText) }],
    bands: bands(chart),
    series: [
      { label: "step", value: (_, value) => (value === null ? "–" : value.toLocaleString("en")) },
      ...chart.curves.flatMap((curve, number_) => {
        const stroke = colour(COLOURS[number_ % COLOURS.length]), whole = { stroke, spanGaps: true, value: (_, value) => number(value) };
        const line = { ...whole, label: curve.name, width: curve.name === "validation" ? 2 : 1.2, points: { show: curve.name === "validation" && curve.x.length <= 60, size: 5 } };
        const end = (label) => ({ ...whole, label, width: 0.5, alpha: 0.5, points: { show: false } });
        return curve.low.length ? [line, end("from"), end("to")] : [line];
      }),
    ],
  };
}

class Charts {
  constructor(place) {
    this.place = place;
    this.address = place.dataset.curves;
    this.drawn = [];
    new ResizeObserver(() => this.fit()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  async read() {
    const found = await (await fetch(this.address)).json();
    this.charts = found.charts;
    this.draw();
    return found.place;
  }

  draw() {
    this.drawn.forEach((chart) => chart.destroy());
    this.place.replaceChildren();
    this.drawn = this.charts.map((chart) => {
      const figure = document.createElement("figure"), title = document.createElement("figcaption");
      title.textContent = chart.title;
      figure.append(title);
      this.place.append(figure);
      if (!chart.curves.some((curve) => curve.x.length)) {
        const empty = document.createElement("p");
        empty.className = "dim";
        empty.textContent = "nothing is recorded yet";
        figure.append(empty);
      }
      return new uPlot(options(chart, figure.clientWidth - 16), this.columns(chart), figure);
    });
  }

  columns(chart) {
    return uPlot.join(chart.curves.map((curve) => (curve.low.length ? [curve.x, curve.y, curve.low, curve.high] : [curve.x, curve.y])));
  }

  fit() {
    this.drawn.forEach((chart) => {
      const width = chart.root.parentElement.clientWidth - 16;
      if (width > 0 && width !== chart.width) chart.setSize({ width, height: HEIGHT });
    });
  }

  /* More of each curve, by title and name. True where all is to be read anew: they have become too long, or there are others. */
  add(charts) {
    if (!this.charts.some((chart) => chart.curves.some((curve) => curve.x.length))) return true; // the first points: axes and titles anew
    for (const more of charts) {
      const number = this.charts.findIndex((chart) => chart.title === more.title);
      if (number < 0) return true;
      const chart = this.charts[number], { data: [steps], scales: { x } } = this.drawn[number];
      const whole = !steps.length || (x.min <= steps[0] && x.max >= steps[steps.length - 1]); // else somebody looks at a part of it
      for (const { name, ...points } of more.curves) {
        const curve = chart.curves.find((each) => each.name === name);
        if (points.low.length && !curve.low.length) return true; // the first interval: its ends are curves
        const known = curve.x.length ? curve.x[curve.x.length - 1] : -1, first = points.x.findIndex((step) => step > known);
        if (first >= 0) ["x", "y", "low", "high"].forEach((axis) => curve[axis].push(...points[axis].slice(first)));
      }
      this.drawn[number].setData(this.columns(chart), whole);
      if (!whole) this.drawn[number].redraw();
    }
    return this.charts.some((chart) => chart.curves.some((curve) => curve.x.length > MOST));
  }
}
