// Learning curves: lines of several runs over each other, with the values under the pointer.
const GROUPS = [
  ["Loss and what it is made of", () => true],
  ["Validation", (name) => name.startsWith("validation_")],
  ["Schedules", (name) => /^(learning_rate|weight_decay|teacher_|momentum|label_weight)/.test(name)],
  ["Speed and memory", (name) => /^(clips_per_s|data_s|step_s|peak_memory_mb)$/.test(name)],
];
const plot = one("#plot"), FIRST = 10, STEPS = 20;
const shownNumber = (value) => (value === null || value === undefined ? "–" : String(+value.toPrecision(4)));

function series(metric) {
  // A metric is in one part of a training: with the steps, or with the validations.
  return data.curves.map((curve, number) => {
    const part = curve.parts.find(([, values]) => values[metric]);
    return { ...curve, number, steps: part ? part[0] : [], values: part ? part[1][metric] : [] };
  });
}
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power, found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n += 1) found.push(+(n * step).toPrecision(10));
  return found;
}
function decades(low, high) {
  const found = [];
  for (let n = Math.floor(Math.log10(low)); 10 ** n <= high * 1.0001; n += 1)
    for (const factor of high / low > 1000 ? [1] : [1, 2, 5])
      if (factor * 10 ** n >= low * 0.9999 && factor * 10 ** n <= high * 1.0001) found.push(+(factor * 10 ** n).toPrecision(6));
  return found;
}
function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
// Each is a part of the one before and is drawn over it: of equal curves all are seen.
const DASHES = ["", "13 3", "8 2 3 3", "6 10", "2 2 2 10", "2 14"];
const dash = (line) => line.number % DASHES.length;
const look = (number) => ({ stroke: `var(--s${number % 10})`, "stroke-dasharray": DASHES[dash({ number })] });

