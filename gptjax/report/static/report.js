// Draws the charts of a report with uPlot from the JSON in the page; requests nothing.
const data = JSON.parse(document.getElementById("data").textContent);
const view = { x: "tokens", from: 0, logX: false, smoothing: 0, seeds: false };
const several = data.runs.length > 1;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const colourOf = (i) => css(`--c${i % 8}`); // --c0 to --c7 in report.css

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
function number(value) {
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
  return size >= 1e4 ? compact.format(value) : String(+value.toPrecision(4));
}
const longest = Math.max(0, ...data.runs.flatMap((run) => run.tables.map((t) => t.seconds?.at(-1) ?? 0)));
const [unit, size] = [["days", 86400], ["hours", 3600], ["minutes", 60], ["seconds", 1]].find(
  ([unit, size]) => longest > 2 * size || unit === "seconds");
const AXES = { tokens: "tokens", seconds: `${unit} of training`, flops: "model FLOPs", step: "steps" };
const xText = (x) => (view.x === "step" ? Math.round(x).toLocaleString("en") : number(x));

/** Exponential moving average, bias-corrected as Adam's. */
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** The axes of x for columns of steps, tokens and seconds. */
function axesOf({ step, tokens, seconds }, flopsPerToken) {
  const scaled = (values, factor) => factor && values?.map((value) => value && value * factor);
  return { step, tokens, seconds: scaled(seconds, 1 / size), flops: scaled(tokens, flopsPerToken) };
}

/** What tells the names of a chart's metrics from each other: "train" and "val" of train/loss, val/loss. */
function partsOf(names) {
  const split = names.map((name) => name.split("/"));
  const differs = (part, i) => split.some((other) => other[i] !== part);
  return split.map((parts) => parts.filter(differs).join("/"));
}

/** The runs, or in the place of several seeds their mean. */
function runsShown() {
  if (view.seeds) return data.runs;
  const groups = data.seeds.map((run) => run.group);
  return [...data.runs.filter((run) => !groups.includes(run.group)), ...data.seeds];
}

function curvesOf(chart) {
  const parts = partsOf(chart.names);
  return runsShown().flatMap((run) => chart.names.flatMap((name, n) => {
    const table = run.tables.find((t) => Object.hasOwn(t.values, name));
    if (!table) return [];
    const label = several ? `${run.name} ${parts[n]}`.trim() : parts[n] || name.split("/").pop();
    const dash = name.startsWith("val/") ? [6, 4] : undefined, smoothable = data.means.includes(name);
    const y = table.values[name], errors = table.errors?.[name];
    const edge = (sign) => errors && y.map((value, i) => value && value + sign * errors[i]);
    const columns = { x: axesOf(table, run.flops_per_token), y, band: errors && [edge(1), edge(-1)] };
    return { ...columns, label, dash, smoothable, colour: several ? run.group : n, show: true };
  }));
}

/** Columns of x and y from `from` on that the axes can show; y is null where the curve is broken. */
function columnsOf(curve, y, from, logY) {
  const x = curve.x[view.x] ?? [];
  const shown = [...x.keys()].filter((i) => x[i] !== null && x[i] >= from && (!view.logX || x[i] > 0));
  return [shown.map((i) => x[i]), shown.map((i) => (logY && !(y[i] > 0) ? null : y[i]))];
}

/** Logarithmic scales end at a multiple of a power of ten, as their ticks need it. */
function scaleOf(log) {
  const round = (value, by, power = 10 ** Math.floor(Math.log10(value))) =>
    +(by(value / power) * power).toPrecision(2);
  const range = (u, low, high) => (low === null || low === high)
    ? uPlot.rangeLog(low ?? 1, high ?? 10, 10, true) : [round(low, Math.floor), round(high, Math.ceil)];
  return { time: false, ...(log && { distr: 3, range }) };
}

function axisOf(text, options) {
  const font = "11.5px system-ui, sans-serif", grid = { stroke: css("--line"), width: 1 };
  const values = (u, splits) => splits.map((value) => (value === null ? "" : text(value)));
  const look = { stroke: css("--soft"), font, labelFont: font, grid, ticks: { ...grid, size: 4 } };
  return { ...look, values, ...options };
}

/** A curve as a series of uPlot; `look` is line, faint (behind a smoothed one) or edge (of a band). */
function seriesOf(curve, y, look) {
  const label = document.createElement("button");
  Object.assign(label, { type: "button", title: "show or hide", ariaPressed: curve.show });
  label.textContent = curve.label;
  const stroke = colourOf(curve.colour), known = y.filter((value) => value !== null);
  const read = (u, at) => (u.cursor.idx == null ? known.at(-1) : at); // without a cursor: the last value
  const value = (u, at) => (curve.show && read(u, at) != null ? number(read(u, at)) : "–");
  const points = { show: look === "line" && known.length <= 40, size: 5, fill: stroke };
  const width = look === "edge" ? 0 : curve.dash ? 2 : 1.5;
  const line = { stroke, dash: curve.dash, width, alpha: look === "faint" ? 0.25 : 1 };
  return { label, value, show: curve.show, class: look === "line" ? undefined : "faint", points, ...line };
}

