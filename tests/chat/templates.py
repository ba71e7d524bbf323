"""Chat templates of each kind that base models bring, small and in our own words."""

_EACH = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
_ASKS = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
_ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant in turn, please') }}{% endif %}{% endfor %}"
)

TEMPLATES = {
    "plain": _EACH + _ASKS,
    "opens its reasons in the prompt and strips those of earlier answers": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
        "{{ m.content.split('</think>')[-1] }}<|end|>{% else %}<|{{ m.role }}|>{{ m.content }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    ),
    "writes empty reasons into the last finished answer": (
        "{% for m in messages %}<|{{ m.role }}|>\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|end|>\n{% endfor %}" + _ASKS
    ),
    "writes empty reasons into the prompt": (
        _EACH + "{% if add_generation_prompt %}<|assistant|>\n<think></think>\n{% endif %}"
    ),
    "moves the system text to the last prompt": (
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}<|user|>{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}"
        "{{ m.content }}<|assistant|>{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
    ),
    "loses the system text": (
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "trims": (
        "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
    ),
    "refuses a system message": _ALTERNATES + _EACH + _ASKS,
    "ends a turn with two tokens and a dialogue with a third": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n<|end|><|of turn|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
    ),
    "ends no answer": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "ends the last answer with another token": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|done|>{% else %}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "tells the time": ("<|system|>It is {{ strftime_now('%d %B %Y') }}.<|end|>\n" + _EACH + _ASKS),
    "goes through tools and documents": (
        "{% for t in tools %}{{ t | tojson }}{% endfor %}{% for d in documents %}{{ d }}"
        "{% endfor %}" + _EACH + _ASKS
    ),
    "marks what is generated": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}{% else %}{{ m.content }}"
        "<|end|>\n{% endif %}{% endfor %}" + _ASKS
    ),
    "has no generation prompt": _EACH,
    "writes a blank before finished answers": (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|assistant|>"
        "{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
    ),
    "writes two lines before finished answers": (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|assistant|>"
        "{% else %}\n\n{{ m.content }}<|end|>{% endif %}{% endfor %}"
    ),
    "writes letters only": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    ),
    "writes a channel before finished answers": (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final"
        "{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
}
CONTROL_TOKENS = "<|system|><|user|><|assistant|><|end|><|start|><think></think>"
