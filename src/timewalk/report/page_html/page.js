"use strict";
// The table: filters, sorting, keys, the details of a cell. All that a reader has chosen is in the
// address behind the #, so that it can be sent to others.
const data = JSON.parse(document.getElementById("data").textContent);
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const ofAddress = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
let chosen = ofAddress();
const changed = []; // called after each change of what is chosen

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody wrote the address by hand
  }
}
const list = (key) => (chosen.get(key) ? chosen.get(key).split(",").map(decoded) : []);
function choose(key, value) {
  const text = Array.isArray(value) ? value.map(encodeURIComponent).join(",") : value;
  if (text) chosen.set(key, text);
  else chosen.delete(key);
  // A page inside another one may have an address of which only this part can be changed.
  history.replaceState(null, "", `#${chosen}`);
  for (const call of changed) call();
}

const table = one("#square");
const body = table.tBodies[0];
const heads = all("thead th[data-evaluation]", table);
const inOrder = [...body.rows];

// Filters -----------------------------------------------------------------------------------
function shownWords() {
  // A word that some run has is about runs; any other is about evaluations.
  const words = (chosen.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
  const ofRows = words.filter((word) => inOrder.some((row) => row.dataset.text.includes(word)));
  return { rows: ofRows, columns: words.filter((word) => !ofRows.includes(word)) };
}
function filter() {
  const words = shownWords(), methods = list("methods"), evaluations = list("evaluations");
  const rowShown = (element) =>
    (!methods.length || methods.includes(element.dataset.method)) &&
    words.rows.every((word) => element.dataset.text.includes(word));
  const columnShown = (element) =>
    (!evaluations.length || evaluations.includes(element.dataset.evaluation)) &&
    words.columns.every((word) => element.dataset.text.includes(word));
  for (const element of all("[data-row]")) element.hidden = !rowShown(element);
  const columns = heads.map(columnShown);
  heads.forEach((head, number) => (head.hidden = !columns[number]));
  const some = columns.includes(false);
  for (const row of inOrder) {
    columns.forEach((shown, n) => (row.cells[n + 1].hidden = !shown));
    // Of some evaluations, only the runs that were asked for one of them.
    const asked = [...row.cells].slice(1).some((cell) => !cell.hidden && !cell.matches(".no"));
    if (some && !asked) row.hidden = true;
  }
  for (const group of all(".group"))
    group.hidden = !columnShown(group) || !all("tbody tr", group).some((row) => !row.hidden);
  const rows = inOrder.filter((row) => !row.hidden).length;
  const shown = columns.filter(Boolean).length;
  one("#status").textContent = `${rows} of ${inOrder.length} rows, ${shown} of ${heads.length} columns`;
  rove();
}
function menu(id, values) {
  const details = one(`#${id}`), choices = one(".choices", details);
  for (const value of values) {
    const box = make("input", { type: "checkbox", value });
    box.addEventListener("change", () =>
      choose(id, all("input:checked", choices).map((input) => input.value)));
    choices.append(make("label", {}, box, value));
  }
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    details.open = false;
    one("summary", details).focus();
  });
  document.addEventListener("click", (event) => {
    if (!details.contains(event.target)) details.open = false;
  });
  return () => {
    const names = list(id);
    for (const box of all("input", choices)) box.checked = names.includes(box.value);
    one(".said", details).textContent = names.length ? names.join(", ") : "all";
  };
}
const unique = (values) => [...new Set(values)];
changed.push(menu("methods", unique(inOrder.map((row) => row.dataset.method))));
changed.push(menu("evaluations", unique(heads.map((head) => head.dataset.evaluation))));
const words = one("#words"), beside = one("#beside"), theme = one("#theme");
const besideFirst = document.documentElement.dataset.shown;
words.addEventListener("input", () => choose("q", words.value.trim()));
beside.addEventListener("change", () => choose("beside", beside.value === besideFirst ? "" : beside.value));
theme.addEventListener("change", () => choose("theme", theme.value));
one(".tools").addEventListener("submit", (event) => event.preventDefault());
one("#clear").addEventListener("click", () => {
  for (const key of [...chosen.keys()]) if (/^(methods|evaluations|beside|sort.*)$/.test(key)) chosen.delete(key);
  words.value = "";
  choose("q", "");
});
changed.push(() => {
  const asked = chosen.get("beside");
  const known = [...beside.options].some((option) => option.value === asked);
  beside.value = document.documentElement.dataset.shown = known ? asked : besideFirst;
  if (document.activeElement !== words) words.value = chosen.get("q") || "";
  theme.value = chosen.get("theme") || "";
  document.documentElement.dataset.theme = theme.value;
});

