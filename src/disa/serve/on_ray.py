"""The drawer as a deployment of Ray Serve: as many of it as the queue needs, each with a GPU or some cores of its own.

Requests come in and are checked in one process, as without Ray; Serve chooses a replica for each, starts more of them
while orders wait, and ends those that have nothing to do. Where a replica dies its orders are given to another one,
which draws the same images.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

from disa.bulk.job import Job
from disa.bulk.on_ray import CORES_PER_WORKER, connect, share_of
from disa.errors import DisaError
from disa.serve.drawer import Drawer
from disa.serve.orders import Event, Failed, Order, Preview
from disa.values import counted, first_line

MOST_DEATHS = 5
"""Replicas that may die of one order, or break off, before it is given up."""
UPSCALE, DOWNSCALE = 5.0, 60.0
"""Seconds for which there must be too much or too little to do before there are more or fewer replicas."""
NAME = "disa"


class Replica(Drawer):
    """The drawer, with a model that it loads itself."""

    def __init__(self, job: Job, device: str | None, num_threads: int | None) -> None:
        super().__init__(job.load(device, num_threads), job.settings())


class RayDrawer:
    """Draws orders in the replicas of a deployment."""

    def __init__(
        self, job: Job, device: str | None, together: int, workers: int | None, address: str, seconds: float
    ) -> None:
        """job: the model, and the options that hold where a request says nothing. together: the most images of a
        batch. workers: replicas at most; None for one per GPU, or one per few cores. address: see `connect`. seconds:
        that an order may take. Raises DisaError."""
        try:
            from ray import serve
        except ImportError as error:
            raise DisaError(f'--ray needs Ray Serve, which misses {error.name}: pip install "ray[serve]".') from error
        self._ray, self._serve = connect(address), serve
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        try:
            share, count = self._shares(device, workers)
            deployment: Any = serve.deployment(
                Replica,
                name=NAME,
                ray_actor_options=share,
                max_ongoing_requests=2 * together,
                graceful_shutdown_timeout_s=seconds,
                autoscaling_config={
                    "min_replicas": 1,
                    "max_replicas": count,
                    "target_ongoing_requests": together,
                    "upscale_delay_s": UPSCALE,
                    "downscale_delay_s": DOWNSCALE,
                },
            )
            threads = max(1, int(share["num_cpus"])) if share["num_cpus"] else None
            serve.start(proxy_location="Disabled")
            application = deployment.bind(job, device, threads)
            handle = serve.run(application, name=NAME, route_prefix=None)
            self._handle: Any = handle.options(stream=True, method_name="draw")
        except DisaError:
            self.close()
            raise
        except Exception as error:  # Ray raises errors of many kinds
            self.close()
            raise DisaError(f"Ray Serve cannot start the model: {first_line(error)}.") from error
        lost = self._ray.exceptions
        self._lost = (lost.RayActorError, lost.WorkerCrashedError, lost.ObjectLostError)

    async def draw(self, order: Order) -> AsyncGenerator[Event, None]:
        """See `Drawer.draw`. Another replica begins anew with the order where one dies, or breaks off."""
        told = ""
        for _ in range(MOST_DEATHS):
            answers, ended = self._handle.remote(order), False
            told = "said no more of it before it was drawn"
            try:
                async for event in answers:
                    ended = not isinstance(event, Preview)
                    yield event
                    if ended:
                        return
                ended = True
            except self._lost as error:
                ended, told = True, f"died of it: {first_line(error)}"
            finally:
                if not ended:
                    answers.cancel()
        yield Failed(f"{counted(MOST_DEATHS, 'process', 'processes')} {told}.")

    def close(self) -> None:
        self._serve.shutdown()
        self._ray.shutdown()

    def _shares(self, device: str | None, workers: int | None) -> tuple[dict[str, float], int]:
        """What each replica gets of the machines, and how many there are at most."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if gpus and (device or "cuda").startswith("cuda"):
            return {"num_cpus": 0, "num_gpus": 1}, workers or gpus
        cores = [float(node.get("CPU", 0)) for node in nodes]
        count = workers or max(1, int(sum(cores)) // CORES_PER_WORKER)
        return {"num_cpus": share_of(cores, count), "num_gpus": 0}, count
