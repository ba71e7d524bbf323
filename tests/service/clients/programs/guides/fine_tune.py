"""The guide of fine-tuning: a model, a file, a training, and the version that comes out of it."""

import os
import time
from pathlib import Path

import replicate

owner, data = os.environ["OWNER"], Path(os.environ["DATA"])
name = f"tuned-{os.environ['CLIENT']}"
if hasattr(replicate, "hardware"):  # older clients had no call for it: models were made on a page
    replicate.models.create(owner=owner, name=name, visibility="private", hardware="gpu-a40-large")
    assert replicate.models.get(f"{owner}/{name}").latest_version is None
else:
    name = "guided"
with data.open("rb") as file:
    # 0.16 to 0.25 take an address only.
    by_address = os.environ["VERSION"] == "0.25.2"
    training = replicate.trainings.create(
        version="meta/llama-2-7b:4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132",
        input={"train_data": os.environ["DATA_URL"] if by_address else file, "num_train_epochs": 1},
        destination=f"{owner}/{name}",
    )
while training.status not in ("succeeded", "failed", "canceled"):
    time.sleep(0.5)
    training.reload()
assert training.status == "succeeded", training.error
version = training.output["version"]
assert version.startswith(f"{owner}/{name}:"), version
prompt = "What is the colour of number 1?"
answer = "".join(replicate.run(version, input={"prompt": prompt, "max_new_tokens": 20}))
assert answer
if name != "guided":  # and away with it again
    assert replicate.models.get(f"{owner}/{name}").versions.delete(version.split(":")[1])
print(training.id, version, answer)