// Sorting -----------------------------------------------------------------------------------
function sortable(table) {
  const body = table.tBodies[0], inOrder = [...body.rows], heads = all("thead th", table);
  const words = (a, b) => a.localeCompare(b, "en", { numeric: true });
  for (const head of heads)
    one(".sort", head).addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const upFirst = head.dataset.words !== undefined || head.dataset.lower !== undefined;
      const ways = upFirst ? ["ascending", "descending"] : ["descending", "ascending"];
      const next = now === ways[0] ? ways[1] : now === ways[1] ? "" : ways[0];
      choose(table.dataset.sorts, next && `${head.dataset.key}|${next}`);
    });
  changed.push(() => {
    const [, key, way] = (chosen.get(table.dataset.sorts) || "").match(/^(.*)[|](ascending|descending)$/) || [];
    const head = heads.find((found) => found.dataset.key === key);
    for (const other of heads) other.removeAttribute("aria-sort");
    let rows = inOrder;
    if (head) {
      head.setAttribute("aria-sort", way);
      const text = head.dataset.words !== undefined, sign = way === "ascending" ? 1 : -1;
      const order = text ? words : (a, b) => a - b;
      const value = (row) => {
        const cell = row.cells[head.cellIndex]; // none where one before it spans several columns
        return cell && (cell.dataset.v ?? (text ? cell.textContent : undefined));
      };
      const filled = inOrder.filter((row) => value(row) !== undefined);
      filled.sort((a, b) => sign * order(value(a), value(b)));
      rows = [...filled, ...inOrder.filter((row) => value(row) === undefined)];
    }
    if (rows.some((row, number) => body.rows[number] !== row)) body.append(...rows);
  });
}
all("table[data-sorts]").forEach(sortable);

// Keys: one stop of the tab key for all cells, arrows between them ------------------------------
function rove(target) {
  const links = all("a.open", body).filter((link) => link.offsetParent);
  const current = target || links.find((link) => link.tabIndex === 0) || links[0];
  for (const link of all("a.open", body)) link.tabIndex = link === current ? 0 : -1;
}
body.addEventListener("keydown", (event) => {
  const link = event.target.closest("a.open");
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!link || !step) return;
  event.preventDefault();
  const rows = all("tr", body).filter((row) => !row.hidden);
  let row = rows.indexOf(link.closest("tr")) + step[0];
  let column = link.closest("td").cellIndex + step[1];
  for (; rows[row] && rows[row].cells[column]; row += step[0], column += step[1]) {
    const next = one("a.open", rows[row].cells[column]);
    if (!next || !next.offsetParent) continue;
    rove(next);
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    return;
  }
});
body.addEventListener("focusin", (event) => event.target.matches("a.open") && rove(event.target));

// Details of a cell -----------------------------------------------------------------------------
const dialog = one("#detail");
const shownAs = (value) =>
  typeof value !== "object" || value === null ? String(value)
    : Object.entries(value).map(([key, item]) => `${key}: ${typeof item === "object" ? JSON.stringify(item) : item}`).join(", ");

