// Draws the charts of a report from the JSON in the page; asks nothing of the network.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const view = { x: "tokens", from: 0, logX: false, smoothing: 0, cursor: null };
const COLOURS = 8; // .c0 to .c7 in report.css
const HEIGHT = 230;
const MARGIN = { left: 52, right: 14, top: 10, bottom: 38 };

// ---- numbers as text

const trim = (value, digits) => String(+value.toPrecision(digits));

function si(value) {
  const [unit, suffix] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]].find(
    ([unit]) => Math.abs(value) >= unit) ?? [1, ""];
  return trim(value / unit, 4) + suffix;
}

function number(value) {
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) {
    return value.toExponential(2).replace(/\.?0+e\+?/, "e");
  }
  return size >= 1e4 ? si(value) : trim(value, 4);
}

function duration(seconds) {
  if (seconds < 60) return `${trim(seconds, 3)} s`;
  const s = Math.round(seconds), m = Math.floor(s / 60) % 60, h = Math.floor(s / 3600);
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  return h ? `${h} h ${m} min` : `${m} min ${s % 60} s`;
}

const AXES = {
  tokens: { label: "tokens", text: si },
  seconds: { label: "training time", text: duration },
  flops: { label: "model FLOPs", text: number },
  step: { label: "steps", text: (value) => Math.round(value).toLocaleString("en") },
};

// ---- scales and ticks

function niceTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    ticks.push(+(i * step).toPrecision(12));
  }
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  const every = Math.ceil(decades / count);
  const ticks = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
    if (k % every) continue;
    for (const m of decades < 2.5 ? [1, 2, 5] : [1]) ticks.push(+`${m}e${k}`);
  }
  const inside = ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  return inside.length > 1 ? inside : niceTicks(low, high, count);
}

/** Maps [low, high] to pixels [from, to], with ticks. */
function makeScale(low, high, log, from, to, count) {
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const f = log ? Math.log : (v) => v;
  const [a, b] = [f(low), f(high)];
  return {
    low, high,
    map: (v) => from + ((f(v) - a) / (b - a)) * (to - from),
    invert: (p) => {
      const v = a + ((p - from) / (to - from)) * (b - a);
      return log ? Math.exp(v) : v;
    },
    ticks: log ? logTicks(low, high, count) : niceTicks(low, high, count),
  };
}

/** Whole minutes, hours or days as ticks of a linear axis of time, each with its text. */
function timeTicks(low, high, count) {
  const [unit, suffix] = [[86400, "d"], [3600, "h"], [60, "min"]].find(
    ([unit]) => high - low >= 2 * unit) ?? [1, "s"];
  return niceTicks(low / unit, high / unit, count).map((v) => [v * unit, `${trim(v, 4)} ${suffix}`]);
}

// ---- curves

/** Exponential moving average without a bias to its start (as Adam corrects its own). */
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** Adds the axis of FLOPs to columns that have those of steps, tokens and seconds. */
function axesOf(columns, flopsPerToken) {
  const { step, tokens, seconds } = columns;
  return { step, tokens, seconds, flops: flopsPerToken && tokens && tokens.map((t) => t * flopsPerToken) };
}

function curvesOf(chart) {
  const many = data.runs.length > 1;
  const curves = [];
  data.runs.forEach((run, r) => {
    chart.names.forEach((name, n) => {
      const table = run.tables.find((t) => Object.hasOwn(t.values, name));
      if (!table) return;
      const part = chart.names.length > 1 ? name.split("/")[0] : "";
      curves.push({
        x: axesOf(table, run.flops_per_token),
        y: table.values[name],
        linesPerPoint: table.lines_per_point,
        smoothable: data.means.includes(name),
        label: many ? (part ? `${run.name} ${part}` : run.name) : part || name.split("/").pop(),
        style: `c${(many ? r : n) % COLOURS}${name.startsWith("val/") ? " val" : ""}`,
        hidden: false,
      });
    });
  });
  return curves;
}

/** The points of a curve from `from` on that the axes can show; y is null where it is broken. */
function pointsOf(curve, values, from, logY) {
  const xs = curve.x[view.x] ?? [];
  const points = xs.map((x, i) => [x, logY && !(values[i] > 0) ? null : values[i]]);
  return points.filter(([x]) => x >= from && (!view.logX || x > 0));
}

// ---- drawing

