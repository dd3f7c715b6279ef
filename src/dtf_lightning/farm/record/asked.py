"""What a task was asked for, as a text beside its result: by it the task can be tried again once it is done. Pure.

Rules that this file guards:
- It goes where the result goes, in the same write, and is forgotten with it: no key of its own, nothing to collect.
- It is bounded: a specification that has more than `MAX_ASKED` characters even when it is deflated is not kept.
"""

from __future__ import annotations

import base64
import zlib

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.values import TaskSpecification

MAX_ASKED = 256 * 1024
"""Characters. A task that comes after 10,000 others, which is what one plan can hold, has about 140,000."""
PLAIN = 1000
"""Bytes up to which deflating costs more time than its room is worth."""
MAX_INFLATED = 16 * 1024 * 1024


def pack(specification: TaskSpecification) -> str:
    """Return a specification as a text; "" for one that is too large."""
    data = encode(specification)
    if len(data) <= PLAIN:
        return data.decode(errors="surrogatepass")
    text = base64.b64encode(zlib.compress(data, 1)).decode()
    return text if len(text) <= MAX_ASKED else ""


def unpack(text: str) -> TaskSpecification | None:
    """Return the specification that was packed; `None` for "", and for what this release cannot read."""
    if not text:
        return None
    try:
        if text.startswith("{"):
            data = text.encode(errors="surrogatepass")
        else:
            data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MAX_INFLATED)
        value = decode(Kind.TASK, data)
    except (ProtocolError, ValueError, zlib.error):
        return None
    assert isinstance(value, TaskSpecification)
    return value
