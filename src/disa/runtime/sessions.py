"""Generations whose backbone passes and denoising loops are replayed from graphs.

A `Session` is for batches of one shape: one model, size, number of AR steps, guidance. Its slots are the memory that
the state of a generation lies in; every graph of it reads and writes there. Captured are

| what | once for each | what it reads | what it writes |
|---|---|---|---|
| begin | session | labels or prompts, keys of the noise | slots |
| pose | AR step | slots | slots; the box of the problem |
| the way from noise to tokens | box and way along a grid | the box, keys of the noise | tokens |
| a denoising step of rows that have counts of their own | box, formula, bucket | see rows.py | their states |

A box holds the tensors of problems of one shape, with the AR step and the scale of guidance as tensors, so that the
AR steps which are alike but for these have one graph. What is handed out lies where graphs write; if somebody still
holds it when a graph is about to write there, it gets memory of its own first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from disa.core.noise import SeededNoise
from disa.core.problem import ARModel, DenoisingProblem, TimeGrid
from disa.core.ragged import Way as OneWay
from disa.core.request import Request
from disa.core.solve import Looked, from_noise, look_along
from disa.core.solver import NUM_LOOKS, Solver, WalkingSolver, walks
from disa.core.solvers import grid_for
from disa.core.work import unheard
from disa.runtime.graphs import Recording, Records, copy_all, nbytes
from disa.runtime.parts import T, Unknown, apart, assigned, fresh, rebuilt
from disa.runtime.rows import RowSteps, capacity_for, courses_of

LARGE = 1 << 20
"""Bytes from which on a tensor of a state is not copied into a box but read where it is."""


class Lent:
    """Tensors that were handed out, by the graph or box that writes over them."""

    def __init__(self) -> None:
        self.by_owner: dict[int, list[weakref.ref[Tensor]]] = {}

    def lend(self, owner: object, tensor: Tensor) -> Tensor:
        """A tensor to hand out, on the same memory."""
        alias = tensor.detach()
        self.by_owner.setdefault(id(owner), []).append(weakref.ref(alias))
        return alias

    def own(self, *owners: object) -> None:
        """Give those that somebody still holds memory of their own."""
        self._own([id(owner) for owner in owners])

    def own_all(self) -> None:
        self._own(list(self.by_owner))

    def _own(self, owners: Sequence[int]) -> None:
        for owner in owners:
            for held in self.by_owner.pop(owner, ()):
                if (tensor := held()) is not None:
                    tensor.data = tensor.clone()


@dataclass(eq=False)
class Box:
    """Memory for the tensors of problems of one shape. parts: of the field, in the order of `apart`."""

    parts: list[Tensor]
    image: Tensor
    position: Tensor
    ar_step: Tensor

    @classmethod
    def like(cls, problem: DenoisingProblem, parts: Sequence[Any], stays: Callable[[Any], bool]) -> Box:
        made = [part if stays(part) else empty_like(part, problem.device) for part in parts]
        ar_step = torch.zeros((), dtype=torch.int64, device=problem.device)
        return cls(made, torch.empty_like(problem.image), torch.empty_like(problem.position), ar_step)

    def fill(self, problem: DenoisingProblem, parts: Sequence[Any]) -> None:
        for buffer, part in zip(self.parts, parts, strict=True):
            if not isinstance(part, Tensor):
                buffer.fill_(part)
            elif part.data_ptr() != buffer.data_ptr():
                buffer.copy_(part)
        self.image.copy_(problem.image)
        self.position.copy_(problem.position)
        self.ar_step.fill_(problem.ar_step)

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.parts, self.image, self.position, self.ar_step]


def empty_like(part: Any, device: torch.device) -> Tensor:
    """Memory for a tensor, or for a number that changes."""
    if isinstance(part, Tensor):
        return torch.empty_like(part, memory_format=torch.contiguous_format)
    return torch.zeros((), dtype=torch.float32, device=device)


@dataclass(eq=False)
class Posed:
    """The graph of a pose."""

    recording: Recording
    inputs: dict[str, Tensor]
    """Memory for fields of the state that are assigned anew in each generation."""
    after: Any
    """The state after it."""
    problem: DenoisingProblem
    key: Hashable
    """Of the box."""
    box: Box
    parts: list[Any]
    """Of the field, as they are handed out: the box's, and numbers."""


@dataclass(eq=False)
class Way:
    """The graph of a way from noise to tokens, or of a look."""

    recording: Recording
    found: Any
    """What it gives, on other tensors."""


