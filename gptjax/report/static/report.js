// Draws the charts of a report from the JSON in the page; asks nothing of the network.
const data = JSON.parse(document.getElementById("data").textContent);
const view = { x: "tokens", from: 0, logX: false, smoothing: 0, cursor: null };
const COLOURS = 8; // .c0 to .c7 in report.css
const HEIGHT = 230;
const MARGIN = { left: 52, right: 14, top: 10, bottom: 38 };

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

const colour = (i) => `c${i % COLOURS}`;

/** Adds the axis of FLOPs to columns that have those of steps, tokens and seconds. */
function axesOf(columns, flopsPerToken) {
  const { step, tokens, seconds } = columns;
  const flops = flopsPerToken && tokens && tokens.map((t) => t * flopsPerToken);
  return { step, tokens, seconds, flops };
}

function curvesOf(chart) {
  const many = data.runs.length > 1;
  const curves = [];
  data.runs.forEach((run) => {
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
        style: colour(many ? run.group : n) + (name.startsWith("val/") ? " val" : ""),
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
    const ends = this.curves.map((curve) => curve.x[view.x]?.at(-1) ?? 0);
    const from = view.from * Math.max(...ends);
    for (const curve of shown) {
      curve.points = curve.line = pointsOf(curve, curve.y, from, logY);
      if (view.smoothing > 0 && curve.smoothable) {
        curve.line = pointsOf(curve, smooth(curve.y, view.smoothing), from, logY);
      }
    }
    const label = `${this.chart.title} over ${AXES[view.x].label}`;
    const root = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": label });
    this.plot.replaceChildren(root);
    const points = shown.flatMap((curve) => curve.points).filter(([, y]) => y !== null);
    this.root = root;
    this.x = null;
    if (points.length) this.drawAxes(root, points, width, logY);
    else svg("text", { class: "nothing", x: width / 2, y: HEIGHT / 2 }, root, "nothing to show");
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
    const count = Math.max(2, width / 110);
    this.x = makeScale(x0, x1, view.logX, MARGIN.left, right, count);
    this.y = makeScale(y0, y1, logY, bottom - 6, MARGIN.top + 6, 5);
    const ticks = view.x === "seconds" && !view.logX
      ? timeTicks(this.x.low, this.x.high, count)
      : this.x.ticks.map((value) => [value, AXES[view.x].text(value)]);
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
    const middle = (MARGIN.left + right) / 2;
    svg("text", { class: "title", x: middle, y: HEIGHT - 5 }, root, AXES[view.x].label);
  }

  drawRestarts(root) {
    data.runs.forEach((run) => {
      (axesOf(run.restarts, run.flops_per_token)[view.x] ?? []).forEach((at, i) => {
        if (at < this.x.low || at > this.x.high) return;
        const line = this.drawRule(root, at, `restart ${data.runs.length > 1 ? colour(run.group) : "c7"}`);
        svg("title", {}, line, `${run.name} was continued from step ${run.restarts.step[i]}`);
      });
    });
  }

  drawCurve(root, curve) {
    const path = (points, style) =>
      svg("path", { class: `curve ${style}`, d: pathOf(points, this.x, this.y) }, root);
    if (curve.line !== curve.points) path(curve.points, `faint ${curve.style}`);
    path(curve.line, curve.style);
    const known = curve.line.filter(([, y]) => y !== null);
    if (known.length <= 40) for (const point of known) this.drawDot(root, curve, point, 2.4);
  }

  drawDot(parent, curve, [x, y], r) {
    svg("circle", { class: `dot ${curve.style}`, cx: this.x.map(x), cy: this.y.map(y), r }, parent);
  }

  drawRule(parent, at, style) {
    const x = this.x.map(at).toFixed(1);
    const [y1, y2] = [MARGIN.top, HEIGHT - MARGIN.bottom];
    return svg("line", { class: style, x1: x, x2: x, y1, y2 }, parent);
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
      this.drawRule(this.cursor, at, "rule");
      const x = this.x.map(at);
      const leftwards = x > this.plot.clientWidth / 2;
      const place = { x: x + (leftwards ? -6 : 6), y: MARGIN.top + 10 };
      const anchor = leftwards ? "end" : "start";
      const text = AXES[view.x].text(at);
      svg("text", { class: "readout", ...place, "text-anchor": anchor }, this.cursor, text);
    }
    for (const curve of this.curves) {
      const known = curve.hidden || !this.x ? [] : curve.line.filter(([, y]) => y !== null);
      const slack = (this.x?.high - this.x?.low) / 50;
      const point = at === null ? known.at(-1) : nearest(known, at, slack);
      curve.value.textContent = point ? number(point[1]) : "–";
      if (point && at !== null) this.drawDot(this.cursor, curve, point, 4);
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

const [main, others] = ["charts", "others"].map((id) => document.getElementById(id));
const cards = data.charts.map((chart) => new ChartCard(chart, chart.main ? main : others));

function setCursor(value) {
  view.cursor = value;
  for (const card of cards) card.showCursor();
}

function redraw() {
  view.cursor = null;
  for (const card of cards) card.draw();
}

for (const radio of document.querySelectorAll("input[name=x]")) {
  radio.disabled = !cards.some((card) => card.curves.some((curve) => curve.x[radio.value]));
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
