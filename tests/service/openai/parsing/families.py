"""How each family writes calls of tools: small templates in our own words, and real texts."""

_PLAIN = "{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}"
_OPENING = "{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}" + _PLAIN
_REASONS = (
    "{% else %}<|assistant|>{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}"
)
_CLOSING = "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def _template(calls: str, *, opening: str = _OPENING) -> str:
    return f"{opening}{_REASONS}{{% if m.tool_calls %}}{calls}{{% endif %}}{_CLOSING}"


_EACH = "{% for c in m.tool_calls %}"
_DEEPSEEK_END = "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"

TEMPLATES = {
    "hermes": _template(
        _EACH + '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
    ),
    "mistral, a list": _template(
        "[TOOL_CALLS][" + _EACH + '{{ ", " if not loop.first }}{"name": "{{ c.function.name }}", '
        '"arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{% endfor %}]'
    ),
    "mistral, named": _template(
        _EACH + "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
        "{% endfor %}"
    ),
    "granite": _template(
        "<|tool_call|>[" + _EACH + '{{ ", " if not loop.first }}{"name": '
        '"{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}]'
    ),
    "deepseek, up to R1": _template(
        "<｜tool▁calls▁begin｜>" + _EACH + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        "{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```" + _DEEPSEEK_END
    ),
    "deepseek, from V3.1": _template(
        "<｜tool▁calls▁begin｜>" + _EACH + "<｜tool▁call▁begin｜>{{ c.function.name }}"
        "<｜tool▁sep｜>{{ c.function.arguments | tojson }}" + _DEEPSEEK_END
    ),
}

TEXTS = {
    "hermes": 'So:\n<tool_call>\n{"name": "add", "arguments": {"a": [1, "}"]}}\n</tool_call>\nend ',
    "qwen_coder": (
        "<tool_call>\n<function=add>\n<parameter=a>\n12\n</parameter>\n<parameter=b>\n<b>\n\n"
        "</parameter>\n</function>\n</tool_call>"
    ),
    "glm": (
        "I add.\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>12</arg_value>\n<arg_key>b"
        "</arg_key>\n<arg_value>x < y</arg_value>\n</tool_call>"
    ),
    "llama": '<|python_tag|>{"name": "add", "parameters": {"a": "\\"}"}}; {"name": "add"}',
    "mistral": (
        '[TOOL_CALLS][{"arguments": {"a": 1}, "name": "add"}, {"name": "f", "arguments": {}}]'
        "[TOOL_CALLS]add[CALL_ID]123[ARGS]{}"
    ),
    "granite": '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|> and',
    "deepseek": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        '{"a": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>add<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "lfm": "<|tool_call_start|>[add(a=1, b='x', c={\"d\": true})]<|tool_call_end|>Done.",
}
"""An answer of each family, with what is easily read wrong."""
