// The answers, one block a task, side by side.

import { count, duration, el, figure, metric, plural } from "./common.js";

const MOST_BARS = 6; // labels in sight; the others are a click away

export class Block {
  constructor(task) {
    this.task = task;
    this.verdict = el("strong");
    this.body = el("div", { className: "body" }, el("p", { className: "waiting" }, "…"));
    this.foot = el("p", { className: "foot" });
    const head = el("div", { className: "title" }, el("h3", { title: task.name }, task.name), this.verdict);
    this.box = el("li", {}, head, this.body, this.foot);
  }

  /** answer: one of /v1/classify. ms: how long its request took. */
  classified(answer, ms) {
    const chosen = new Set([answer.label].flat().filter((label) => typeof label === "string"));
    this.foot.textContent = duration(ms);
    if (this.task.kind === "regression") {
      this.#say(figure(answer.prediction));
      this.body.replaceChildren();
      return;
    }
    this.#say([...chosen].join(", ") || "none");
    this.body.replaceChildren(...bars(Object.entries(answer.scores ?? {}), chosen));
  }

  /** answer: one of /v1/tag: a label for each of these words, null where it was cut off. */
  tagged(answer, words, ms) {
    const tags = words.map((word, at) => {
      const label = answer.label[at];
      const plain = label === null || label === "O";
      const score = metric(answer.scores?.[at]);
      return el(
        "span",
        { className: plain ? "word" : "word entity", title: label === null ? "cut off" : `${label} ${score}` },
        word,
        plain ? "" : el("small", {}, label),
      );
    });
    const found = answer.label.filter((label) => label !== null && label !== "O").length;
    this.#say(plural(found, "tag"));
    this.body.replaceChildren(el("p", { className: "words" }, ...tags.flatMap((tag) => [tag, " "])));
    this.foot.textContent = duration(ms);
  }

  /** Empties the block for text that comes in pieces; returns the function that takes a piece. */
  writing() {
    const text = el("p", { className: "written" });
    this.body.replaceChildren(text);
    this.box.classList.add("wide");
    return (piece) => text.append(piece);
  }

  /** first, ms: milliseconds to the first piece, and in all. tokens: null where the server did not say. */
  written(reason, tokens, first, ms) {
    const rate = tokens > 1 && ms > first ? `, ${figure((1000 * (tokens - 1)) / (ms - first))} tokens / s` : "";
    const length = tokens === null ? "" : `${plural(tokens, "token")}, `;
    this.#say(reason === "length" ? "cut at the longest output" : "");
    this.foot.textContent = `${length}first after ${duration(first)}${rate}, ${duration(ms)} in all`;
  }

  failed(message) {
    this.#say("no answer");
    this.box.classList.add("failed");
    this.body.querySelector(".waiting")?.remove();
    this.body.append(el("p", { className: "why" }, message));
  }

  #say(verdict) {
    this.verdict.textContent = verdict;
    this.verdict.title = verdict;
  }
}

/** A bar and a number for each [label, score]; in the labels' order where they are few, else the highest first. */
function bars(scores, chosen) {
  if (scores.length <= MOST_BARS) return [table(scores, chosen)];
  const sorted = scores.toSorted(([, a], [, b]) => (b ?? -1) - (a ?? -1));
  const rest = sorted.slice(MOST_BARS);
  const more = el("details", {}, el("summary", {}, `${count(rest.length)} more`), table(rest, chosen));
  return [table(sorted.slice(0, MOST_BARS), chosen), more];
}

function table(scores, chosen) {
  return el("dl", { className: "bars" }, ...scores.map(([label, score]) => bar(label, score, chosen.has(label))));
}

function bar(label, score, chosen) {
  const fill = el("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, score ?? 0))}%`;
  const track = el("span", { className: "track", "aria-hidden": "true" }, fill);
  const number = metric(score);
  return el(
    "div",
    { className: chosen ? "chosen" : "" },
    el("dt", { title: label }, label),
    el("dd", {}, track, el("b", {}, number)),
  );
}