function svg(tag, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function html(tag, className, parent, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

function pathOf(points, x, y) {
  let path = "", pen = false;
  for (const [px, py] of points) {
    if (py === null) { pen = false; continue; }
    // h0: a point without neighbours still shows, as a dot
    path += `${pen ? "L" : "M"}${x.map(px).toFixed(1)} ${y.map(py).toFixed(1)}${pen ? "" : "h0"}`;
    pen = true;
  }
  return path;
}

class ChartCard {
  constructor(chart, parent) {
    this.chart = chart;
    this.curves = curvesOf(chart);
    const card = html("figure", "card", parent);
    const head = html("figcaption", "", card);
    html("strong", "", head, chart.title);
    html("span", "unit", head, chart.unit);
    const thinned = Math.max(0, ...this.curves.map((curve) => curve.linesPerPoint));
    if (thinned > 1) html("span", "unit", head, `(a point: ${thinned} lines of metrics)`);
    const label = html("label", "log", head);
    this.log = html("input", "", label);
    this.log.type = "checkbox";
    this.log.checked = chart.log;
    this.log.addEventListener("change", () => this.draw());
    label.append("log");
    this.plot = html("div", "plot", card);
    this.legend = html("div", "legend", card);
    for (const curve of this.curves) this.addKey(curve);
    if (!this.curves.length) {
      card.classList.add("empty");
      html("span", "unit", card, "No values: not written yet, or not known on this device.");
      return;
    }
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => setCursor(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  addKey(curve) {
    const key = html("button", "key", this.legend);
    key.type = "button";
    key.title = "show or hide";
    const swatch = svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, key);
    svg("path", { class: `curve ${curve.style}`, d: "M2 5H20" }, swatch);
    html("span", "", key, curve.label);
    curve.value = html("output", "", key);
    key.setAttribute("aria-pressed", "true");
    key.addEventListener("click", () => {
      curve.hidden = !curve.hidden;
      key.setAttribute("aria-pressed", String(!curve.hidden));
      this.draw();
    });
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width || !this.curves.length) return; // folded away, or empty
    const logY = this.log.checked;
    const shown = this.curves.filter((curve) => !curve.hidden);
    const from = view.from * Math.max(0, ...this.curves.map((curve) => curve.x[view.x]?.at(-1) ?? 0));
    for (const curve of shown) {
      curve.points = pointsOf(curve, curve.y, from, logY);
      const smoothed = view.smoothing > 0 && curve.smoothable;
      curve.line = smoothed ? pointsOf(curve, smooth(curve.y, view.smoothing), from, logY) : curve.points;
    }
    const root = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": `${this.chart.title} over ${AXES[view.x].label}` });
    this.plot.replaceChildren(root);
    const points = shown.flatMap((curve) => curve.points).filter(([, y]) => y !== null);
    this.root = root;
    this.x = null;
    if (points.length) this.drawAxes(root, points, width, logY);
    else svg("text", { class: "nothing", x: width / 2, y: HEIGHT / 2 }, root, "nothing to show on these axes");
    if (this.x) {
      this.drawRestarts(root);
      for (const curve of shown) this.drawCurve(root, curve);
    }
    this.cursor = svg("g", { class: "cursor" }, root);
    this.showCursor();
  }

  drawAxes(root, points, width, logY) {
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const [x, y] of points) {
      x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y);
    }
    if (!view.logX && !view.from) x0 = Math.min(0, x0);
    const right = width - MARGIN.right, bottom = HEIGHT - MARGIN.bottom;
    this.x = makeScale(x0, x1, view.logX, MARGIN.left, right, Math.max(2, width / 110));
    this.y = makeScale(y0, y1, logY, bottom - 6, MARGIN.top + 6, 5);
    const times = view.x === "seconds" && !view.logX;
    const ticks = times
      ? timeTicks(this.x.low, this.x.high, Math.max(2, width / 110))
      : this.x.ticks.map((v) => [v, view.x === "step" ? AXES.step.text(v) : view.x === "seconds" ? duration(v) : view.x === "flops" ? number(v) : si(v)]);
    for (const [value, text] of ticks) {
      const x = this.x.map(value).toFixed(1);
      svg("line", { class: "grid", x1: x, x2: x, y1: MARGIN.top, y2: bottom }, root);
      svg("text", { class: "tick x", x, y: bottom + 15 }, root, text);
    }
    for (const value of this.y.ticks) {
      const y = this.y.map(value).toFixed(1);
      svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }, root);
      svg("text", { class: "tick y", x: MARGIN.left - 6, y: +y + 4 }, root, number(value));
    }
    svg("path", { class: "axis", d: `M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}` }, root);
    svg("text", { class: "title", x: (MARGIN.left + right) / 2, y: HEIGHT - 5 }, root, AXES[view.x].label);
  }

  drawRestarts(root) {
    data.runs.forEach((run, r) => {
      (axesOf(run.restarts, run.flops_per_token)[view.x] ?? []).forEach((at, i) => {
        if (at < this.x.low || at > this.x.high) return;
        const x = this.x.map(at).toFixed(1);
        const line = svg("line", { class: `restart c${data.runs.length > 1 ? r % COLOURS : 7}`, x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }, root);
        svg("title", {}, line, `${run.name} was continued from step ${run.restarts.step[i]}`);
      });
    });
  }

  drawCurve(root, curve) {
    if (curve.line !== curve.points) {
      svg("path", { class: `curve faint ${curve.style}`, d: pathOf(curve.points, this.x, this.y) }, root);
    }
    svg("path", { class: `curve ${curve.style}`, d: pathOf(curve.line, this.x, this.y) }, root);
    const known = curve.line.filter(([, y]) => y !== null);
    if (known.length > 40) return;
    for (const [x, y] of known) {
      svg("circle", { class: `dot ${curve.style}`, cx: this.x.map(x).toFixed(1), cy: this.y.map(y).toFixed(1), r: 2.4 }, root);
    }
  }

  point(event) {
    if (!this.x) return;
    const left = this.plot.getBoundingClientRect().left;
    const value = this.x.invert(event.clientX - left);
    setCursor(Math.min(this.x.high, Math.max(this.x.low, value)));
  }

  /** Marks the points nearest to the cursor and reads them out; without one, the last ones. */
  showCursor() {
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    const at = view.cursor;
    if (at !== null && this.x && at >= this.x.low && at <= this.x.high) {
      const x = this.x.map(at).toFixed(1);
      svg("line", { class: "rule", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }, this.cursor);
      const anchor = x > this.plot.clientWidth / 2 ? "end" : "start";
      const dx = anchor === "end" ? -6 : 6;
      svg("text", { class: "readout", x: +x + dx, y: MARGIN.top + 10, "text-anchor": anchor }, this.cursor, AXES[view.x].text(at));
    }
    for (const curve of this.curves) {
      const known = curve.hidden || !this.x ? [] : curve.line.filter(([, y]) => y !== null);
      const point = at === null ? known.at(-1) : nearest(known, at, (this.x?.high - this.x?.low) / 50);
      curve.value.textContent = point ? number(point[1]) : "–";
      if (point && at !== null) {
        svg("circle", { class: `dot ${curve.style}`, cx: this.x.map(point[0]), cy: this.y.map(point[1]), r: 4 }, this.cursor);
      }
    }
  }
}