function chart() {
  const names = unique(data.curves.flatMap((curve) => curve.parts.flatMap((part) => Object.keys(part[1]))));
  if (!names.length) {
    plot.append(make("p", {}, "No training has written any yet."));
    return;
  }
  const groupOf = (name) => GROUPS.findLastIndex(([, belongs]) => belongs(name));
  names.sort((a, b) => (b === "loss") - (a === "loss") || a.localeCompare(b));
  const select = make("select", { id: "curve" });
  GROUPS.forEach(([label], number) => {
    const options = names.filter((name) => groupOf(name) === number).map((name) => make("option", {}, name));
    if (options.length) select.append(make("optgroup", { label }, ...options));
  });
  const log = make("select", { id: "scale" }, make("option", { value: "" }, "linear"), make("option", { value: "log" }, "logarithmic"));
  const note = make("p", { class: "note" }), legend = make("ul", { class: "legend" });
  const frame = make("div", { class: "chart", tabindex: "0", role: "img" });
  const tools = make("div", { class: "tools" }, make("label", {}, "Curve", select), make("label", {}, "Scale", log));
  plot.append(tools, frame, make("p", { class: "sr", role: "status", id: "values" }), note, legend);
  const boxes = data.curves.map((curve, number) => {
    const box = make("input", { type: "checkbox" });
    const swatch = svg("svg", { "aria-hidden": "true", viewBox: "0 0 44 12" }, svg("line", { x1: 2, x2: 42, y1: 6, y2: 6, ...look(number) }));
    legend.append(make("li", { "data-curve": curve.run }, make("label", {}, box, swatch, make("span", { class: "name" }, curve.name), make("output"))));
    box.addEventListener("change", () => {
      const names = boxes.flatMap((other, n) => (other.checked ? [data.curves[n].name] : []));
      choose("runs", names.length ? names : ["none"]);
    });
    return box;
  });
  select.addEventListener("change", () => choose("curve", select.value === names[0] ? "" : select.value));
  log.addEventListener("change", () => choose("scale", log.value));

  let view = null, at = null;
  const hiddenRow = (run) => {
    const row = inOrder.find((found) => data.rows.find((x) => x.name === found.dataset.row).runs.includes(run));
    return row && row.hidden;
  };
  function draw() {
    select.value = names.includes(chosen.get("curve")) ? chosen.get("curve") : names[0];
    log.value = chosen.get("scale") || "";
    const asked = list("runs"), metric = select.value;
    const having = series(metric).filter((one) => one.values.some((value) => value !== null) && !hiddenRow(one.run));
    const firsts = having.slice(0, FIRST).map((one) => one.name);
    boxes.forEach((box, number) => {
      const curve = data.curves[number];
      box.checked = asked.length ? asked.includes(curve.name) : firsts.includes(curve.name);
      box.closest("li").hidden = !having.some((one) => one.number === number);
    });
    const lines = having.filter((one) => boxes[one.number].checked);
    const means = Math.max(1, ...lines.map((one) => one.mean_of));
    note.textContent = means > 1 ? `A point is the mean of up to ${means} logged steps. The pointer or the arrow keys show values.` : "The pointer or the arrow keys show values.";
    view = scaled(lines, log.value === "log", frame.clientWidth || 600, frame.clientHeight || 300);
    frame.replaceChildren(view.picture);
    const drawn = lines.map((one) => one.name).join(", ") || "no run";
    frame.setAttribute("aria-label", `${metric} over steps of ${drawn}; arrow keys show values`);
    move(null);
  }
  function move(x) {
    at = x;
    view.cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
    const said = [];
    for (const item of legend.children) one("output", item).textContent = "";
    if (x === null) return;
    view.cursor.setAttribute("x1", view.toX(x));
    view.cursor.setAttribute("x2", view.toX(x));
    for (const line of view.lines) {
      const [low, high] = view.range, gap = (high - low) / STEPS / 2;
      if (x < line.steps[0] - gap || x > line.steps[line.steps.length - 1] + gap) continue; // has ended
      const near = line.steps.reduce((best, step, n) => (Math.abs(step - x) < Math.abs(line.steps[best] - x) ? n : best), 0);
      const text = shownNumber(line.values[near]);
      one("output", legend.children[line.number]).textContent = text;
      said.push(`${line.name} ${text}`);
    }
    one("#values").textContent = `Step ${Math.round(x)}: ${said.join(", ")}`;
    view.label.textContent = `step ${Math.round(x).toLocaleString("en")}`;
  }
  frame.addEventListener("pointermove", (event) => move(view.fromX(event.clientX - frame.getBoundingClientRect().left)));
  frame.addEventListener("pointerleave", () => { move(null); view.label.textContent = "step"; });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const [low, high] = view.range;
    move(Math.min(high, Math.max(low, (at === null ? low : at) + (step * (high - low)) / STEPS)));
  });
  changed.push(draw);
  let width = frame.clientWidth;
  new ResizeObserver(() => {
    if (frame.clientWidth !== width) { width = frame.clientWidth; draw(); }
  }).observe(frame);
}
function scaled(lines, log, width, height) {
  const points = lines.flatMap((one) => one.values.filter((value) => value !== null && (!log || value > 0)));
  const steps = lines.flatMap((one) => one.steps);
  const reduce = (values, call, empty) => (values.length ? values.reduce((a, b) => call(a, b)) : empty);
  const range = [reduce(steps, Math.min, 0), Math.max(reduce(steps, Math.max, 1), reduce(steps, Math.min, 0) + 1)];
  let low = reduce(points, Math.min, log ? 0.1 : 0), high = reduce(points, Math.max, 1);
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  const box = { left: 62, right: width - 14, top: 14, bottom: height - 34 }, flat = log ? Math.log10 : (value) => value;
  const toX = (x) => box.left + ((x - range[0]) / (range[1] - range[0])) * (box.right - box.left);
  const fromX = (x) => Math.min(range[1], Math.max(range[0], range[0] + ((x - box.left) / (box.right - box.left)) * (range[1] - range[0])));
  const toY = (y) => box.bottom - ((flat(y) - flat(low)) / (flat(high) - flat(low))) * (box.bottom - box.top);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const tick of log ? decades(low, high) : ticks(low, high, 5))
    picture.append(svg("line", { class: "gridline", x1: box.left, x2: box.right, y1: toY(tick), y2: toY(tick) }),
      svg("text", { x: box.left - 8, y: toY(tick) + 4, "text-anchor": "end" }, shownNumber(tick)));
  for (const tick of ticks(...range, width > 600 ? 8 : 4))
    picture.append(svg("text", { x: toX(tick), y: box.bottom + 16, "text-anchor": "middle" }, tick.toLocaleString("en")));
  const label = svg("text", { x: box.right, y: height - 4, "text-anchor": "end" }, "step");
  picture.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }), label);
  for (const line of [...lines].sort((a, b) => dash(a) - dash(b))) {
    let path = "", pen = "M", count = 0;
    line.values.forEach((value, n) => {
      if (value === null || (log && value <= 0)) { pen = "M"; return; }
      path += `${pen}${toX(line.steps[n]).toFixed(1)} ${toY(value).toFixed(1)}`;
      pen = "L";
      count += 1;
    });
    picture.append(svg("path", { d: count === 1 ? `${path}h0.01` : path, ...look(line.number), ...(count === 1 ? { "stroke-width": 6, "stroke-linecap": "round" } : {}) }));
  }
  const cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  picture.append(cursor);
  return { picture, cursor, label, lines, range, toX, fromX };
}
chart();
for (const call of changed) call();
document.documentElement.classList.remove("pending");