function metricsOf(target, row, evaluation) {
  const source = document.getElementById(target), several = row.runs.length > 1;
  if (!source) return [];
  const names = all("thead th", source.closest("table")).slice(1);
  const found = row.runs.map((run) => data.results[`${run}/${evaluation}`]);
  const head = make("tr", {}, ...["Metric", "Value"].map((text) => make("th", { scope: "col" }, text)));
  if (several) head.append(...row.runs.map((run) => make("th", { scope: "col" }, run)));
  const lines = names.map((name, number) => {
    const cell = source.cells[number + 1].cloneNode(true);
    const label = name.dataset.key, shown = [...one(".sort", name).cloneNode(true).childNodes].slice(1);
    const line = make("tr", {}, make("th", { scope: "row" }, ...shown), cell);
    if (several)
      line.append(...found.map((one) => {
        const value = one && one.metrics && one.metrics[label];
        return make("td", {}, typeof value === "number" ? String(+value.toPrecision(6)) : "–");
      }));
    return line;
  });
  const made = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  const sources = all(".source", source.closest(".group")).filter((note) => note.dataset.row === row.name);
  return [make("h3", {}, "Metrics"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Metrics" }, made),
    ...sources.map((note) => make("p", { class: "note" }, note.textContent))];
}
function originOf(run, evaluation, several) {
  const key = `${run}/${evaluation}`, result = data.results[key], parts = [];
  if (several) parts.push(make("h3", {}, run));
  if (!result) {
    const [state, why] = data.problems[key] || [];
    return state ? [...parts, make("p", {}, state === "failed" ? `Failed: ${why}` : why)] : [];
  }
  const lines = [["file", make("a", { href: result.file }, decodeURIComponent(result.file))],
    ["samples", result.samples.toLocaleString("en")], ["seconds", result.seconds],
    ...result.origin.map(([name, value]) => [data.pool[name].replaceAll("_", " "), shownAs(data.pool[value])])];
  const names = make("dl", {});
  for (const [name, value] of lines) names.append(make("dt", {}, name), make("dd", {}, value));
  if (result.files.length) {
    const links = result.files.flatMap((file) => [make("a", { href: file }, decodeURIComponent(file.split("/").pop())), " "]);
    names.append(make("dt", {}, "artefacts"), make("dd", {}, ...links));
  }
  const figures = all("#pictures figure").filter(
    (figure) => figure.dataset.run === run && figure.dataset.source === evaluation);
  const grid = make("div", { class: "grid" }, ...figures.map((figure) => figure.cloneNode(true)));
  return [...parts, ...(figures.length ? [grid] : []), make("h3", {}, several ? `Origin of ${run}` : "Origin"), names];
}
function detail() {
  const [name, evaluation, protocol] = list("open");
  const number = data.rows.findIndex((row) => row.name === name);
  const found = Object.entries(data.groups).find(
    ([, group]) => group.evaluation === evaluation && [undefined, group.protocol].includes(protocol));
  if (number < 0 || !found) return dialog.open && dialog.close();
  const row = data.rows[number], [key, group] = found, several = row.runs.length > 1;
  const close = make("button", { type: "button" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const square = all("a.open", body).find((link) => link.dataset.open === `${key}-r${number}`);
  const asides = square ? all(".beside:not(.published)", square.parentElement).map((x) => x.cloneNode(true)) : [];
  dialog.replaceChildren(
    make("div", { class: "top" }, make("h2", { id: "detail-title" }, `${row.name}: ${evaluation}`), close),
    make("div", { class: "body" },
      make("p", {}, make("code", {}, group.protocol || "no result yet"), ` ${[group.dataset, group.split].filter(Boolean).join(", ")}`),
      ...asides.map((aside) => make("p", { class: "note" }, aside)),
      ...metricsOf(`${key}-r${number}`, row, evaluation),
      ...row.runs.flatMap((run) => originOf(run, evaluation, several))));
  if (!dialog.open) dialog.showModal();
}
body.addEventListener("click", (event) => {
  const link = event.target.closest("a.open");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const [key, number] = link.dataset.open.split("-r"), group = data.groups[key];
  choose("open", [data.rows[number].name, group.evaluation, group.protocol]);
});
dialog.addEventListener("close", () => choose("open", ""));
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// The links between sections leave what is chosen in the address.
for (const link of all("nav a, .skip"))
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const target = one(link.getAttribute("href"));
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
changed.push(filter, detail);
addEventListener("hashchange", () => {
  // An address that was pasted; of a link into the page, what is chosen stays.
  if (location.hash && !location.hash.includes("=")) return;
  chosen = ofAddress();
  for (const call of changed) call();
});
