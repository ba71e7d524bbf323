// npm `replicate` 1: run, stream and predictions.
import { createRequire } from "node:module";
import {
  ABORTED, API, BREAKS, CHAT, CLIENT, FAILS, HASTY_TOKEN, LONG, RECEIVER, STRANGER_TOKEN, TRAINING, WORDS, assert,
  check, main, say, spoken, until,
} from "../check.mjs";

// ES modules are not looked up by NODE_PATH.
const Replicate = createRequire(import.meta.url)("replicate");

const replicate = new Replicate({ baseUrl: `${API}/v1` });
const stranger = new Replicate({ baseUrl: `${API}/v1`, auth: STRANGER_TOKEN });
const version = (await replicate.models.get(...CHAT.split("/"))).latest_version.id;

async function streamed(...values) {
  const events = [];
  for await (const event of replicate.stream(...values)) events.push(event);
  return [events.map(String).join(""), events];
}

check("run", "run", "`run` waits, and answers with the list of chunks.", async () => {
  assert.equal((await replicate.run(CHAT, { input: say(WORDS) })).join(""), spoken(WORDS));
});

check("run_by_version", "run", "`run` of owner/name:id answers too.", async () => {
  const output = await replicate.run(`${CHAT}:${version}`, { input: say(BREAKS) });
  assert.equal(output.join(""), spoken(BREAKS));
});

check("run_by_polling", "run", "`run` that polls tells its progress, and ends.", async () => {
  const seen = [];
  const wait = { mode: "poll", interval: 50 };
  const tell = (prediction) => seen.push(prediction.status);
  const output = await replicate.run(CHAT, { input: say(WORDS), wait }, tell);
  assert.equal(output.join(""), spoken(WORDS));
  assert.deepEqual([seen[0], seen.at(-1)], ["starting", "succeeded"]);
});

check("run_fails", "run", "A prediction that fails rejects with one sentence.", async () => {
  await assert.rejects(replicate.run(CHAT, { input: FAILS }), /Prediction failed: .*no-such-weights/);
});

check("run_keeps_addresses", "run", "An answer that holds an address stays text.", async () => {
  const address = "https://example.com/a.png";
  const output = await replicate.run(CHAT, { input: say(address) });
  assert.equal(output.join(""), spoken(address));
});

check("run_aborted", "run", "`run` that is aborted cancels the prediction.", async () => {
  const abort = new AbortController();
  let id;
  const tell = (prediction) => {
    id = prediction.id;
    abort.abort();
  };
  const wait = { mode: "poll", interval: 50 };
  await replicate.run(CHAT, { input: LONG, wait, signal: abort.signal }, tell);
  assert.equal((await replicate.predictions.get(id)).status, "canceled");
});

check("stream", "stream", "Streamed events make up the answer, with all its characters.", async () => {
  const [text, events] = await streamed(CHAT, { input: say(BREAKS) });
  assert.equal(text, spoken(BREAKS));
  assert.equal(events.at(-1).event, "done");
  assert(events.every((event) => event.id));
});

check("stream_fails", "stream", "A prediction that fails throws the sentence.", async () => {
  await assert.rejects(streamed(CHAT, { input: FAILS }), /no-such-weights/);
});

check("stream_url", "stream", "The stream's path is not that of a file, and needs no token.", async () => {
  const prediction = await replicate.predictions.create({ version, input: say(WORDS) });
  assert(!new URL(prediction.urls.stream).pathname.startsWith("/v1/files/"));
  const text = await (await fetch(prediction.urls.stream)).text();
  assert(text.includes("event: done"));
});

check("create", "predictions.create", "A new prediction has all fields, and no null in `urls`.", async () => {
  const prediction = await replicate.predictions.create({ version, input: say(WORDS) });
  assert.equal(prediction.status, "starting");
  assert.equal(prediction.output, null);
  assert.equal(prediction.data_removed, false);
  assert(Object.values(prediction.urls).every((url) => url.startsWith("http")));
});

check("create_by_model", "predictions.create", "A prediction by name.", async () => {
  const made = await replicate.predictions.create({ model: CHAT, input: say(WORDS), wait: true });
  assert.equal(made.status, "succeeded");
  assert.equal(made.output.join(""), spoken(WORDS));
});

check("wait", "wait", "`wait` polls a prediction to its end.", async () => {
  const made = await replicate.predictions.create({ version, input: say(WORDS) });
  const ended = await replicate.wait(made, { interval: 50 });
  assert.equal(ended.output.join(""), spoken(WORDS));
});

