"use strict";
// Builds the page from the account in #data. Text goes in through textContent only.
const DATA = JSON.parse(document.getElementById("data").textContent);
const BUCKET_COLORS = {
  productive: "#1f9d6b", data_wait: "#e0a11b", validation: "#4a8df0", checkpoint: "#8a63d2", startup: "#9aa5b8",
  waiting: "#c8cfdb", rescale_unwind: "#f2a3a0", rescale_group: "#ec7f7b", rescale_state: "#e25c5c",
  rescale_wrap: "#c94a54", rescale_first_step: "#a83a4c", lost: "#5c1f2e",
};
const PHASES = ["unwind", "wait", "group", "state", "wrap", "first_step"];
const PHASE_COLORS = ["#f2a3a0", "#c8cfdb", "#ec7f7b", "#e25c5c", "#c94a54", "#a83a4c"];
const GENERATION_COLORS = ["#4a8df0", "#1f9d6b", "#e0a11b", "#8a63d2", "#e2706a", "#2aa7b8", "#b7679e", "#7d8b3a"];
const LINES = ["#2f6fed", "#e2706a", "#1f9d6b", "#8a63d2", "#e0a11b"];
const charts = [];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const ms = (seconds) => (seconds === null || seconds === undefined ? "–" : `${Math.round(1000 * seconds)} ms`);
const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en-US"));
function duration(seconds) {
  const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor((whole % 3600) / 60);
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${whole % 60} s` : `${seconds.toFixed(1)} s`;
}
function bytes(value) {
  if (!value) return "–";
  const power = Math.min(4, Math.floor(Math.log2(value) / 10));
  return `${(value / 2 ** (10 * power)).toFixed(power ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}
// Nodes are host-pid-random: on one host the host says nothing.
function shortener(run) {
  const hosts = new Set(run.timeline.map((worker) => worker.host));
  return (name) => (hosts.size === 1 ? name.replaceAll(`${[...hosts][0].split(".")[0]}-`, "") : name);
}

function section(title, note, ...children) {
  return el("section", {}, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, ...children);
}
function chart(title, note, height, build) {
  const node = el("div", { class: "chart" });
  charts.push({ node, height, build });
  return section(title, note, node);
}
function table(head, rows) {
  const numeric = head.map((_, i) => rows.every((row) => /^[-–\d.,%\s]*(ms|s|B|KiB|MiB|GiB|TiB)?$/.test(String(row[i] ?? ""))));
  const long = head.map((_, i) => rows.some((row) => String(row[i] ?? "").length > 24));
  const cell = (tag, value, i) => {
    const node = el(tag, numeric[i] ? { class: "number" } : long[i] ? { class: "long" } : {});
    node.append(value instanceof Node ? value : String(value ?? "–"));
    return node;
  };
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((text, i) => cell("th", text, i)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((value, i) => cell("td", value, i)))))));
}

