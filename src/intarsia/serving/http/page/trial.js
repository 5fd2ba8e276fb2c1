// One text on all selected tasks at once: questions go out a few at a time, answers are shown as they come.

import { $, ask, count, duration, el, plural, trouble } from "./common.js";
import { Block } from "./results.js";

const TASKS_OF_A_REQUEST = 128;
const AT_ONCE = 4; // a browser opens six connections to a server, and the load needs one

export class Trial {
  #tasks = [];
  #running = null; // the AbortController of the run that goes on

  /** onClear: called when nobody shall be selected any more. */
  constructor(onClear) {
    $("clear").addEventListener("click", () => {
      onClear();
      $("filter").focus();
    });
    $("trial").querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.#running.abort();
      else this.#run();
    });
    $("fields").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      if (!this.#running) $("trial").querySelector("form").requestSubmit();
    });
    this.choose([]);
  }

  /** The tasks that the next run asks. */
  choose(tasks) {
    this.#tasks = tasks;
    if (tasks.length) trouble("selection", null);
    const names = tasks.slice(0, 8).map((task) => task.name).join(", ");
    const more = tasks.length > 8 ? ` and ${count(tasks.length - 8)} more` : "";
    $("chosen").querySelector("span").textContent = tasks.length ? `On ${names}${more}` : "Select tasks in the table.";
    $("clear").hidden = tasks.length === 0;
    $("sampling").hidden = !tasks.some((task) => task.kind === "generation");
    for (const input of $("sampling").querySelectorAll("input")) input.disabled = $("sampling").hidden;
    this.#fields();
  }

  /** A field for each text column; tasks with as many columns share them, whatever they call them. */
  #fields() {
    const wanted = Math.max(1, ...this.#tasks.map((task) => task.columns.length));
    const fields = $("fields");
    while (fields.children.length > wanted) fields.lastChild.remove();
    while (fields.children.length < wanted) {
      const id = `text-${fields.children.length}`;
      const area = el("textarea", { id, rows: 4, spellcheck: false });
      fields.append(el("div", {}, el("label", { htmlFor: id }), area));
    }
    [...fields.children].forEach((field, at) => {
      const names = new Set(this.#tasks.map((task) => task.columns[at]).filter((name) => name !== undefined));
      const some = this.#tasks.some((task) => task.columns.length <= at) ? " (not read by all selected tasks)" : "";
      const more = names.size > 3 ? ", …" : "";
      field.firstChild.textContent = ([...names].slice(0, 3).join(", ") || "text") + more + some;
    });
  }

  async #run() {
    if (!this.#tasks.length) {
      trouble("selection", "Select at least one task in the table first.");
      return;
    }
    trouble("trial", null);
    const texts = [...$("fields").querySelectorAll("textarea")].map((area) => area.value);
    const blocks = this.#tasks.map((task) => new Block(task));
    const run = { signal: (this.#running = new AbortController()).signal, texts, answered: 0 };
    this.#open(texts, blocks);
    const began = performance.now();
    await inTurn(jobs(blocks, run), AT_ONCE);
    const stopped = run.signal.aborted ? ", stopped" : "";
    const part = run.answered < blocks.length ? `${count(run.answered)} of ` : "";
    const took = duration(performance.now() - began);
    $("summary").textContent = `${part}${plural(blocks.length, "answer")} in ${took}${stopped}`;
    $("run").textContent = "Run";
    this.#running = null;
  }

  #open(texts, blocks) {
    $("run").textContent = "Stop";
    $("summary").textContent = `asking ${plural(blocks.length, "task")}`;
    $("asked").textContent = texts.filter(Boolean).join(" · ");
    $("answers").replaceChildren(...blocks.map((block) => block.box));
    $("results").hidden = false;
    const seen = $("results").getBoundingClientRect().top < innerHeight - 80;
    if (!seen) $("results").scrollIntoView({ block: "start" });
  }
}

/** Runs the jobs, so many at once. */
async function inTurn(jobs, width) {
  const rest = jobs.values();
  const worker = async () => {
    for (const job of rest) await job();
  };
  await Promise.all(Array.from({ length: width }, worker));
}

/** What has to be asked: tasks with as many columns in one request, a text to be written each on its own. */
function jobs(blocks, run) {
  const groups = Map.groupBy(blocks, ({ task: { kind, columns } }) => {
    if (kind === "generation") return "write";
    return kind === "token-classification" ? "tag" : columns.length;
  });
  return [...groups].flatMap(([group, its]) => {
    if (group === "write") return its.map((block) => () => guarded([block], run, () => write(block, run)));
    const parts = Array.from({ length: Math.ceil(its.length / TASKS_OF_A_REQUEST) }, (_, at) =>
      its.slice(at * TASKS_OF_A_REQUEST, (at + 1) * TASKS_OF_A_REQUEST),
    );
    return parts.map((part) => () => guarded(part, run, () => (group === "tag" ? tag(part, run) : classify(part, group, run))));
  });
}

/** Whatever goes wrong is said in the blocks and in the error line, and the others go on. */
async function guarded(blocks, run, work) {
  try {
    run.signal.throwIfAborted();
    await work();
  } catch (error) {
    const message = error.name === "AbortError" ? "stopped" : error.message;
    for (const block of blocks) block.failed(message);
    if (error.name !== "AbortError" && error.status !== 401) trouble("trial", message); // 401: the form for a key says it
  }
}

async function classify(blocks, columns, run) {
  const text = columns === 1 ? run.texts[0] : run.texts.slice(0, columns);
  await sideBySide("v1/classify", blocks, text, run, (block, answer, ms) => block.classified(answer, ms));
}

async function tag(blocks, run) {
  const words = run.texts[0].split(/\s+/).filter(Boolean);
  await sideBySide("v1/tag", blocks, words, run, (block, answer, ms) => block.tagged(answer, words, ms));
}

async function sideBySide(path, blocks, text, run, show) {
  const began = performance.now();
  const body = { task: blocks.map((block) => block.task.name), texts: [text] };
  const { results } = await (await ask(path, { body, signal: run.signal })).json();
  const ms = performance.now() - began;
  blocks.forEach((block, at) => {
    const answer = results[0].answers[at];
    if (answer.error) {
      block.failed(answer.error.message);
      trouble("trial", `${block.task.name}: ${answer.error.message}`);
      return;
    }
    show(block, answer, ms);
    run.answered += 1;
  });
}

async function write(block, run) {
  const { name, columns } = block.task;
  const named = Object.fromEntries(columns.map((column, at) => [column, run.texts[at]]));
  const body = {
    model: name,
    prompt: columns.length === 1 ? run.texts[0] : JSON.stringify(named),
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  const began = performance.now();
  const response = await ask("v1/completions", { body, signal: run.signal });
  const put = block.writing();
  let [first, reason, tokens] = [null, null, null];
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (choice?.text) {
      first ??= performance.now() - began;
      put(choice.text);
    }
    reason = choice?.finish_reason ?? reason;
    tokens = event.usage?.completion_tokens ?? tokens;
  }
  if (reason === null) throw new Error("The stream ended too soon.");
  const ms = performance.now() - began;
  block.written(reason, tokens, first ?? ms, ms);
  run.answered += 1;
}

/** The JSON of each server-sent event, up to [DONE]. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/gm, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
