"""What is answered in the form of OpenAI's API: images, and the events of a stream."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from disa.serve.asking import Asked
from disa.serve.orders import Drawn, Preview
from disa.serve.refusals import Refused

DATA_URL = "data:image/png;base64,"


def images(asked: Asked, drawn: Drawn, model: str) -> dict[str, Any]:
    """The answer to a request."""
    data = [_picture(asked, content) | _about(asked, drawn, i) for i, content in enumerate(drawn.pictures)]
    return {"created": int(time.time()), "data": data, **_form(asked), "disa": _told(drawn, model)}


def events(asked: Asked, found: Preview | Drawn, model: str) -> Iterator[bytes]:
    """What is told of it in a stream."""
    yield from _previews(asked, found) if isinstance(found, Preview) else _finished(asked, found, model)


def failed(refused: Refused) -> bytes:
    """The event of an error."""
    return _event("error", refused.body)


def _event(kind: str, content: dict[str, Any]) -> bytes:
    """As server-sent events are written."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | content)}\n\n".encode()


def _previews(asked: Asked, preview: Preview) -> Iterator[bytes]:
    """An event for each image under way."""
    kind, number = "image_generation.partial_image", asked.order.previews.index(preview.ar_step)
    for place, content in preview.pictures.items():
        told = {"partial_image_index": number, "index": place, "ar_step": preview.ar_step}
        yield _event(kind, _picture(asked, content) | told | {"created_at": int(time.time())} | _form(asked))


def _finished(asked: Asked, drawn: Drawn, model: str) -> Iterator[bytes]:
    """An event for each finished image."""
    told = {"created_at": int(time.time()), **_form(asked), "disa": _told(drawn, model)}
    for i, content in enumerate(drawn.pictures):
        yield _event("image_generation.completed", _picture(asked, content) | _about(asked, drawn, i) | told)


def _picture(asked: Asked, content: bytes) -> dict[str, Any]:
    text = b64encode(content).decode()
    return {"url": DATA_URL + text} if asked.as_url else {"b64_json": text}


def _about(asked: Asked, drawn: Drawn, i: int) -> dict[str, Any]:
    """What image i was drawn from."""
    inputs = asked.order.inputs
    label = {} if inputs.labels is None else {"label": inputs.labels[i]}
    words = {} if drawn.rewritten is None else {"revised_prompt": drawn.rewritten[i]}
    return {"index": i, "seed": inputs.seeds[i]} | label | words


def _form(asked: Asked) -> dict[str, Any]:
    height, width = asked.size
    return {"size": f"{width}x{height}", "quality": "auto", "background": "opaque", "output_format": "png"}


def _told(drawn: Drawn, model: str) -> dict[str, Any]:
    """What is no part of OpenAI's API."""
    told = {"evaluations": drawn.evaluations, "seconds": drawn.seconds, "drawn_together": drawn.together}
    return {"model": model} | told
