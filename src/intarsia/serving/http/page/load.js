// The live load: one question to the server each second, six figures with a line each.

import { $, ask, count, duration, el, figure, ServerError, trouble } from "./common.js";

const SECONDS = 120;
const HEIGHT = 26;
const SVG = "http://www.w3.org/2000/svg";

/** A figure and the line of its last two minutes. */
class Tile {
  /** title: what it is. lines: how many lines are drawn. write: a number as text. */
  constructor(title, lines = 1, write = figure) {
    this.title = title;
    this.write = write;
    this.values = Array.from({ length: lines }, () => []);
    this.now = el("strong", {}, "–");
    this.most = el("span", { className: "most" });
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${SECONDS} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.paths = this.values.map(() => this.svg.appendChild(document.createElementNS(SVG, "path")));
    this.box = el("div", { className: "tile" }, el("h3", {}, title), this.now, this.most, this.svg);
  }

  /** values: one number or null for each line. text: the figure itself. */
  add(values, text = this.write(values[0])) {
    values.forEach((value, line) => {
      this.values[line].push(value);
      if (this.values[line].length > SECONDS) this.values[line].shift();
    });
    const highest = Math.max(0, ...this.values.flat().map((value) => value ?? 0));
    this.now.textContent = text;
    this.most.textContent = highest > 0 ? `max ${this.write(highest)}` : "";
    this.svg.setAttribute("aria-label", `${this.title}, last two minutes: now ${text}, at most ${this.write(highest)}`);
    this.paths.forEach((path, line) => path.setAttribute("d", drawn(this.values[line], highest)));
  }
}

/** The line of some values, the newest at the right edge; a gap where there is none. */
function drawn(values, highest) {
  let commands = "";
  let pen = "M";
  values.forEach((value, at) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const y = HEIGHT - 1 - (highest > 0 ? value / highest : 0) * (HEIGHT - 3);
    commands += `${pen}${SECONDS - values.length + at + 1} ${y.toFixed(1)}`;
    pen = "L";
  });
  return commands;
}

const tiles = {
  queue: new Tile("Queue"),
  running: new Tile("Running"),
  requests: new Tile("Requests / s"),
  tokens: new Tile("Tokens / s"),
  latency: new Tile("Latency p50, p95", 2, duration),
  memory: new Tile("Tasks resident, paged", 2),
};

let before = null; // the totals of the last answer, and when it came
let timer = 0;

function show(load) {
  const at = performance.now();
  const rate = (name) => {
    const grown = before === null ? -1 : load[name] - before[name];
    return grown < 0 ? null : grown / ((at - before.at) / 1000); // fewer than before: the server began anew
  };
  const { p50, p95, p99 } = load.latency_ms;
  tiles.queue.add([load.queue]);
  tiles.running.add([load.running]);
  tiles.requests.add([rate("requests_total")]);
  tiles.tokens.add([rate("tokens_total")]);
  tiles.latency.add([p50, p95], duration(p50, p95));
  tiles.latency.box.title = `p99 ${duration(p99)}, up ${count(Math.round(load.uptime_s))} s`;
  tiles.memory.add([load.resident, load.paged], `${count(load.resident)}, ${count(load.paged)}`);
  before = { requests_total: load.requests_total, tokens_total: load.tokens_total, at };
}

/** Asks each second while the tab is seen and a key is not missing; `seen(load)` is called with each answer. */
export function watchLoad(seen) {
  $("load").replaceChildren(...Object.values(tiles).map((tile) => tile.box));
  let asking = false;
  async function again() {
    clearTimeout(timer);
    if (document.hidden || asking) return;
    asking = true;
    let wait = 1000;
    try {
      const load = await (await ask("v1/load")).json();
      show(load);
      trouble("load", null);
      seen(load);
    } catch (error) {
      before = null;
      if (error instanceof ServerError && error.status === 401) wait = null; // the key's form starts us again
      else wait = 3000;
      trouble("load", wait === null ? null : `The load cannot be read: ${error.message}`);
    }
    asking = false;
    if (wait !== null) timer = setTimeout(again, wait);
  }
  document.addEventListener("visibilitychange", () => {
    before = null; // a rate over the time that nobody looked is not a rate of now
    again();
  });
  again();
  return again;
}
