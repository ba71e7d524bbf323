// npm `replicate` 1: trainings, models, files, deployments and webhooks.
import { File } from "node:buffer";
import { webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import {
  API, BASE, CHAT, CLIENT, DATA, DESTINATION, GUIDE_VERSION, OWNER, RECEIVER, STRANGER_TOKEN,
  TRAINING, WORDS, assert, check, hooks, isCompleted, main, say, spoken, until,
} from "../check.mjs";

// ES modules are not looked up by NODE_PATH.
const Replicate = createRequire(import.meta.url)("replicate");
const { parseProgressFromLogs, validateWebhook } = Replicate;

const replicate = new Replicate({ baseUrl: `${API}/v1` });
const stranger = new Replicate({ baseUrl: `${API}/v1`, auth: STRANGER_TOKEN });
const version = (await replicate.models.get(...CHAT.split("/"))).latest_version.id;

check("train", "trainings.create", "A training on an uploaded file, and its cancel.", async () => {
  const file = await replicate.files.create(await readFile(DATA));
  const made = await replicate.trainings.create(...BASE, GUIDE_VERSION, {
    destination: DESTINATION, input: { train_data: file.urls.get, num_train_epochs: 1 },
  });
  assert.equal(made.status, "starting");
  assert.equal((await replicate.trainings.cancel(made.id)).status, "canceled");
});

check("train_on_a_buffer", "trainings.create", "A Buffer, which arrives as its JSON, is read as the file.", async () => {
  const made = await replicate.trainings.create(...BASE, GUIDE_VERSION, {
    destination: DESTINATION, input: { train_data: await readFile(DATA) },
  });
  assert.equal((await replicate.trainings.cancel(made.id)).status, "canceled");
});

check("train_for_nobody", "trainings.create", "A destination that is not there is refused.", async () => {
  const made = replicate.trainings.create(...BASE, GUIDE_VERSION, {
    destination: `${OWNER}/nothing`, input: { train_data: await readFile(DATA) },
  });
  await assert.rejects(made, /The specified training destination does not exist/);
});

check("train_to_the_end", "trainings.get", "A training is polled to its end, and its version answers.", async () => {
  const ended = await until(async () => {
    const found = await replicate.trainings.get(TRAINING);
    assert(!("version" in (found.output ?? {})) || found.status === "succeeded");
    return found.completed_at && found;
  }, 120);
  assert.equal(ended.status, "succeeded");
  assert(ended.metrics.total_time >= ended.metrics.predict_time);
  const output = await replicate.run(ended.output.version, { input: say(WORDS) });
  assert.equal(output.join(""), spoken(WORDS));
});

check("weights", "FileOutput", "The weights' address gives the archive without a token.", async () => {
  const ended = await until(async () => {
    const found = await replicate.trainings.get(TRAINING);
    return found.completed_at && found;
  }, 120);
  const archive = await (await fetch(ended.output.weights)).arrayBuffer();
  assert(archive.byteLength > 1000);
});

check("progress", "parseProgressFromLogs", "A training's log, which has no bar, is read as no progress.", async () => {
  const ended = await until(async () => {
    const found = await replicate.trainings.get(TRAINING);
    return found.completed_at && found;
  }, 120);
  assert(ended.logs.includes("step 1/"));
  assert.equal(parseProgressFromLogs(ended), null);
});

check("list_trainings", "trainings.list", "Trainings are listed as a page.", async () => {
  const { results } = await replicate.trainings.list();
  assert(results.some((training) => training.id === TRAINING));
});

check("training_of_another", "trainings.get", "The training of another owner is 404.", async () => {
  await assert.rejects(stranger.trainings.get(TRAINING), (error) => error.response.status === 404);
});

check("models", "models.list", "Models come in pages, and each is found.", async () => {
  const names = [];
  for await (const page of replicate.paginate(replicate.models.list)) {
    names.push(...page.map((model) => `${model.owner}/${model.name}`));
  }
  assert(names.includes(CHAT));
});

check("create_model", "models.create", "A private model is seen by its owner alone.", async () => {
  const name = `${CLIENT}-model`;
  const made = await replicate.models.create(OWNER, name, { visibility: "private", hardware: "cpu" });
  assert.equal(made.latest_version, null);
  assert.equal((await replicate.models.get(OWNER, name)).name, name);
  await assert.rejects(stranger.models.get(OWNER, name), (error) => error.response.status === 404);
});

check("search", "models.search", "The quoted text of a QUERY finds models.", async () => {
  const { results } = await replicate.models.search("7b-chat");
  assert(results.some((model) => `${model.owner}/${model.name}` === CHAT));
});

check("versions", "models.versions.list", "Versions are listed, and found by id.", async () => {
  const { results } = await replicate.models.versions.list(...CHAT.split("/"));
  assert.equal(results[0].id, version);
  const found = await replicate.models.versions.get(...CHAT.split("/"), version);
  assert.equal(found.openapi_schema.components.schemas.Output["x-cog-array-type"], "iterator");
});

check("files", "files.create", "Metadata arrives as a file of its own; list, get, and delete with 204.", async () => {
  const blob = new File(["hello"], "a.txt", { type: "text/plain" });
  const file = await replicate.files.create(blob, { of: CLIENT });
  assert.deepEqual(file.metadata, { of: CLIENT });
  assert.deepEqual([file.name, file.size, file.content_type], ["a.txt", 5, "text/plain"]);
  assert.equal((await replicate.files.get(file.id)).id, file.id);
  assert((await replicate.files.list()).results.some((listed) => listed.id === file.id));
  assert.equal(await replicate.files.delete(file.id), true);
  await assert.rejects(replicate.files.get(file.id), (error) => error.response.status === 404);
});

check("too_large", "files.create", "A file that is too large is 413, and is not sent again as data.", async () => {
  const file = replicate.files.create(Buffer.alloc(3_000_000));
  await assert.rejects(file, (error) => error.response.status === 413);
});

check("deployments", "deployments.create", "A deployment is created, changed, listed, run and deleted.", async () => {
  const name = `${CLIENT}-deployment`;
  const sizes = { hardware: "cpu", min_instances: 0, max_instances: 1 };
  await replicate.deployments.create({ name, model: CHAT, version, ...sizes });
  const changed = await replicate.deployments.update(OWNER, name, { max_instances: 2 });
  assert.equal(changed.current_release.number, 2);
  assert((await replicate.deployments.list()).results.some((found) => found.name === name));
  const made = await replicate.deployments.predictions.create(OWNER, name, { input: say(WORDS), wait: true });
  assert.equal(made.output.join(""), spoken(WORDS));
  assert.equal(await replicate.deployments.delete(OWNER, name), true);
  await assert.rejects(replicate.deployments.get(OWNER, name), (error) => error.response.status === 404);
});

check("hardware", "hardware.list", "Hardware is a bare list.", async () => {
  assert((await replicate.hardware.list()).every((found) => found.sku && found.name));
});

check("collections", "collections.list", "Collections are an empty page.", async () => {
  assert.deepEqual((await replicate.collections.list()).results, []);
  await assert.rejects(replicate.collections.get("none"), (error) => error.response.status === 404);
});

check("account", "accounts.current", "The account is the token's owner.", async () => {
  assert.equal((await replicate.accounts.current()).username, OWNER);
});

check("webhook", "validateWebhook", "The client's own check takes the signature, and refuses another body.", async () => {
  const key = `${CLIENT}-signed`;
  const secret = (await replicate.webhooks.default.secret.get()).key;
  const webhook = `${RECEIVER}/hook/${key}`;
  await replicate.predictions.create({ version, input: say("größer\u2028"), webhook });
  for (const { headers, body } of await hooks(key, isCompleted)) {
    assert(await validateWebhook({ headers, body }, secret, webcrypto));
    assert(!(await validateWebhook({ headers, body: `${body} ` }, secret, webcrypto)));
  }
});

check("webhook_filter", "predictions.create", "Webhooks come in order: start first, completed last.", async () => {
  const key = `${CLIENT}-events`;
  const webhook = `${RECEIVER}/hook/${key}`;
  const filter = ["start", "output", "logs", "completed"];
  await replicate.predictions.create({
    version, input: say(WORDS), webhook, webhook_events_filter: filter,
  });
  const statuses = (await hooks(key, isCompleted)).map(({ body }) => JSON.parse(body).status);
  assert.deepEqual([statuses[0], statuses.at(-1)], ["processing", "succeeded"]);
});

check("wrong_token", "new Replicate({ auth })", "A wrong token is 401, in Replicate's words.", async () => {
  const nobody = new Replicate({ baseUrl: `${API}/v1`, auth: "r8_wrong" });
  await assert.rejects(nobody.predictions.list(), /You did not pass a valid authentication token/);
});

check("without_v1", "new Replicate({ baseUrl })", "A base URL without /v1, or with two, works as well.", async () => {
  for (const baseUrl of [API, `${API}/v1/v1`]) {
    const other = new Replicate({ baseUrl });
    assert.equal((await other.run(CHAT, { input: say(WORDS) })).join(""), spoken(WORDS));
    let pages = 0;
    for await (const page of other.paginate(other.predictions.list)) pages += page.length > 0;
    assert(pages > 1);
  }
});

await main();
