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

function options(chart, width) {
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }));
  return {
    width, height: HEIGHT, padding: [8, 8, 0, 0],
    cursor: { sync: { key: "step" }, points: { size: 6 } },
    scales: { x: { time: false } },
    legend: { live: true },
    axes: [{ ...axis, size: 26, incrs: STEPS }, { ...axis, size: 58, values: (_, ticks) => ticks.map(tickText) }],
    series: [
      { label: "step", value: (_, value) => (value === null ? "–" : value.toLocaleString("en")) },
      ...chart.curves.map((curve, number_) => ({
        label: curve.name, stroke: colour(COLOURS[number_ % COLOURS.length]), width: curve.name === "validation" ? 2 : 1.2,
        spanGaps: true, points: { show: curve.name === "validation" && curve.x.length <= 60, size: 5 }, value: (_, value) => number(value),
      })),
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
    return uPlot.join(chart.curves.map((curve) => [curve.x, curve.y]));
  }

  fit() {
    this.drawn.forEach((chart) => {
      const width = chart.root.parentElement.clientWidth - 16;
      if (width > 0 && width !== chart.width) chart.setSize({ width, height: HEIGHT });
    });
  }

  /* More of each curve. True where they have become too long, and are to be read anew. */
  add(charts) {
    if (!this.charts.some((chart) => chart.curves.some((curve) => curve.x.length))) return true; // the first points: axes and titles anew
    charts.forEach((more, number) => {
      const { data: [steps], scales: { x } } = this.drawn[number];
      const whole = !steps.length || (x.min <= steps[0] && x.max >= steps[steps.length - 1]); // else somebody looks at a part of it
      more.curves.forEach((curve, which) => {
        this.charts[number].curves[which].x.push(...curve.x);
        this.charts[number].curves[which].y.push(...curve.y);
      });
      this.drawn[number].setData(this.columns(this.charts[number]), whole);
      if (!whole) this.drawn[number].redraw();
    });
    return this.charts.some((chart) => chart.curves.some((curve) => curve.x.length > MOST));
  }
}
