"""The chat model's page: a question, a dialogue, a system prompt, and a stream."""

import replicate

MODEL = "meta/llama-2-70b-chat"
for inputs in (
    {"prompt": "What is red?"},
    {"prompt": "[INST] Hello. [/INST] Hi! [INST] What is red? [/INST]"},
    {"prompt": "What is red?", "system_prompt": "Be brief.", "temperature": 0.01},
):
    output = replicate.run(MODEL, input={**inputs, "max_new_tokens": 20})
    print("".join(str(chunk) for chunk in output))
inputs = {"prompt": "Count.", "max_new_tokens": 20}
print("".join(str(event) for event in replicate.stream(MODEL, input=inputs)))
