// What the programs for Node share; check.py says what each thing is.
import assert from "node:assert/strict";

const { ABORTED, API, CLIENT, DATA, HASTY_TOKEN, OWNER, RECEIVER, STRANGER_TOKEN, TRAINING } =
  process.env;
export { ABORTED, API, CLIENT, DATA, HASTY_TOKEN, OWNER, RECEIVER, STRANGER_TOKEN, TRAINING, assert };
export const CHAT = "meta/llama-2-7b-chat";
export const BASE = ["meta", "llama-2-7b"];
export const DESTINATION = `${OWNER}/trained`;
export const GUIDE_VERSION = "4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132";
export const WORDS = "It is red, surely.";
export const BREAKS = "one\u2028two\u2029three\u0085four";
export const LONG = { prompt: "Go on.", min_new_tokens: 8000, max_new_tokens: 8000, temperature: 1 };
export const FAILS = { prompt: "Hello", replicate_weights: `${RECEIVER}/no-such-weights.tar` };

const checks = new Map();

export function check(name, call, shown, run) {
  checks.set(name, run);
}

export function say(text) {
  return {
    prompt: "Say it.",
    json_schema: JSON.stringify({ const: text }),
    max_new_tokens: 500,
  };
}

export const spoken = (text) => JSON.stringify(text);

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function until(condition, seconds = 60) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const found = await condition();
    if (found) return found;
    assert(Date.now() < deadline, `still ${found} after ${seconds} s`);
    await sleep(200);
  }
}

export async function hooks(key, isEnough) {
  return until(async () => {
    const came = await (await fetch(`${RECEIVER}/hook/${key}`)).json();
    return isEnough(came) && came;
  }, 20);
}

const ENDS = ["succeeded", "failed", "canceled"];

export function isCompleted(came) {
  return came.length > 0 && ENDS.includes(JSON.parse(came.at(-1).body).status);
}

export async function main() {
  const named = process.argv.slice(2);
  for (const name of named.length > 0 ? named : checks.keys()) {
    const started = Date.now();
    let found = null;
    try {
      await checks.get(name)();
    } catch (error) {
      found = error.stack ?? String(error);
    }
    const seconds = (Date.now() - started) / 1000;
    console.log(JSON.stringify({ name, found, seconds }));
  }
  process.exit(); // streams that were opened keep Node alive
}