function layout(height, extra = {}) {
  const narrow = window.innerWidth < 720;
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  return {
    height, margin: { l: narrow ? 40 : 56, r: 12, t: 26, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--soft"), size: 12, family: "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif" },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 }, traceorder: "normal" }, hovermode: "closest",
    dragmode: narrow ? false : "zoom", ...extra,
    xaxis: { ...axis, ...(extra.xaxis || {}) }, yaxis: { ...axis, ...(extra.yaxis || {}) },
    ...(extra.yaxis2 ? { yaxis2: { ...axis, ...extra.yaxis2 } } : {}),
  };
}
function marks(run) {
  const real = run.generations.filter((generation) => generation.rescale !== "start");
  return {
    shapes: real.map((g) => ({ type: "line", x0: g.step, x1: g.step, yref: "paper", y0: 0, y1: 1,
      line: { color: g.rescale === "failure" ? "#e25c5c" : css("--soft"), width: 1, dash: "dot" } })),
    annotations: real.length > 14 ? [] : real.map((g) => ({ x: g.step, yref: "paper", y: 1, yanchor: "bottom", showarrow: false,
      text: `${g.world_size}`, hovertext: `generation ${g.label}: ${g.reason}`, font: { size: 11 } })),
  };
}

function tiles(run) {
  const pauses = run.rescales.map((rescale) => rescale.pause);
  const complete = run.audits.filter((audit) => audit.complete);
  const wrong = complete.reduce((sum, audit) => sum + audit.missing + audit.repeated, 0);
  const found = [
    ["goodput", run.goodput.wall ? percent(run.goodput.goodput) : "–", "good"],
    ["goodput without start-up", run.goodput.wall ? percent(run.goodput.after_startup) : "–", "good"],
    ["optimizer steps", number(run.run.steps), ""],
    ["rescales", number(Math.max(0, run.generations.length - run.run.instances)), ""],
    ["worst pause", pauses.length ? ms(Math.max(...pauses)) : "–", ""],
  ];
  if (run.audits.length) found.push(["samples lost or repeated", number(wrong), wrong ? "warn" : "good"]);
  return el("div", { class: "tiles" }, ...found.map(([label, value, kind]) =>
    el("div", { class: `tile ${kind}` }, el("div", { class: "value" }, value), el("div", { class: "label" }, label))));
}

function timeline(run) {
  const short = shortener(run);
  const name = (worker) => short(worker.worker) + (worker.incarnation > 1 ? ` (start ${worker.incarnation})` : "");
  const bar = (worker, from, to, color, text, hover) => ({
    type: "bar", orientation: "h", y: [name(worker)], x: [Math.max(0.001, to - from)], base: [from], text: [text], textposition: "inside",
    insidetextanchor: "middle", textangle: 0, constraintext: "inside", insidetextfont: { color: "#fff", size: 11 }, marker: { color, line: { color: css("--card"), width: 1 } }, hovertemplate: `${hover}<extra></extra>`, showlegend: false });
  return chart("Workers and generations", "Each bar is a worker's stay in a generation; grey is its start-up. × marks a worker that was killed.", 90 + 34 * run.timeline.length, () => {
    const traces = run.timeline.flatMap((worker) => [
      bar(worker, worker.started, worker.stays.length ? worker.stays[0].from : worker.ended, css("--line"), "", `${name(worker)} starts`),
      ...worker.stays.map((stay) => bar(worker, stay.from, stay.to, GENERATION_COLORS[(stay.generation - 1) % GENERATION_COLORS.length], stay.label,
        `${name(worker)}<br>generation ${stay.label}, rank ${stay.rank}<br>${duration(stay.to - stay.from)}`)),
    ]);
    const killed = run.timeline.filter((worker) => worker.ending === "killed");
    if (killed.length) traces.push({ type: "scatter", mode: "markers", x: killed.map((worker) => worker.ended), y: killed.map(name),
      marker: { symbol: "x", size: 10, color: "#e25c5c" }, hovertemplate: "killed<extra></extra>", showlegend: false });
    return [traces, layout(90 + 34 * run.timeline.length, { barmode: "overlay", bargap: 0.3, margin: { l: 40, r: 12, t: 8, b: 40 },
      xaxis: { title: { text: "seconds since the run's start" } }, yaxis: { autorange: "reversed" } })];
  });
}

function curves(runs) {
  const single = runs.length === 1;
  const label = (run, text) => (single ? text : `${run.run.run}: ${text}`);
  const line = (x, y, name, color, extra = {}) => ({ type: "scatter", mode: "lines", x, y, name, line: { color, width: 2 }, ...extra });
  const shown = single ? marks(runs[0]) : {};
  const found = [chart("Loss", single ? "Mean of the ranks. Dotted lines are rescales (red: after a death), the figures on top the new world size." : "Mean of the ranks.", 320, () => [
    runs.map((run, i) => line(run.curves.step, run.curves.loss, label(run, "loss"), LINES[i % LINES.length])),
    layout(320, { showlegend: !single, xaxis: { title: { text: "optimizer step" } }, ...(single ? marks(runs[0]) : shown) })])];
  const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.evaluations)))];
  const pair = el("div", { class: "two" });
  if (metrics.length) pair.append(chart("Validation", "", 280, () => [
    runs.flatMap((run, i) => metrics.filter((metric) => run.evaluations[metric]).map((metric, j) =>
      line(run.evaluations[metric].map((p) => p[0]), run.evaluations[metric].map((p) => p[1]), label(run, metric), LINES[(i * metrics.length + j) % LINES.length], { mode: "lines+markers" }))),
    layout(280, { showlegend: true, xaxis: { title: { text: "optimizer step" } } })]));
  pair.append(chart("Throughput", "", 280, () => [
    runs.flatMap((run, i) => [
      line(run.curves.step, run.curves.samples_per_second, label(run, "samples per second"), LINES[i % LINES.length]),
      line(run.curves.step, run.curves.world_size, label(run, "workers"), LINES[(i + 3) % LINES.length], { yaxis: "y2", line: { color: LINES[(i + 3) % LINES.length], width: 1.5, shape: "hv", dash: "dot" } }),
    ]),
    layout(280, { showlegend: true, xaxis: { title: { text: "optimizer step" } }, yaxis: { rangemode: "tozero" },
      yaxis2: { overlaying: "y", side: "right", rangemode: "tozero", dtick: 1, showgrid: false } })]));
  found.push(pair);
  return found;
}