/** The point with x nearest to `at`; none where the curve ends more than `slack` before it. */
function nearest(points, at, slack) {
  let low = 0, high = points.length - 1;
  if (high < 0 || at > points[high][0] + slack || at < points[0][0] - slack) return undefined;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= at) low = middle; else high = middle;
  }
  return at - points[low][0] <= points[high][0] - at ? points[low] : points[high];
}

// ---- the page

const cards = data.charts.map(
  (chart) => new ChartCard(chart, document.getElementById(chart.main ? "charts" : "others")));

function setCursor(value) {
  view.cursor = value;
  for (const card of cards) card.showCursor();
}

function redraw() {
  view.cursor = null;
  for (const card of cards) card.draw();
}

for (const radio of document.querySelectorAll("input[name=x]")) {
  const available = cards.some((card) => card.curves.some((curve) => curve.x[radio.value]));
  radio.disabled = !available;
  radio.addEventListener("change", () => { view.x = radio.value; redraw(); });
}
const first = document.querySelector("input[name=x]:not(:disabled)");
if (first) { first.checked = true; view.x = first.value; }
document.getElementById("log-x").addEventListener("change", (event) => {
  view.logX = event.target.checked;
  redraw();
});
for (const name of ["smoothing", "from"]) {
  document.getElementById(name).addEventListener("input", (event) => {
    view[name] = +event.target.value;
    event.target.nextElementSibling.textContent = event.target.value;
    redraw();
  });
}
document.getElementById("more").hidden = !data.charts.some((chart) => !chart.main);
redraw();
