"""Chat templates with tools, as models of two families write them, and a model that has them."""

from __future__ import annotations

HERMES = """\
{%- if tools %}<|turn|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each function call return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{% endif %}
{%- for message in messages %}<|turn|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}<|turn|>assistant
"""
LLAMA = """\
{%- for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>
{% if loop.first and tools %}Respond with a JSON for a function call.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{{ message.content }}{% for call in message.tool_calls or [] %}
{{ '{"name": "' + call.function.name + '", "parameters": ' + (call.function.arguments | tojson) + '}' }}
{%- endfor %}{% endfor %}<|start_header_id|>assistant<|end_header_id|>
"""
