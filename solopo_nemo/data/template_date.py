"""The date that a chat template prints, such as Llama 3.2's: fixed for all prompts of a run, and stored with its model.

Templates get the date from transformers' function ``strftime_now``. Pinning prepends a macro of that name with a fixed
date to the template::

    pin_date(tokenizer, date(2026, 11, 29))    # strftime_now("%d %b %Y") now returns "29 Nov 2026"
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "chat_template_date"
"""Key of ``tokenizer_config.json`` with the date in the prompts on which the model was trained."""
_DIRECTIVES = "aAbBcCdDeFfgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
_PINNED = re.compile(r"{# strftime_now of (\S+) #}")


def pin_date(tokenizer: PreTrainedTokenizerBase, day: date) -> bool:
    """Make the chat template print a fixed date, at midnight. Return False if the template prints no date."""
    template = tokenizer.chat_template
    if not template or "strftime_now" not in str(template):
        return False
    moment = datetime.combine(day, time())
    replaced = [("%%", "\0"), *((f"%{f}{d}", moment.strftime(f"%{f}{d}")) for d in _DIRECTIVES for f in ("", "-"))]
    filters = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in [*replaced, ("\0", "%")])
    head = f"{{# strftime_now of {day} #}}{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}"
    head += "{{ '' }}"  # it keeps a line break at the start of the template, which Jinja would strip after a block
    if isinstance(template, dict):
        tokenizer.chat_template = {name: head + text for name, text in template.items()}
    else:
        tokenizer.chat_template = head + template
    return True


def pinned_date(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The date that :func:`pin_date` fixed, such as ``2026-11-29``; None for a template without a pinned date."""
    found = _PINNED.search(str(tokenizer.chat_template))
    return found[1] if found else None
