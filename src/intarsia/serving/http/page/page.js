// The start: puts the parts together, keeps the list of tasks fresh, and asks for a key where the server wants one.

import { $, ask, key, trouble } from "./common.js";
import { watchLoad } from "./load.js";
import { TaskTable } from "./tasks.js";
import { Trial } from "./trial.js";

const FRESH_MS = 30_000;

const table = new TaskTable((chosen) => trial.choose(chosen));
const trial = new Trial(() => table.clear());
let fetched = -Infinity;
let known = -1;
let fetching = false;

async function freshTasks() {
  if (fetching) return;
  fetching = true;
  try {
    const { tasks, backbone } = await (await ask("v1/tasks")).json();
    table.set(tasks);
    known = tasks.length;
    $("backbone").textContent = `on ${backbone.name}`;
    $("backbone").title = `fingerprint ${backbone.fingerprint}`;
    $("key").hidden = true;
    $("forget").hidden = key.get() === null;
    trouble("tasks", null);
  } catch (error) {
    trouble("tasks", error.status === 401 ? null : `The tasks cannot be read: ${error.message}`);
  }
  fetched = performance.now();
  fetching = false;
}

function seen(load) {
  const changed = known >= 0 && load.resident + load.paged !== known;
  if (performance.now() - fetched > (changed ? 1000 : FRESH_MS)) freshTasks();
}

document.addEventListener("key-needed", ({ detail }) => {
  const asked = !$("key").hidden;
  $("key-said").textContent = detail;
  $("key").hidden = false;
  $("forget").hidden = true;
  key.forget();
  if (!asked) $("key-value").focus();
});

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = $("key-value").value.trim();
  if (!/^[\x21-\x7e]+$/.test(value)) {
    $("key-said").textContent = "A key is ASCII characters without spaces.";
    return;
  }
  key.set(value);
  $("key-value").value = "";
  $("key-said").textContent = "";
  freshTasks().then(poll);
});

$("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});

freshTasks();
const poll = watchLoad(seen);
