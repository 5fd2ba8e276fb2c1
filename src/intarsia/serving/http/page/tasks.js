// The table of tasks. Only the rows in sight are in the document, so that thousands stay fluid.

import { $, bytes, count, el, metric } from "./common.js";

const SPARE = 12; // rows kept ready above and below those in sight
const collator = new Intl.Collator("en", { numeric: true });

/** The metrics to show in a row: the one that training went by, of the test set where there was one, and the next. */
function metrics(task) {
  const all = Object.entries(task.metrics).filter(([, value]) => typeof value === "number");
  const tested = all.filter(([name]) => name.startsWith("test_"));
  const best = tested.length ? tested : all;
  return best.slice(0, 2).map(([name, value]) => [name.replace(/^test_/, "").replaceAll("_", " "), value]);
}

const COLUMNS = [
  { id: "name", title: "Name", value: (task) => task.name },
  { id: "method", title: "Method", value: (task) => task.method.name },
  { id: "kind", title: "Kind", value: (task) => task.kind },
  { id: "size", title: "Size", value: (task) => task.bytes, text: (task) => bytes(task.bytes) },
  { id: "trained", title: "Trained", value: (task) => task.trained_parameters, text: (task) => count(task.trained_parameters) },
  {
    id: "metrics",
    title: "Metrics",
    value: (task) => metrics(task)[0]?.[1] ?? null,
    text: (task) => metrics(task).map(([name, value]) => `${name} ${metric(value)}`).join(", ") || "–",
  },
  { id: "version", title: "Version", value: (task) => task.version, text: (task) => task.version.slice(0, 8) },
  { id: "memory", title: "Memory", value: (task) => (task.resident ? "resident" : "paged") },
];

/** -1, 0 or 1; what has no value comes last, whichever way is sorted. */
function compared(a, b, way) {
  if (a === null || b === null) return (a === null) - (b === null);
  return way * (typeof a === "number" ? a - b : collator.compare(a, b));
}

export class TaskTable {
  #tasks = [];
  #words = new Map(); // task -> all that the filter searches
  #shown = [];
  #rows = new Map(); // name -> row in the document
  #selected = new Set();
  #sort = { id: "name", way: 1 };
  #active = null; // the task at the cursor
  #anchor = null; // where a range that is selected with shift begins
  #index = new Map(); // name -> place among the shown
  #height = 30; // of a row, in pixels
  #onChange;

  /** onChange: called with the selected tasks. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#head();
    $("filter").addEventListener("input", () => this.#arrange(true));
    $("window").addEventListener("scroll", () => this.#draw(), { passive: true });
    $("window").addEventListener("keydown", (event) => this.#key(event));
    $("rows").addEventListener("click", (event) => this.#click(event));
    $("rows").addEventListener("focusin", (event) => this.#at(event.target.closest("tr").task));
    new ResizeObserver(() => this.#measure()).observe($("window"));
  }

  /** Takes the server's list. What was selected stays selected where it still exists. */
  set(tasks) {
    this.#tasks = tasks;
    // As high as all tasks need, up to what the style sheet allows; a filter then moves nothing below.
    $("window").style.setProperty("--tasks", Math.max(tasks.length, 3));
    this.#words = new Map(
      tasks.map((task) => [task, [task.name, task.method.name, task.kind, ...task.labels].join(" ").toLowerCase()]),
    );
    const names = new Set(tasks.map((task) => task.name));
    this.#selected = new Set([...this.#selected].filter((name) => names.has(name)));
    const focused = $("rows").contains(document.activeElement);
    this.#rows.forEach((row) => row.remove());
    this.#rows.clear();
    this.#arrange(false);
    const told = tasks.find((task) => $("detail").hasChildNodes() && task.name === this.#active);
    $("detail").replaceChildren(...(told ? described(told) : []));
    if (focused) (this.#rows.get(this.#active)?.box ?? $("window")).focus({ preventScroll: true });
    this.#changed();
  }

  clear() {
    this.#selected.clear();
    this.#changed();
  }

  #head() {
    this.all = el("input", { type: "checkbox", "aria-label": "Select all tasks shown" });
    this.all.addEventListener("change", () => {
      for (const task of this.#shown) this.#mark(task.name, this.all.checked);
      this.#changed();
    });
    const cells = COLUMNS.map(({ id, title }) => {
      const button = el("button", { type: "button" }, title);
      button.addEventListener("click", () => this.#sortBy(id));
      return el("th", { className: id, role: "columnheader", scope: "col", "aria-sort": "none" }, button);
    });
    const first = el("th", { className: "pick", role: "columnheader", scope: "col" }, this.all);
    $("window").querySelector("thead tr").append(first, ...cells);
    this.heads = cells;
    this.#arrows();
  }

  #sortBy(id) {
    this.#sort = { id, way: this.#sort.id === id ? -this.#sort.way : 1 };
    this.#arrows();
    this.#arrange(true);
  }

  #arrows() {
    COLUMNS.forEach(({ id }, at) => {
      const sorted = id !== this.#sort.id ? "none" : this.#sort.way > 0 ? "ascending" : "descending";
      this.heads[at].setAttribute("aria-sort", sorted);
    });
  }

