"""Chat templates, each with the behaviour of a known family."""

from __future__ import annotations

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3: the last answer gets an empty think block where it has no reasoning; earlier answers lose theirs; tools are
# written first, calls after the text
_CONVERSATION = """
{%- if tools %}{{- '<|im_start|>system\\nTools: ' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content if m.content is string else '' %}{%- set reason = '' %}
{%- if m.reasoning_content is string %}{%- set reason = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reason = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or reason) %}
{{- '<|im_start|>assistant\\n<think>\\n' + reason.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}
{%- for c in m.tool_calls or [] %}{{- '\\n<tool_call>' + (c.function | tojson) + '</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}"""
HYBRID = (
    _CONVERSATION
    + """
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
)
# Qwen3-Thinking-2507: the generation prompt opens the think block
ALWAYS = _CONVERSATION + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
# distilled from R1: the generation prompt opens a think block that the conversation drops
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + c + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + eos_token + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# a space that belongs to the template, before and after an answer
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}"
    "{% else %}{{ ' ' + m.content + '\n--\n' + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# Llama 3.2: the date of the day, unless a switch gives it
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y %H:%M:%S') %}{% else %}{% set date_string = 'unknown' %}{% endif %}"
    "{% endif %}{{ '<|im_start|>system\nToday Date: ' + date_string + '<|im_end|>\n' }}"
) + CHATML
# Mistral 3: roles in turn or an error, calls with their ids, tools before the last question
TOOLS = (
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if tools and m == users[-1] %}"
    "{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}[TOOL_CALLS]{% for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS]' + ({'content': m.content, 'call_id': m.tool_call_id} | tojson) + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ raise_exception('no such role: ' + m.role) }}{% endif %}{% endfor %}"
)
# Command R: documents; authors by their names; content may be a list of parts
DOCUMENTS = (
    "{% if documents %}{{ '<|im_start|>documents\n' }}{% for d in documents %}{{ d.title ~ ': ' ~ d.text ~ '\n' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role }}"
    "{% if m.name is defined %}{{ ' name=' ~ m.name }}{% endif %}{{ '\n' }}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen 2.5: a system message of its own; the text None for no content
OWN_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma: the assistant is called model, a system message is an error
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m.role) }}"
    "{% endif %}{{ '<|im_start|>' + ('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# SmolLM2: ChatML with a system message of its own
SMOLLM2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}"
    "{% endif %}"
) + CHATML
# Qwen 2.5 with tools: results of calls are the user's turns
QWEN2_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 3.1: tools before the first question, one call alone in a turn, results with the role ipython
LLAMA3_TOOLS = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{ m.tool_calls[0].function | tojson }}{{ '<|eot_id|>' }}{% elif m.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if tools and m == messages[0] %}{{ 'Tools: ' + (tools | tojson) + '\n\n' }}{% endif %}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "hybrid": HYBRID, "always": ALWAYS, "r1": R1, "llama2": LLAMA2, "mistral1": MISTRAL1,
    "zephyr": ZEPHYR, "llama3": LLAMA3, "spaced": SPACED, "tools": TOOLS, "documents": DOCUMENTS, "system": OWN_SYSTEM,
    "gemma": GEMMA,
}  # fmt: skip
MORE = {"smollm2": SMOLLM2, "qwen2_tools": QWEN2_TOOLS, "llama3_tools": LLAMA3_TOOLS}
"""Templates that the fuzz of rows leaves out."""
END = {"llama3_tools": "<|eot_id|>", "qwen2_tools": "<|im_end|>", "smollm2": "<|im_end|>"}
END |= {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "hybrid": "<|im_end|>", "always": "<|im_end|>"}
END |= {"spaced": "<|im_end|>", "documents": "<|im_end|>", "system": "<|im_end|>", "gemma": "<|im_end|>"}
"""The token that closes an answer, where it is not ``</s>``."""
SPECIAL = [
    *("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>"),
]
