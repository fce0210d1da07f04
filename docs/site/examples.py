"""What docstrings here have and griffe reads otherwise: bare examples, a layer's call, results told in sentences.

Markdown would read the three brackets of a prompt as nested quotations, griffe a section of no known name as one
paragraph, and the lines of a result as a value each.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
CALL_ARGUMENTS = re.compile(r"^Call arguments:$", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n((?: {4}.*(?:\n|\Z))+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences the examples of every object, and lists what its call takes."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
            text = CALL_ARGUMENTS.sub("Other Parameters: Call arguments:", text)
            obj.docstring.value = RETURNS.sub(lambda found: f"**Returns:**\n\n* {' '.join(found[1].split())}\n", text)