  /** Filters and sorts. toTop: show the first row. */
  #arrange(toTop) {
    const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const { value } = COLUMNS.find(({ id }) => id === this.#sort.id);
    this.#shown = this.#tasks
      .filter((task) => wanted.every((word) => this.#words.get(task).includes(word) || task.version.startsWith(word)))
      .map((task) => [value(task), task])
      .sort(([a, one], [b, other]) => compared(a, b, this.#sort.way) || collator.compare(one.name, other.name))
      .map(([, task]) => task);
    this.#index = new Map(this.#shown.map((task, at) => [task.name, at]));
    if (!this.#index.has(this.#active)) this.#active = this.#shown[0]?.name ?? null;
    if (toTop) $("window").scrollTop = 0;
    $("window").querySelector("table").setAttribute("aria-rowcount", this.#shown.length + 1);
    $("none").hidden = this.#shown.length > 0;
    $("none").textContent = this.#tasks.length ? "No task matches the filter." : "No task is served yet.";
    this.#draw();
    this.#count();
  }

  /** Brings the rows in sight into the document, and takes the others out. */
  #draw() {
    const view = $("window");
    const first = Math.max(0, Math.floor(view.scrollTop / this.#height) - SPARE);
    const last = Math.min(this.#shown.length, Math.ceil((view.scrollTop + view.clientHeight) / this.#height) + SPARE);
    const wanted = new Set(this.#shown.slice(first, last).map((task) => task.name));
    for (const [name, row] of this.#rows) {
      if (wanted.has(name)) continue;
      if (row.contains(document.activeElement)) view.focus({ preventScroll: true }); // arrow keys still work from here
      row.remove();
      this.#rows.delete(name);
    }
    let place = $("rows").firstChild;
    for (let at = first; at < last; at += 1) {
      const row = this.#row(this.#shown[at]);
      row.setAttribute("aria-rowindex", at + 2);
      if (row === place) place = place.nextSibling;
      else $("rows").insertBefore(row, place);
    }
    $("above").querySelector("td").style.height = `${first * this.#height}px`;
    $("below").querySelector("td").style.height = `${(this.#shown.length - last) * this.#height}px`;
    this.#tabStop(first);
  }

  #row(task) {
    const known = this.#rows.get(task.name);
    if (known) return known;
    const box = el("input", { type: "checkbox", tabIndex: -1, "aria-label": task.name });
    const row = el("tr", { role: "row" }, el("td", { className: "pick", role: "gridcell" }, box));
    for (const { id, text, value } of COLUMNS) {
      const said = (text ?? value)(task);
      row.append(el("td", { className: id, role: "gridcell", title: said }, said));
    }
    Object.assign(row, { task, box });
    row.classList.toggle("paged", !task.resident);
    this.#rows.set(task.name, row);
    this.#paint(row);
    return row;
  }

  #paint(row) {
    const selected = this.#selected.has(row.task.name);
    row.box.checked = selected;
    row.setAttribute("aria-selected", selected);
  }

  /** The tab key reaches one row: that at the cursor, or the first one where the cursor is out of sight. */
  #tabStop(first) {
    const stop = this.#rows.get(this.#active) ?? this.#rows.get(this.#shown[first]?.name);
    for (const row of this.#rows.values()) row.box.tabIndex = row === stop ? 0 : -1;
  }

  #measure() {
    const row = this.#rows.values().next().value;
    if (row) this.#height = row.getBoundingClientRect().height || this.#height;
    this.#draw();
  }

  #mark(name, selected) {
    if (selected) this.#selected.add(name);
    else this.#selected.delete(name);
  }

  #changed() {
    for (const row of this.#rows.values()) this.#paint(row);
    this.#count();
    this.#onChange(this.#tasks.filter((task) => this.#selected.has(task.name)));
  }

  #count() {
    const shown = this.#shown.filter((task) => this.#selected.has(task.name)).length;
    this.all.checked = shown > 0 && shown === this.#shown.length;
    this.all.indeterminate = shown > 0 && shown < this.#shown.length;
    const part = this.#shown.length < this.#tasks.length ? `${count(this.#shown.length)} of ` : "";
    const said = `${part}${count(this.#tasks.length)}${this.#selected.size ? `, ${count(this.#selected.size)} selected` : ""}`;
    if ($("count").textContent !== said) $("count").textContent = said;
  }

  #click(event) {
    const row = event.target.closest("tr");
    if (event.target !== row.box && getSelection().toString()) return; // somebody marks text to copy it
    const selected = event.target === row.box ? row.box.checked : !row.box.checked;
    const from = this.#index.get(event.shiftKey ? this.#anchor : row.task.name) ?? this.#index.get(row.task.name);
    const to = this.#index.get(row.task.name);
    for (let at = Math.min(from, to); at <= Math.max(from, to); at += 1) this.#mark(this.#shown[at].name, selected);
    this.#anchor = row.task.name;
    row.box.focus({ preventScroll: true });
    this.#changed();
  }

  #key(event) {
    const page = Math.max(1, Math.floor($("window").clientHeight / this.#height) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("thead")) return;
    event.preventDefault();
    const from = this.#index.get(this.#active);
    if (from === undefined) return;
    const to = Math.min(this.#shown.length - 1, Math.max(0, from + step));
    if (event.shiftKey) {
      for (let at = Math.min(from, to); at <= Math.max(from, to); at += 1) this.#mark(this.#shown[at].name, true);
      this.#changed();
    }
    this.#anchor = this.#shown[to].name;
    this.#goTo(to);
  }

  #goTo(at) {
    const view = $("window");
    const room = view.clientHeight - view.querySelector("thead").offsetHeight - this.#height;
    view.scrollTop = Math.min(at * this.#height, Math.max(view.scrollTop, at * this.#height - room));
    this.#active = this.#shown[at].name;
    this.#draw();
    this.#rows.get(this.#active).box.focus({ preventScroll: true });
  }

  /** The cursor is at this task: what the row has no room for is shown below. */
  #at(task) {
    this.#active = task.name;
    this.#tabStop(0);
    $("detail").replaceChildren(...described(task));
  }
}

function described(task) {
  const { name: method, ...settings } = task.method;
  const said = Object.entries(settings)
    .filter(([, value]) => value !== null && value !== false && !(Array.isArray(value) && !value.length))
    .map(([setting, value]) => (value === true ? setting : `${setting} ${Array.isArray(value) ? value.join(" ") : value}`));
  const values = Object.entries(task.metrics).map(([name, value]) => `${name} ${metric(value)}`);
  const more = task.labels.length > 24 ? `, and ${count(task.labels.length - 24)} more` : "";
  const parts = {
    Task: task.name,
    Method: [method, ...said].join(", "),
    Labels: task.labels.slice(0, 24).join(", ") + more,
    Columns: task.columns.join(", "),
    Metrics: values.join(", "),
    Version: task.version,
  };
  return Object.entries(parts)
    .filter(([, text]) => text)
    .map(([term, text]) => el("div", { className: term.toLowerCase() }, el("dt", {}, term), el("dd", {}, text)));
}
