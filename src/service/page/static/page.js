// What the page does beyond links and forms: it follows what runs, streams answers, cancels in
// place and shows the report of a file. All of it also works without, on a reload.
"use strict";

// An element with data-live asks that address every data-seconds and puts what has changed into
// its data-part and data-logs elements, until the run has ended.
function follow(root) {
  const logs = root.querySelector("[data-logs]");
  const shown = {};
  const ask = async () => {
    const query = logs ? `?logs=${logs.dataset.logs}` : "";
    const answer = await fetch(root.dataset.live + query);
    if (answer.redirected) return location.reload(); // the session is over
    if (!answer.ok) return;
    const state = await answer.json();
    for (const [name, html] of Object.entries(state.parts)) {
      const part = root.querySelector(`[data-part="${name}"]`);
      if (part && shown[name] !== html) {
        // The first answer is what the page came with, as a rule: nothing moves under a reader.
        if (shown[name] !== undefined || part.innerHTML.trim() !== html.trim()) {
          part.innerHTML = html;
          localTimes(part);
        }
        shown[name] = html;
      }
    }
    if (logs && state.logs) {
      const isAtEnd = logs.scrollTop + logs.clientHeight >= logs.scrollHeight - 20;
      logs.append(state.logs);
      if (isAtEnd) logs.scrollTop = logs.scrollHeight;
    }
    if (logs) logs.dataset.logs = state.next;
    if (state.is_final) {
      root.dataset.final = "";
      for (const part of root.querySelectorAll("[data-while-running]")) part.hidden = true;
    }
  };
  const again = async () => {
    try {
      if (!document.hidden) await ask();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // the service is away: it may come back
    }
    if (root.dataset.final === undefined) setTimeout(again, 1000 * root.dataset.seconds);
  };
  root.refresh = ask;
  if (logs) logs.scrollTop = logs.scrollHeight;
  if (root.dataset.final === undefined) setTimeout(again, 1000 * root.dataset.seconds);
}

// An element with data-stream shows the answer as it comes; the stream begins at its beginning.
function stream(output) {
  const source = new EventSource(output.dataset.stream);
  let text = "";
  source.addEventListener("output", (event) => {
    text += event.data;
    output.textContent = text;
  });
  source.addEventListener("done", () => {
    source.close();
    output.closest("[data-live]").refresh();
  });
}

// A form with data-quiet is sent without leaving the page.
function sendQuietly(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    form.querySelector("button").disabled = true;
    await fetch(form.action, { method: "POST" });
    await form.closest("[data-live]").refresh();
  });
}

// An element with data-report shows what a training with the form's inputs would do.
function report(place) {
  const form = document.getElementById("training");
  const button = document.querySelector("[formaction='/new/report']");
  const show = async () => {
    place.setAttribute("aria-busy", "true");
    place.textContent = "Reading the file …";
    button.disabled = true;
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(place.dataset.report, { method: "POST", body });
    place.innerHTML = await answer.text();
    place.removeAttribute("aria-busy");
    button.disabled = false;
  };
  button.addEventListener("click", (event) => {
    event.preventDefault();
    show();
  });
  if (!place.innerHTML.trim() && !form.querySelector("[aria-invalid]")) show();
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

localTimes(document);
document.querySelectorAll("[data-live]").forEach(follow);
document.querySelectorAll("[data-stream]").forEach(stream);
document.querySelectorAll("[data-quiet]").forEach(sendQuietly);
document.querySelectorAll("[data-report]").forEach(report);
document.querySelector("[aria-invalid]")?.focus();