function drawRestarts({ ctx, bbox, scales, valToPos }) {
  ctx.save();
  ctx.setLineDash([devicePixelRatio, 3 * devicePixelRatio]);
  ctx.lineWidth = 1.5 * devicePixelRatio;
  for (const run of data.runs) {
    ctx.strokeStyle = several ? colourOf(run.group) : css("--soft");
    for (const at of axesOf(run.restarts, run.flops_per_token)[view.x] ?? []) {
      const x = valToPos(at, "x", true);
      const shown = at !== null && at >= scales.x.min && at <= scales.x.max;
      if (shown) ctx.stroke(new Path2D(`M${x} ${bbox.top}v${bbox.height}`));
    }
  }
  ctx.restore();
}

function draw(card) {
  card.plot = card.plot?.destroy();
  card.place.replaceChildren();
  const width = (card.width = card.place.clientWidth), logY = card.log.checked, label = AXES[view.x];
  if (!width) return; // folded away
  const from = view.from * Math.max(...card.curves.map((curve) => curve.x[view.x]?.at(-1) ?? 0));
  const smoothed = card.curves.filter((curve) => view.smoothing && curve.smoothable);
  const shown = (curve, y) => (smoothed.includes(curve) ? smooth(y, view.smoothing) : y);
  const banded = card.curves.filter((curve) => curve.band); // their edges come first, in pairs
  const layers = [
    ...banded.flatMap((curve) => curve.band.map((edge) => [curve, shown(curve, edge), "edge"])),
    ...smoothed.filter((curve) => !curve.band).map((curve) => [curve, curve.y, "faint"]),
    ...card.curves.map((curve) => [curve, shown(curve, curve.y), "line"]),
  ];
  const bands = banded.map((curve, i) => ({ series: [2 * i + 1, 2 * i + 2], fill: `${colourOf(curve.colour)}33` }));
  const tables = layers.map(([curve, y]) => columnsOf(curve, y, from, logY));
  if (!tables.some(([, y]) => y.some((value) => value !== null))) return card.place.append("nothing to show");
  const series = layers.map(([curve, , look], i) => seriesOf(curve, tables[i][1], look));
  const onToggle = (u, i, { show }) => {
    if (i === null || show === undefined) return;
    const curve = layers[i - 1][0];
    curve.show = series[i - 1].label.ariaPressed = show;
    layers.forEach(([other], j) => other === curve && j !== i - 1 && u.setSeries(j + 1, { show }, false));
    u.setLegend({ idx: u.cursor.idx }, false); // uPlot itself reads values again only when the cursor moves
  };
  const ends = tables.map(([x]) => [x[0], x.at(-1)]); // beyond them, no value is read out
  const prox = (u, i, _, x) => (x < ends[i - 1][0] || x > ends[i - 1][1] ? width / 50 : 1e9);
  const start = [view.logX || from ? [] : [0]]; // a whole linear axis of x begins at 0
  card.plot = new uPlot({
    width, height: 245,
    series: [{ label, value: (u, x) => (x === null ? "last" : xText(x)) }, ...series],
    bands,
    scales: { x: scaleOf(view.logX), y: scaleOf(logY) },
    axes: [axisOf(xText, { label, labelSize: 18, size: 26, space: 90 }), axisOf(number, { size: 54 })],
    cursor: { y: false, sync: { key: "x", scales: ["x", null] }, hover: { prox, skip: [null] } },
    legend: { markers: { dash: (u, i) => (series[i - 1].dash ? "dashed" : "solid") } },
    hooks: { drawAxes: [drawRestarts], setSeries: [onToggle] },
  }, uPlot.join([start, ...tables]), card.place);
  Object.assign(card.plot.ctx.canvas, { role: "img", ariaLabel: `${card.title} over ${label}` });
}

const section = document.getElementById("curves");
section.hidden = false;
const cards = [...document.querySelectorAll(".card")].map((figure, i) => ({
  chart: data.charts[i], title: data.charts[i].title, curves: curvesOf(data.charts[i]),
  log: figure.querySelector(".log input"), place: figure.querySelector(".plot"),
})).filter((card) => card.curves.length);
const redraw = () => cards.forEach(draw);
for (const card of cards) {
  new ResizeObserver(() => card.place.clientWidth !== card.width && draw(card)).observe(card.place);
}
for (const radio of document.querySelectorAll("input[name=x]")) {
  radio.disabled = !cards.some((card) => card.curves.some((curve) => curve.x[radio.value]));
}
section.addEventListener("input", ({ target }) => {
  const value = { checkbox: target.checked, range: +target.value, radio: target.value }[target.type];
  if (target.name) view[target.name] = value;
  if (target.type === "range") target.nextElementSibling.textContent = target.value;
  if (target.name === "seeds") cards.forEach((card) => (card.curves = curvesOf(card.chart)));
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.querySelector("input[name=x]:not(:disabled)")?.click(); // draws
