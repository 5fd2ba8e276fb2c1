// What all parts share: elements, numbers, the server, and the error line.

const KEY = "intarsia-key";

/** A new element. Names with a dash, and `role`, are attributes; all else are properties. Strings become text, never markup. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const $ = (id) => document.getElementById(id);

const whole = new Intl.NumberFormat("en");
const share = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** 12345 -> "12,345". */
export const count = (value) => whole.format(value);

/** Three significant digits: 0.1234 -> "0.123"; "–" where there is no number. */
export function figure(value) {
  if (typeof value !== "number") return "–";
  return Math.abs(value) >= 1000 ? whole.format(Math.round(value)) : short.format(value);
}

/** A metric or a probability: three decimals up to 1, else as `figure` has it. */
export const metric = (value) => (typeof value === "number" && Math.abs(value) <= 1 ? share.format(value) : figure(value));

/** 75400 -> "75.4 kB". */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  let step = 0;
  for (; value >= 999.5 && step < units.length - 1; step += 1) value /= 1000;
  return `${figure(value)} ${units[step]}`;
}

/** 1234.5 -> "1.23 s"; 12.3 -> "12 ms"; 1.23 -> "1.2 ms"; several of them share a unit where they can. */
export function duration(...all) {
  if (all.some((ms) => typeof ms !== "number")) return "–";
  const unit = all.every((ms) => ms < 999.5) ? "ms" : "s";
  const digits = (ms) => (unit === "s" ? figure(ms / 1000) : ms < 9.95 ? ms.toFixed(1) : Math.round(ms));
  return `${all.map(digits).join(", ")} ${unit}`;
}

/** "one thing", "2 things". */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

const problems = new Map();

/** Shows what is wrong with one part of the page in the error line; null: it is well again. The newest trouble is shown. */
export function trouble(part, message) {
  problems.delete(part);
  if (message !== null) problems.set(part, message);
  const line = $("error");
  const newest = [...problems.values()].at(-1) ?? "";
  if (line.textContent !== newest) line.textContent = newest;
  line.hidden = newest === "";
}

/** A refusal of the server, or none at all (status 0). */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** GET, or POST of a JSON body. Returns the response; throws ServerError, and AbortError when the signal says so. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  const used = key.get();
  if (used !== null) headers.Authorization = `Bearer ${used}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.", 0);
  }
  if (response.ok) return response;
  const message = await said(response);
  // An answer to an older key says nothing of the one that has been given since.
  if (response.status === 401 && used === key.get()) document.dispatchEvent(new CustomEvent("key-needed", { detail: message }));
  throw new ServerError(message, response.status);
}

async function said(response) {
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    message = null; // not our server's shape: a proxy, say
  }
  const line = typeof message === "string" && message ? message : `The server refused with status ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  return wait === null ? line : `${line} (try again in ${wait} s)`;
}
