// Numbers as text, scales and their ticks; stands before report.js in the same script.
"use strict";

const trim = (value, digits) => String(+value.toPrecision(digits));

function si(value) {
  const [unit, suffix] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]].find(
    ([unit]) => Math.abs(value) >= unit) ?? [1, ""];
  return trim(value / unit, 4) + suffix;
}

function number(value) {
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) {
    return value.toExponential(2).replace(/\.?0*e\+?/, "e");
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
  if (low === high) {
    const half = (Math.abs(low) || 1) / 2;
    [low, high] = log ? [low / 2, high * 2] : [low - half, high + half];
  }
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
  const ticks = niceTicks(low / unit, high / unit, count);
  return ticks.map((v) => [v * unit, `${trim(v, 4)} ${suffix}`]);
}