function goodput(run) {
  const short = shortener(run);
  const workers = run.goodput.workers;
  const names = workers.map((worker) => short(worker.worker) + (worker.incarnation > 1 ? ` (start ${worker.incarnation})` : ""));
  const height = 120 + 30 * workers.length;
  return chart("Where the time went", `${duration(run.goodput.wall)} of worker time in all; what is neither productive nor start-up: ${percent(1 - run.goodput.goodput - run.goodput.total.startup / (run.goodput.wall || 1))}.`, height, () => [
    Object.keys(BUCKET_COLORS).filter((bucket) => run.goodput.total[bucket] > 0.0005 * run.goodput.wall).map((bucket) => ({
      type: "bar", orientation: "h", name: DATA.labels[bucket], y: names, x: workers.map((worker) => (100 * worker[bucket]) / worker.wall),
      customdata: workers.map((worker) => duration(worker[bucket])), marker: { color: BUCKET_COLORS[bucket] },
      hovertemplate: `${DATA.labels[bucket]}: %{x:.1f} % (%{customdata})<extra></extra>` })),
    layout(height, { barmode: "stack", bargap: 0.35, showlegend: true, xaxis: { range: [0, 100], ticksuffix: " %" }, yaxis: { autorange: "reversed" } })]);
}
function pauses(run) {
  const real = run.generations.filter((generation) => generation.pause !== null);
  if (!real.length) return null;
  return chart("Pauses by phase", "Median of the survivors, from leaving a generation to the end of the first step in the next.", 300, () => [
    PHASES.map((phase, i) => ({ type: "bar", name: phase.replace("_", " "), x: real.map((g) => `gen ${g.label}<br>${g.rescale}`), y: real.map((g) => 1000 * g[phase]),
      marker: { color: PHASE_COLORS[i] }, hovertemplate: `${phase.replace("_", " ")}: %{y:.0f} ms<extra></extra>` })),
    layout(300, { barmode: "stack", bargap: 0.45, showlegend: true, yaxis: { title: { text: "ms" } } })]);
}

function tables(run) {
  const short = shortener(run);
  const cost = new Map(run.costs.map((row) => [`${row.instance}.${row.generation}`, row]));
  const found = [section("Generations", "", table(["", "why", "workers", "at step", "pause", "worst", ...(run.costs.length ? ["steps lost", "redone"] : [])],
    run.generations.map((g) => [g.label, short(g.reason), g.world_size, number(g.step), ms(g.pause), ms(g.worst_pause),
      ...(run.costs.length ? [cost.get(`${g.instance}.${g.generation}`)?.steps_lost, cost.get(`${g.instance}.${g.generation}`)?.steps_redone] : [])])))];
  if (run.audits.length) found.push(section("Audit of samples", "From the workers' ledgers: what committed steps consumed, epoch by epoch. An epoch in which a run was stopped is not whole.",
    table(["epoch", "", "consumed", "missing", "repeated", "padding"], run.epochs.map((a) => [a.epoch, el("span", { class: "pill" }, a.complete ? (a.missing + a.repeated ? "look here" : "every sample once") : "not whole"), number(a.consumed), number(a.missing), number(a.repeated), number(a.padding)]))));
  if (run.checkpoints.length) found.push(section("Checkpoints", "", table(["step", "epoch", "file", "size", "took", ""],
    run.checkpoints.map((c) => [c.step, c.epoch, c.path.split("/").pop(), bytes(c.size), ms(c.seconds), el("span", { class: "pill" }, c.pruned ? "pruned" : "kept")]))));
  if (run.events.length) found.push(section("What happened", "As the agents wrote it down; seconds since the run's start.", table(["s", ""], run.events.map((e) => [e.time.toFixed(1), short(e.text)]))));
  if (run.corrupt.length) found.push(section("Corrupt lines", "Passed over.", table(["file", "line", "problem"], run.corrupt.map((c) => [c.file, c.line, c.problem]))));
  if (run.paces.length) found.push(section("Workers beside the median", "Busy with a step of its own: waiting for data, forward, backward; not waiting for the others.",
    table(["worker", "busy", "relative"], run.paces.map((p) => [short(p.worker), ms(p.busy), p.relative.toFixed(2)]))));
  const nodes = Object.entries(run.hardware);
  const sizes = new Set(["memory", "memory_limit", "disk", "disk_free"]);
  const keys = [...new Set(nodes.flatMap(([, hardware]) => Object.keys(hardware)))];
  const show = (key, value) => (sizes.has(key) ? bytes(value) : Array.isArray(value) ? value.map((one) => (one.memory || one.total ? `${one.name} (${bytes(one.memory || one.total)})` : one.name)).join(", ") || "none" : value);
  const differs = (key) => new Set(nodes.map(([, hardware]) => JSON.stringify(hardware[key]))).size > 1;
  const shared = keys.filter((key) => !differs(key)), own = keys.filter((key) => differs(key) && key !== "disk_free" && key !== "disks");
  const description = Object.entries(run.description).map(([key, value]) => [key.replaceAll("_", " "), typeof value === "number" ? number(value) : value]);
  if (nodes.length || description.length) found.push(section("Environment", `What is trained, and what its ${nodes.length} nodes have in common.`,
    table(["", ""], [...description, ...(nodes.length ? shared.map((key) => [key.replaceAll("_", " "), show(key, nodes[0][1][key])]) : [])])));
  if (own.length) found.push(section("What differs between the nodes", "", table(["node", ...own.map((key) => key.replaceAll("_", " "))], nodes.map(([node, hardware]) => [short(node), ...own.map((key) => show(key, hardware[key]))]))));
  return found;
}

