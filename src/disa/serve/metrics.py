"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from disa.serve.orders import Drawn

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one server."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, num_open: Callable[[], int]) -> None:
        """num_open: tells how many requests are accepted and not yet answered."""
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.answers = Counter("disa_requests", "Requests for images, by the status of the answer.", ["status"], **own)
        self.images = Counter("disa_images", "Images that were drawn.", **own)
        self.evaluations = Counter("disa_evaluations", "Calls of the denoising network on one row.", **own)
        self.left = Counter("disa_left", "Requests whose client left before the answer.", **own)
        self.seconds = Histogram("disa_request_seconds", "From a request to its images.", buckets=SECONDS, **own)
        self.together = Histogram("disa_batch_images", "Images in the batch of a request.", buckets=IMAGES, **own)
        Gauge("disa_open_requests", "Requests that wait or are drawn.", **own).set_function(num_open)
        Gauge("disa_model", "The model that is served.", ["name"], **own).labels(model).set(1)

    def drew(self, drawn: Drawn, seconds: float) -> None:
        self.images.inc(len(drawn.pictures))
        self.evaluations.inc(drawn.evaluations)
        self.seconds.observe(seconds)
        self.together.observe(drawn.together)

    def page(self) -> bytes:
        return generate_latest(self.registry)
