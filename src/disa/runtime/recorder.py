"""Which generations are replayed from graphs, and how many graphs are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from disa.core.generate import Drawing
from disa.core.noise import SeededNoise
from disa.core.problem import ARModel, DenoisingProblem, Noise, TimeGrid
from disa.core.ragged import Way
from disa.core.request import Request
from disa.core.solve import Looked
from disa.core.solver import Solver, WalkingSolver
from disa.runtime import fused
from disa.runtime.graphs import CudaTape, Recording, Tape, Work, record
from disa.runtime.parts import Unknown, apart
from disa.runtime.sessions import Posed, Session

MOST_KEYS = 4096
"""Shapes that were met once and are remembered."""
SHARE = 0.25
"""Of a device's memory, for graphs and what they work on."""


class Recorder:
    """The sessions of one model, the most recent last. A shape is recorded when it is met a second time."""

    def __init__(self, tape: Tape, most: int) -> None:
        """most: bytes of all graphs and slots; a shape that is not recorded for want of room is drawn without."""
        self.tape, self.most = tape, most
        self.sessions, self.lock = OrderedDict[Hashable, Session](), RLock()
        self.met, self.refused = set[Hashable](), set[Hashable]()

    def begin(self, model: ARModel, request: Request, noise: Noise) -> Drawing:
        """A generation; from graphs where its shape was met before, and no other one is under way on them."""
        with self.lock:
            session = self._session(model, request, noise)
            if session is None:
                return Drawing(model, request, noise)
            session.busy = True
            try:
                state = session.begin(request, noise)  # pyright: ignore[reportArgumentType]
            except BaseException:
                session.busy = False
                raise
            if state is not None:
                return Replayed(session, noise, state)
            session.busy = False
        return Drawing(model, request, noise)

    def _session(self, model: ARModel, request: Request, noise: Noise) -> Session | None:
        if not isinstance(noise, SeededNoise) or not getattr(model, "can_be_replayed", True):
            return None
        key = key_of(model, request, noise)
        if key in self.sessions:
            self.sessions.move_to_end(key)
            return None if self.sessions[key].busy else self.sessions[key]
        if key in self.refused:
            return None
        if key not in self.met:
            if len(self.met) >= MOST_KEYS:
                self.met.clear()
                self.refused.clear()
            self.met.add(key)
            return None
        if not self.has_room(None):
            return None
        try:
            recorded = partial(self.recorded, self.tape.new_pool())
            self.sessions[key] = Session(recorded, self.has_room, model, request, noise)
        except (Unknown, torch.OutOfMemoryError):
            self.refused.add(key)
            return None
        return self.sessions[key]

    def recorded(self, pool: Any, work: Work, *others: Any, **named: Any) -> Recording | None:
        """Record a work, see `record`; one at a time."""
        with self.lock:
            return record(self.tape, pool, work, *others, **named)

    def has_room(self, session: Session | None) -> bool:
        """Whether more may be recorded; for that what was not used for longest is let go, if nothing goes on on it."""
        with self.lock:
            for key, old in list(self.sessions.items()):
                if self.size <= self.most:
                    break
                if old is not session and not old.busy:
                    del self.sessions[key]
            return self.size <= self.most

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(session.size for session in self.sessions.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the model records its own


def can_record(device: torch.device) -> bool:
    """Whether there are graphs on a device."""
    return device.type == "cuda"


def recorder_on(device: torch.device) -> Recorder:
    """A recorder for a CUDA device, which leaves most of its memory to all else."""
    return Recorder(CudaTape(device), int(SHARE * torch.cuda.get_device_properties(device).total_memory))


class Replayed(Drawing):
    """A generation from graphs."""

    def __init__(self, session: Session, noise: Noise, state: Any) -> None:
        self.session, self.model, self.noise, self.state = session, session.model, noise, state
        self.ar_step = 0
        self.posed: Posed | None = None

    def pose(self) -> DenoisingProblem:
        try:
            problem, self.posed = self.session.pose(self.ar_step, self.state)
        except (Unknown, torch.OutOfMemoryError):
            self.session.poses[self.ar_step] = self.posed = None
            return super().pose()
        return problem

    def along(self, problem: DenoisingProblem, solver: Solver, grid: TimeGrid) -> tuple[Tensor, int]:
        found = None if self.posed is None else self.session.along(self.posed, solver, grid)
        return super().along(problem, solver, grid) if found is None else found

    def look(self, problem: DenoisingProblem, solver: WalkingSolver) -> Looked:
        found = None if self.posed is None else self.session.look(self.posed, solver)
        return super().look(problem, solver) if found is None else found

    def along_each(
        self, problem: DenoisingProblem, solver: Solver, ways: Sequence[Way], looked: Looked | None = None
    ) -> tuple[Tensor, int]:
        found = None if self.posed is None else self.session.along_each(self.posed, solver, ways, looked)
        return super().along_each(problem, solver, ways, looked) if found is None else found

    def accept(self, tokens: Tensor) -> None:
        super().accept(tokens)
        self.ar_step += 1

    def close(self) -> None:
        self.session.busy = False


def key_of(model: Any, request: Request, noise: SeededNoise) -> Hashable:
    """What the shape of a batch follows from."""
    weights = tuple(each.data_ptr() for each in model.parameters()) if isinstance(model, nn.Module) else ()
    left = None if request.mask is None else tuple(request.mask.flatten(1).sum(1).tolist())
    words = None if request.prompts is None else (request.prompts.ids.shape, tuple(request.prompts.lengths.tolist()))
    return id(model), weights, apart(request)[0], left, words, noise.make, fused.is_fused(noise.key)