function comparison(runs) {
  const last = (list) => { const known = list.filter((value) => value !== null); return known.length ? known[known.length - 1].toPrecision(4) : "–"; };
  const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.evaluations)))];
  const rows = [
    ["goodput", (run) => percent(run.goodput.goodput)], ["steps", (run) => number(run.run.steps)], ["duration", (run) => duration(run.run.seconds)],
    ["generations", (run) => number(run.generations.length)], ["worst pause", (run) => (run.rescales.length ? ms(Math.max(...run.rescales.map((r) => r.pause))) : "–")],
    ["last loss", (run) => last(run.curves.loss)], ...metrics.map((metric) => [metric, (run) => last((run.evaluations[metric] || []).map((p) => p[1]))]),
    ...Object.keys(DATA.labels).filter((b) => runs.some((run) => run.goodput.total[b] > 0.005)).map((b) => [DATA.labels[b], (run) => `${run.goodput.total[b].toFixed(2)} s`]),
  ];
  return section("Side by side", "", table(["", ...runs.map((run) => run.run.run)], rows.map(([label, value]) => [label, ...runs.map(value)])));
}

function draw() {
  for (const { node, build } of charts) {
    const [traces, look] = build();
    Plotly.react(node, traces, look, { displayModeBar: false, responsive: true });
  }
}
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

const runs = DATA.runs, root = document.getElementById("report"), first = runs[0];
const toggle = el("button", { id: "theme", type: "button" });
root.append(el("header", {}, el("div", {}, el("h1", {}, runs.map((run) => run.run.run).join(" and ")),
  el("p", { class: "soft" }, runs.length > 1 ? `${runs.length} runs compared` : `${first.description.model || "A model"} · ${first.run.started} · ${duration(first.run.seconds)} · ${first.run.workers} workers in ${first.generations.length} generations${first.run.instances > 1 ? ` of ${first.run.instances} instances (2.1 is the first generation of the second)` : ""}`)), toggle));
for (const run of runs) if (run.warnings.length) root.append(el("section", { class: "attention" }, el("ul", {}, ...run.warnings.map((text) => el("li", {}, runs.length > 1 ? `${run.run.run}: ${text}` : text)))));
// Of a run in restart mode only agents write: it has generations, but no steps.
const steps = runs.some((run) => run.curves.step.length) ? curves(runs) : [];
if (runs.length === 1) root.append(tiles(first), ...(first.timeline.length ? [timeline(first)] : []), ...steps);
else root.append(comparison(runs), ...steps);
for (const run of runs) {
  if (runs.length > 1) root.append(el("h1", {}, run.run.run));
  const waits = pauses(run);
  root.append(...(run.goodput.wall ? [goodput(run)] : []), ...(waits ? [waits] : []), ...tables(run));
}
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const asked = location.hash === "#dark" || location.hash === "#light" ? location.hash.slice(1) : null;
setTheme(asked || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); draw(); });
toggle.addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); draw(); });
draw();
