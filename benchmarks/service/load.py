"""Clients of several owners, who ask for predictions and trainings, upload, look and cancel."""

import asyncio
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import httpx

from benchmarks.service.answers import GREEDY
from benchmarks.service.ledger import Accepted, Ledger
from benchmarks.service.running import RunningService
from src.cli.docstrings import docstring_pairs

MODEL = "meta/llama-2-7b-chat"
ROWS = "".join(json.dumps(row) + "\n" for row in docstring_pairs()[:8])
TRAINING = {"num_train_epochs": 1, "train_batch_size": 1, "run_validation": False, "max_steps": 6}
END_SECONDS = 600.0
CONNECTIONS = 20


class Load:
    """What the owners do; a service that is gone at that moment is nothing wrong."""

    def __init__(
        self,
        service: RunningService,
        answers: Mapping[str, str],
        hook: str,
        *,
        num_tokens: int,
        seed: int = 0,
    ) -> None:
        self._answers, self._hook, self._num_tokens = answers, hook, num_tokens
        self._rng, self.ledger = random.Random(seed), Ledger()
        self._clients = {
            owner: service.async_client(owner, connections=CONNECTIONS) for owner in service.tokens
        }
        self._version = ""
        self._data: dict[str, str] = {}

    async def prepare(self) -> None:
        """Make each owner's model and upload the file that they train on."""
        for owner, client in self._clients.items():
            model = {"owner": owner, "name": "tuned", "visibility": "private", "hardware": "cpu"}
            (await client.post("/v1/models", json=model)).raise_for_status()
            file = {"content": ("rows.jsonl", ROWS.encode(), "application/jsonl")}
            uploaded = (await client.post("/v1/files", files=file)).raise_for_status().json()
            self._data[owner] = uploaded["urls"]["get"]
            found = (await client.get(f"/v1/models/{MODEL}")).raise_for_status().json()
            self._version = found["latest_version"]["id"]

    async def predict(self, owner: str) -> str | None:
        """Ask for a prediction; return its id if it was accepted."""
        prompt = self._rng.choice(list(self._answers))
        inputs = {"prompt": prompt, "max_new_tokens": self._num_tokens, **GREEDY}
        accepted = Accepted(owner, "prediction", self._answers[prompt], self._rng.random() < 0.3)
        return await self._create(f"/v1/models/{MODEL}/predictions", inputs, accepted)

    async def train(self, owner: str) -> str | None:
        """Ask for a training; return its id if it was accepted."""
        path = f"/v1/models/{MODEL}/versions/{self._version}/trainings"
        inputs = {"train_data": self._data[owner], **TRAINING}
        accepted = Accepted(owner, "training", webhook=True)
        return await self._create(path, inputs, accepted, destination=f"{owner}/tuned")

    async def upload(self, owner: str) -> None:
        """Upload some bytes in two steps."""
        content = self._rng.randbytes(self._rng.randrange(1, 200_000))
        begun = await self._ask(owner, "POST", "/v1/upload/data.jsonl")
        if begun is not None:
            urls = begun.json()
            if await self._ask(owner, "PUT", urls["upload_url"], content=content) is not None:
                self.ledger.files[urls["serving_url"]] = content

    async def cancel(self, id: str) -> None:
        """Ask for the end of a run."""
        run = self.ledger.runs[id]
        run.is_canceled = True
        await self._show(run.owner, "POST", f"/v1/predictions/{id}/cancel")

    async def look(self, id: str) -> None:
        """See how a run is."""
        await self._show(self.ledger.runs[id].owner, "GET", f"/v1/predictions/{id}")

    async def act(self, owner: str, until: asyncio.Event, *, most_trainings: int) -> None:
        """Do what comes to an owner's mind, over and over."""
        own: list[str] = []
        num_trainings = 0
        while not until.is_set():
            chance, made = self._rng.random(), None
            if chance < 0.02 and num_trainings < most_trainings:
                made = await self.train(owner)
                num_trainings += made is not None
            elif chance < 0.5:
                made = await self.predict(owner)
            elif chance < 0.6:
                await self.upload(owner)
            elif own:
                await (self.cancel if chance < 0.65 else self.look)(self._rng.choice(own[-40:]))
            own += [made] if made is not None else []
            await asyncio.sleep(self._rng.uniform(0, 0.1))

    async def wait(self) -> None:
        """Look until every run has ended, and once more; raises TimeoutError."""
        async with asyncio.timeout(END_SECONDS):
            while unfinished := self.ledger.unfinished():
                await self._look_at(unfinished)
                await asyncio.sleep(0.3)
        await self._look_at(list(self.ledger.runs))

    async def check_bytes(self) -> None:
        """Note uploads that read differently, and trainings that made another adapter."""
        for url, content in self.ledger.files.items():
            answer = await self._ask(next(iter(self._clients)), "GET", url)
            if answer is None or answer.content != content:
                self.ledger.problems.append(f"{url}: not what was uploaded")
        adapters = set()
        for id, run in self.ledger.runs.items():
            if run.kind == "training" and run.seen["status"] == "succeeded":
                weights = await self._ask(run.owner, "GET", run.seen["output"]["weights"])
                if weights is None:
                    self.ledger.problems.append(f"{id}: its weights are not there")
                else:
                    adapters.add(_adapter(weights.content))
        if len(adapters) > 1:
            self.ledger.problems.append(f"equal trainings made {len(adapters)} adapters")

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _look_at(self, ids: Sequence[str]) -> None:
        slots = asyncio.Semaphore(CONNECTIONS)

        async def look(id: str) -> None:
            async with slots:
                await self.look(id)

        await asyncio.gather(*map(look, ids))

    async def _create(
        self, path: str, inputs: dict[str, Any], accepted: Accepted, **more: Any
    ) -> str | None:
        body = {"input": inputs, **more}
        if accepted.webhook:
            body |= {"webhook": self._hook, "webhook_events_filter": ["start", "completed"]}
        answer = await self._ask(accepted.owner, "POST", path, json=body)
        if answer is None:
            return None
        self.ledger.accept(answer.json(), accepted)
        return answer.json()["id"]

    async def _show(self, owner: str, method: str, path: str) -> None:
        answer = await self._ask(owner, method, path)
        if answer is not None:
            self.ledger.see(answer.json())

    async def _ask(self, owner: str, method: str, url: str, **what: Any) -> httpx.Response | None:
        try:
            answer = await self._clients[owner].request(method, url, **what)
        except httpx.TransportError:
            return None
        if answer.is_error:
            self.ledger.problems.append(f"{method} {url}: {answer.status_code}, {answer.text}")
            return None
        return answer


def _adapter(archive: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("adapter_model.safetensors")
        assert member is not None
        return sha256(member.read()).hexdigest()