class Session:
    """Graphs for batches of one shape, and the memory that they work on."""

    def __init__(
        self,
        recorded: Records,
        has_room: Callable[[Session], bool],
        model: ARModel,
        request: Request,
        noise: SeededNoise,
    ) -> None:
        """recorded: into a pool of its own. has_room: whether more may be."""
        self.recorded, self.has_room, self.model, self.busy = recorded, has_room, model, False
        self.noise = noise.with_key(noise.key.clone())
        self.labels = None if request.labels is None else request.labels.to(noise.key.device, copy=True)
        self.ids = None if request.prompts is None else request.prompts.ids.to(noise.key.device, copy=True)
        with unheard():  # the beginning that counts is that of `begin`
            state = model.begin(request, noise)
        self.structure, parts = apart(state)
        self.slots = [part.clone() for part in parts]
        self.template = rebuilt(state, iter(self.slots))
        self.large = {slot.untyped_storage().data_ptr() for slot in self.slots if slot.nbytes >= LARGE}
        self.begun, self.poses, self.ways = self._begun(request), dict[int, Posed | None](), dict[Any, Way | None]()
        self.rows = dict[Hashable, RowSteps | None]()
        self.boxes, self.lent, self.last = dict[Hashable, Box](), Lent(), lambda: None

    @property
    def size(self) -> int:
        """Bytes."""
        graphs = [self.begun, *(each and each.recording for each in (*self.poses.values(), *self.ways.values()))]
        own = nbytes(self.slots) + sum(rows.size for rows in self.rows.values() if rows is not None)
        return own + sum(graph.size for graph in graphs if graph is not None)

    # -- begin ---------------------------------------------------------------------------------------------------

    def _begun(self, request: Request) -> Recording | None:
        """The graph of `begin`; None where it decides by values of the request."""
        prompts, model = request.prompts, cast(Any, self.model)
        given = request.known is not None or request.source is not None
        if given or (prompts is not None and model.capabilities.vocab_size is None):
            return None
        if prompts is not None and self.ids is not None:
            prompts = replace(prompts, ids=self.ids)
        asked = replace(request, labels=self.labels, prompts=prompts, checked=True)

        def begin() -> list[Tensor]:
            copy_all(self.slots, apart(self.model.begin(asked, self.noise))[1])
            return []

        return self.recorded(begin, self.slots, "the beginning of a batch")

    def begin(self, request: Request, noise: SeededNoise) -> Any:
        """The state of a generation that lies in the slots; None where it has another shape."""
        if (last := self.last()) is not None:  # whoever holds it goes on seeing what it was
            adopt(last, rebuilt(last, iter([part.clone() for part in apart(last)[1]])))
        self.lent.own_all()
        self.noise.key.copy_(noise.key)
        if self.begun is None:
            structure, parts = apart(self.model.begin(request, noise))
            if structure != self.structure:
                return None
            copy_all(self.slots, parts)
        else:
            check(self.model, request)
            if self.labels is not None and request.labels is not None:
                self.labels.copy_(request.labels)
            if self.ids is not None and request.prompts is not None:
                self.ids.copy_(request.prompts.ids)
            self.begun.replay()
        state = rebuilt(self.template, iter(self.slots))
        for each in fields(state):
            if isinstance(getattr(state, each.name), Request):
                object.__setattr__(state, each.name, request)
        self.last = weakref.ref(state)
        return state

    # -- pose ----------------------------------------------------------------------------------------------------

    def pose(self, ar_step: int, state: Any) -> tuple[DenoisingProblem, Posed | None]:
        """The problem of an AR step, and its graph if there is one."""
        if ar_step not in self.poses:
            if not self.has_room(self):
                return self.model.pose(state), None
            with unheard():
                self.poses[ar_step] = self._posed(ar_step, state)
            if (posed := self.poses[ar_step]) is not None:
                posed.recording.count()
        else:
            self._replay_pose(self.poses[ar_step], state)
        posed = self.poses[ar_step]
        if posed is None:
            return self.model.pose(state), None
        adopt(state, fresh(posed.after))
        return self._handed_out(posed), posed

    def _replay_pose(self, posed: Posed | None, state: Any) -> None:
        if posed is not None:
            for name, buffer in posed.inputs.items():
                buffer.copy_(getattr(state, name))
            self.lent.own(posed, posed.box)
            posed.recording.replay()

    def _posed(self, ar_step: int, state: Any) -> Posed | None:
        """Record it."""
        slots = {id(slot) for slot in self.slots}
        inputs = {
            each.name: value.clone()
            for each in fields(state)
            if isinstance(value := getattr(state, each.name), Tensor) and id(value) not in slots
        }
        base = fresh(state)
        for name, buffer in inputs.items():
            object.__setattr__(base, name, buffer)
        parts = apart(base)[1]

        def pose() -> tuple[Any, DenoisingProblem, list[Any], Hashable]:
            own = rebuilt(base, iter(parts))
            problem = self.model.pose(own)
            structure, found = apart(problem.field)
            return own, problem, found, structure

        after, problem, found, structure = pose()
        if list(map(id, assigned(after))) != list(map(id, assigned(base))):
            raise Unknown("a pose that assigns tensors")
        stay = tuple(part.data_ptr() if self._stays(part) else None for part in found)
        key = structure, stay, problem.process, problem.shape, len(problem.image), problem.image.dtype
        if key not in self.boxes:
            self.boxes[key] = Box.like(problem, found, self._stays)
        box, kept = self.boxes[key], list[DenoisingProblem]()
        self.lent.own(box)

        def work() -> list[Tensor]:
            _, problem, found, _ = pose()
            box.fill(problem, found)
            kept[:] = [problem]
            return [] if problem.condition is None else [problem.condition]

        written = [*self.slots, *inputs.values(), *box.tensors]
        recording = self.recorded(work, written, f"the pose of AR step {ar_step}")
        if recording is None:
            return None
        numbers = [buffer if isinstance(part, Tensor) else part for buffer, part in zip(box.parts, found, strict=True)]
        condition = recording.returned[0] if recording.returned else None
        problem = replace(kept[0], condition=condition, image=box.image, position=box.position)
        return Posed(recording, inputs, rebuilt(after, iter(parts)), problem, key, box, numbers)

    def _stays(self, part: Any) -> bool:
        """Whether a tensor of a problem lies in a large slot, and is read there."""
        return isinstance(part, Tensor) and part.untyped_storage().data_ptr() in self.large

    def _handed_out(self, posed: Posed) -> DenoisingProblem:
        def lend(part: Any, owner: object = posed.box) -> Any:
            return self.lent.lend(owner, part) if isinstance(part, Tensor) and not self._stays(part) else part

        problem, condition = posed.problem, posed.problem.condition
        return replace(
            problem,
            field=rebuilt(problem.field, map(lend, posed.parts)),
            image=lend(problem.image),
            position=lend(problem.position),
            condition=condition if condition is None else lend(condition, posed),
        )

    # -- the way from noise to tokens ----------------------------------------------------------------------------

    def along(self, posed: Posed, solver: Solver, grid: TimeGrid) -> tuple[Tensor, int] | None:
        """Tokens at the end of a way, and evaluations; None where it cannot be recorded."""
        what = f"a way of {grid.num_evaluations} denoising steps for {posed.problem.num_rows} rows"
        return self._found(posed, solver, grid, lambda problem: from_noise(problem, solver, grid, self.noise), what)

    def look(self, posed: Posed, solver: WalkingSolver) -> Looked | None:
        """The first evaluations of all rows; None where they cannot be recorded."""
        grid = grid_for(solver, posed.problem.process, NUM_LOOKS)
        what = f"a look at {posed.problem.num_rows} rows"
        return self._found(posed, solver, grid, lambda problem: look_along(problem, solver, self.noise), what)

    def _found(
        self, posed: Posed, solver: Any, grid: TimeGrid, find: Callable[[DenoisingProblem], T], what: str
    ) -> T | None:
        """What is found from a problem, a solver and a grid, from a graph."""
        if not walks(solver):
            return None
        times = (each.tobytes() for each in (grid.network_times, grid.levels, grid.times))
        key = what, posed.key, type(solver), solver.way(grid), *times
        try:
            known = key in self.ways
        except TypeError:  # a solver of the caller that cannot be compared
            return None
        if not known:
            if not self.has_room(self):
                return None
            self.ways[key] = self._way(posed, find, what)
        way = self.ways[key]
        if way is None:
            return None
        if known:
            self.lent.own(way)
            way.recording.replay()
        return rebuilt(way.found, (self.lent.lend(way, each) for each in way.recording.returned))

    def _way(self, posed: Posed, find: Callable[[DenoisingProblem], Any], what: str) -> Way | None:
        """Record it."""
        problem, kept = self._on_box(posed), list[Any]()

        def work() -> list[Tensor]:
            kept[:] = [find(problem)]
            return apart(kept[0])[1]

        recording = self.recorded(work, posed.box.tensors, what)
        return None if recording is None else Way(recording, kept[0])

    def _on_box(self, posed: Posed) -> DenoisingProblem:
        """The problem whose tensors, AR step and scale of guidance are those of the box."""
        field, ar_step = rebuilt(posed.problem.field, iter(posed.box.parts)), cast(Any, posed.box.ar_step)
        return replace(posed.problem, field=field, ar_step=ar_step, condition=None)

    def along_each(
        self, posed: Posed, solver: Solver, ways: Sequence[OneWay], looked: Looked | None
    ) -> tuple[Tensor, int] | None:
        """Tokens of rows at the ends of ways of their own, and evaluations beside those of a look; None where their
        denoising steps cannot be recorded."""
        problem = self._on_box(posed)
        found = courses_of(problem, solver, ways)
        if found is None:
            return None
        formula, courses = found
        key = posed.key, formula, capacity_for(courses)
        if key not in self.rows:
            if not self.has_room(self):
                return None
            try:
                self.rows[key] = RowSteps(self.recorded, problem, formula, self.noise, courses)
            except torch.OutOfMemoryError:
                self.rows[key] = None
        rows = self.rows[key]
        return None if rows is None else rows.run(courses, looked)


def check(model: Any, request: Request) -> None:
    """What `begin` of a model would refuse. Raises DisaError."""
    model.capabilities.check(request)


def adopt(state: Any, other: Any) -> None:
    """Give a state the fields of another one, but for the request, which is its own."""
    for each in fields(state):
        if not isinstance(value := getattr(other, each.name), Request):
            object.__setattr__(state, each.name, value)