check("wait_too_short", "predictions.create", "When the wait is over the answer is `starting` without output.", async () => {
  const made = await replicate.predictions.create({ version, input: LONG, wait: 1 });
  assert.deepEqual([made.status, made.output], ["starting", null]);
  await replicate.predictions.cancel(made.id);
});

check("file_in_input", "predictions.create", "A Buffer in a prediction's input is uploaded.", async () => {
  const input = { prompt: Buffer.from("hello"), max_new_tokens: 2 };
  const made = await replicate.predictions.create({ version, input });
  assert(made.input.prompt.startsWith(`${API}/v1/files/`));
});

check("wrong_input", "predictions.create", "A wrong input is refused with its name in the message.", async () => {
  const made = replicate.predictions.create({ version, input: { prompt: "Hi", top_k: "all" } });
  await assert.rejects(made, (error) => {
    assert.equal(error.response.status, 422);
    return /input\.top_k/.test(error.message);
  });
});

check("too_often", "predictions.create", "Who asks too often is refused six times at once, and nothing is created.", async () => {
  const hasty = new Replicate({ baseUrl: `${API}/v1`, auth: HASTY_TOKEN });
  const headers = { Authorization: `Bearer ${HASTY_TOKEN}` };
  const input = { ...say(WORDS), seed: 8 };
  const made = [];
  let error;
  while (!error) {
    let status;
    while (status !== 429) {
      const answer = await fetch(`${API}/v1/predictions`, { method: "POST", headers, body: "{}" });
      await answer.arrayBuffer();
      status = answer.status;
    }
    const create = hasty.predictions.create({ version, input });
    await create.then(({ id }) => made.push(id), (refused) => { error = refused; });
  }
  assert.equal(error.response.status, 429);
  assert(error.response.headers.get("retry-after") > 0);
  const { results } = await hasty.predictions.list();
  const listed = results.filter((found) => found.input.seed === 8).map(({ id }) => id);
  assert.deepEqual(listed.sort(), made.sort());
});

check("deadline", "predictions.create", "A deadline that passed ends as `canceled`, which ends polling.", async () => {
  const made = await replicate.request("/predictions", {
    method: "POST", headers: { "Cancel-After": "5s" }, data: { version, input: LONG },
  });
  const ended = await replicate.wait(await made.json(), { interval: 200 });
  assert.equal(ended.status, "canceled");
});

check("wait_aborted", "wait", "The end `aborted`, for which the client would wait on, is shown as canceled.", async () => {
  assert.equal((await replicate.wait({ id: ABORTED }, { interval: 50 })).status, "canceled");
});

check("get_of_a_training", "predictions.get", "A training answers below /predictions too.", async () => {
  assert.equal((await replicate.predictions.get(TRAINING)).id, TRAINING);
});

check("get_of_another", "predictions.get", "The prediction of another owner is 404.", async () => {
  const made = await replicate.predictions.create({ version, input: say(WORDS) });
  for (const call of ["get", "cancel"]) {
    await assert.rejects(stranger.predictions[call](made.id), (error) => error.response.status === 404);
  }
});

check("cancel", "predictions.cancel", "Cancel answers the object at once, canceled.", async () => {
  const made = await replicate.predictions.create({ version, input: LONG });
  assert.equal((await replicate.predictions.cancel(made.id)).status, "canceled");
  assert.equal((await replicate.wait(made, { interval: 50 })).status, "canceled");
});

check("list", "paginate", "Pages lead on by absolute cursors, and nothing comes twice.", async () => {
  const ids = [];
  for await (const page of replicate.paginate(replicate.predictions.list)) {
    ids.push(...page.map((prediction) => prediction.id));
  }
  assert(ids.length > 100);
  assert.equal(new Set(ids).size, ids.length);
});

check("repeated", "predictions.create", "A POST whose connection breaks is repeated: each one that arrived ends well.", async () => {
  const broken = new Replicate({ baseUrl: `${RECEIVER}/broken/${CLIENT}/v1` });
  const prompt = "What came of it?";
  const input = { ...say(WORDS), prompt };
  await assert.rejects(broken.predictions.create({ version, input }));
  const mine = async () => (await replicate.predictions.list()).results.filter(
    (found) => found.input.prompt === prompt,
  );
  const made = await until(async () => (await mine()).every((one) => one.completed_at) && mine());
  assert.equal(made.length, 6);
  assert(made.every((one) => one.output.join("") === spoken(WORDS)));
});

await main();
