"""What is done for a visitor. Each takes the visitor and what the page has in its fields, and tells what to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from PIL import Image

from disa.core.steps import Schedule, describe
from disa.draw.opening import open_picture
from disa.draw.pictures import png, to_image
from disa.draw.recipes import FAST, find_recipe
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.serve.asking import refuse_files
from disa.studio import editing, explaining, gallery, shown
from disa.studio.comparing import MORE, MOST_MEASURED, Compared
from disa.studio.drawing import Drawing
from disa.studio.editing import Edited
from disa.studio.form import Form, options_of
from disa.studio.machine import Machine
from disa.studio.models import Models, is_small
from disa.studio.plot import counts_plot
from disa.studio.restoring import Told
from disa.studio.shown import Shown
from disa.studio.visitors import Visitor
from disa.values import counted

STOPPED = "Cancelled after {} of {} AR steps."
DRAW, COMPARE, EDIT, WHY = "draw", "compare", "edit", "why"


@dataclass(frozen=True)
class About:
    """What a page must know of a model."""

    name: str
    told: str
    takes_prompts: bool
    num_labels: int
    steps: str
    original: str
    others: list[str]
    """Settings to compare with the original."""
    has_recipe: bool
    keeps: bool
    edits: bool
    """Whether it draws a picture anew as words say."""
    unedited: str
    """Why pictures cannot be edited; empty where they can."""
    measured: bool


class Handlers:
    """All of them, for one studio."""

    def __init__(self, machine: Machine, models: Models, files: bool = True) -> None:
        """files: whether visitors may name files of this machine, such as tables and recipes."""
        self.machine, self.models, self.files = machine, models, files

    # -- the model and the fields ----------------------------------------------------------------------------------

    def about(self, name: str) -> About:
        """Raises DisaError where there is no such model."""
        sampler = self.models.get(name or self.models.names[0])
        preset, able = sampler.preset, sampler.model.capabilities
        own = preset.defaults
        return About(
            preset.name,
            f"{preset.name} · {sampler.device} · {sampler.dtype}",
            preset.prompts,
            0 if preset.prompts else preset.spec.architecture.num_classes,
            own.steps,
            own.original,
            [own.steps, "linear:10-2", "linear:5-50"] if own.original.startswith("constant") else [own.steps],
            _has_recipe(sampler),
            able.keeps_tokens,
            able.edits,
            _why_unedited(sampler),
            bool(own.quality),
        )

    def plan(self, form: Form) -> str:
        """The counts of the step policy in the fields, as a plot; or what is wrong with it, in words."""
        try:
            _, settings = self._settings(form)
        except DisaError as error:
            return shown.sentence(str(error), wrong=True)
        return _plotted(settings)

    def _settings(self, form: Form, **changed: Any) -> tuple[Sampler, Settings]:
        if not self.files:
            refuse_files(form.options() | changed)
        sampler = self.models.get(form.model)
        return sampler, form.settings(sampler, **changed)

    # -- draw ------------------------------------------------------------------------------------------------------

    def draw(self, visitor: Visitor, form: Form, ahead: bool = False) -> Iterator[Shown]:
        """Draw pictures, and show them after every AR step. ahead: and what they may become. Raises DisaError."""
        stopped = visitor.begin(DRAW)
        sampler, settings = self._settings(form)
        drawing = Drawing(self.machine, sampler, form.inputs(sampler), settings, ahead=ahead)
        for _ in drawing.turns(stopped):
            yield Shown(_stage(drawing))
        yield self._ended(visitor, drawing)

    def _ended(self, visitor: Visitor, drawing: Drawing) -> Shown:
        """The last that is shown of a drawing: its pictures are kept if they are finished."""
        if drawing.samples is None:
            return Shown(_stage(drawing), _cancelled(drawing), busy=False)
        visitor.pictures.extend(drawing.pictures())
        count = counted(len(drawing.inputs), "picture")
        each = drawing.samples.evaluations_per_row
        said = f"{count} in {drawing.spent.seconds:.2f} s: {each:.1f} evaluations per token."
        return Shown(_stage(drawing), said, busy=False, gallery=gallery.html(visitor.pictures))

    # -- compare ---------------------------------------------------------------------------------------------------

    def compare(self, visitor: Visitor, form: Form, others: list[str]) -> Iterator[Shown]:
        """Draw the original and other settings in turn. Raises DisaError."""
        stopped = visitor.begin(COMPARE)
        sampler = self.models.get(form.model)
        texts = [sampler.defaults.original, *(text.strip() for text in others if text.strip())]
        if len(texts) < 2:
            raise DisaError("there is nothing to compare with the original: write a step policy, such as linear:50-5.")
        if len(set(texts)) < len(texts):
            raise DisaError(f"each setting can be compared once, found {', '.join(texts)}.")
        settings = {text: self._settings(form, **{"recipe": "none"} | options_of(text))[1] for text in texts}
        visitor.compared = None
        compared = Compared.begin(self.machine, sampler, form.inputs(sampler), settings)
        for _ in compared.draw(stopped):
            yield Shown(compared.html())
        if stopped.is_set():
            yield Shown(compared.html(), _cancelled(compared.drawings[0]), busy=False)
            return
        visitor.compared = compared
        for drawing in compared.drawings:
            visitor.pictures.extend(drawing.pictures())
        yield Shown(compared.html(), compared.why_not(), busy=False, gallery=gallery.html(visitor.pictures))

    def compare_more(self, visitor: Visitor) -> Iterator[Shown]:
        """Draw more of what was compared last, and measure all of it. Raises DisaError."""
        compared: Compared | None = visitor.compared
        if compared is None:
            raise DisaError("compare some settings first: more of the same is drawn then.")
        if compared.measure is None:
            raise DisaError(compared.why_not())
        if len(compared.images[0]) + MORE > MOST_MEASURED:
            raise DisaError(f"{MOST_MEASURED} pictures are the most here: `disa compare` draws as many as you like.")
        stopped = visitor.begin(COMPARE)
        for done, whole in compared.draw_more(self.machine, stopped):
            told = f"{MORE} more of each: {done} of {whole} AR steps"
            yield Shown(compared.html(shown.progress(done, whole, told)))
        if stopped.is_set():
            yield Shown(compared.html(), "Cancelled: what was drawn so far is not measured.", busy=False)
            return
        if why := compared.why_not():
            yield Shown(compared.html(), why, busy=False)
            return
        yield Shown(compared.html(shown.progress(1, 1, "measuring")))
        yield Shown(compared.html(self.machine.do(compared.quality)), busy=False)

    # -- edit ------------------------------------------------------------------------------------------------------

    def open(self, visitor: Visitor, form: Form, file: str) -> tuple[Any, str]:
        """A picture file on the easel: what is painted on, and what is said of it. Raises DisaError."""
        try:
            picture = open_picture(file)
        except DisaError as error:
            raise DisaError(str(error).replace(str(file), Path(file).name)) from error
        return self._put(visitor, form, Edited(picture, Path(file).name))

    def take(self, visitor: Visitor, form: Form) -> tuple[Any, str]:
        """The same with the picture drawn last. Raises DisaError."""
        if not visitor.pictures:
            raise DisaError("there is no picture yet: draw one, or open a file.")
        last = visitor.pictures[-1]
        return self._put(visitor, form, Edited(_picture_of(last.content), last.name, last.model, last.latents))

    def _put(self, visitor: Visitor, form: Form, edited: Edited) -> tuple[Any, str]:
        sampler, settings = self._settings(form)
        _check_edited(sampler)
        visitor.edited = edited
        size = "x".join(str(side) for side in (edited.picture.height, edited.picture.width))
        return edited.on_easel(sampler, settings), f"{edited.name}, {size} pixels."

    def edit(
        self, visitor: Visitor, form: Form, painted: Mapping[str, Any] | None, where: str, instruction: str | None
    ) -> Iterator[Shown]:
        """Draw a part of a picture again, or all of it as the instruction says. Raises DisaError."""
        stopped = visitor.begin(EDIT)
        edited: Edited | None = visitor.edited
        if edited is None:
            raise DisaError("there is no picture to edit: open a file, or take the last one drawn.")
        sampler, settings = self._settings(form)
        _check_edited(sampler)
        if words := " ".join((instruction or "").split()):
            form = replace(form, prompts=words)
        mask, said = None, "drawn anew as the instruction says"
        if sampler.model.capabilities.keeps_tokens:
            mask = editing.mask_of(painted, where, sampler.token_grid_of(settings.size) or sampler.token_grid)
            count = int(mask.sum())
            said = f"{count} of {mask.numel()} tokens drawn again"
            if settings.num_ar_steps > count:  # every AR step draws a token or more
                _, settings = self._settings(form, num_ar_steps=count)
        inputs = self.machine.do(lambda: editing.inputs_of(edited, form.inputs(sampler), sampler, settings, mask))
        drawing = Drawing(self.machine, sampler, inputs, settings)
        before = shown.figure(shown_png(edited, sampler, settings), f"before: {edited.name}")
        for _ in drawing.turns(stopped):
            yield Shown(_stage(drawing, before))
        ended = self._ended(visitor, drawing)
        whole = "" if drawing.samples is None else f"{said[0].upper()}{said[1:]}. "
        yield Shown(_stage(drawing, before), f"{whole}{ended.said}", busy=False, gallery=ended.gallery)

    # -- why -------------------------------------------------------------------------------------------------------

    def why(self, visitor: Visitor, form: Form) -> Iterator[Shown]:
        """Measure what annealing rests on. Raises DisaError."""
        stopped, told = visitor.begin(WHY), SimpleQueue[Any]()
        sampler, settings = self._settings(form)
        inputs = explaining.images_of(form.inputs(sampler))

        def measure() -> None:
            try:
                told.put(explaining.explain(self.machine, sampler, inputs, settings, stopped, told.put))
            except BaseException as error:
                told.put(error)

        Thread(target=measure, daemon=True).start()
        while isinstance(found := told.get(), float):
            while told.qsize() and isinstance(found, float):
                found = told.get()
            if not isinstance(found, float):
                break
            yield Shown(shown.progress(round(100 * found), 100, f"measuring: {found:.0%}"))
        if isinstance(found, BaseException):
            raise found
        if found is None:
            yield Shown(said="Cancelled.", busy=False)
            return
        said = f"Measured on {counted(len(inputs), 'image')}; `disa evidence` takes more, and more time."
        yield Shown(explaining.html(found), said, busy=False)

    # -- pictures --------------------------------------------------------------------------------------------------

    def restore(self, file: str) -> tuple[Form, str]:
        """The fields that draw a picture again, from its file, and whether they draw that very picture. Raises
        DisaError."""
        told = Told.read(Path(file))
        if told.model not in self.models.names:
            raise DisaError(f"this picture was drawn by {told.model}: start the studio with --model {told.model}.")
        if not self.files:
            refuse_files(told.options)
        sampler = self.models.get(told.model)
        form = told.form(sampler)
        _, settings = self._settings(form)
        if self.machine.do(lambda: told.is_drawn_by(sampler, form.inputs(sampler), settings)):
            return form, "Restored: these settings draw this very picture."
        return form, (
            "Restored, but not all that it was drawn from is here: other weights, another device or type of numbers, a "
            "negative prompt, or a picture of which a part was kept."
        )


def _stage(drawing: Drawing, before: str = "") -> str:
    """The pictures of a drawing, with what it took beside them."""
    finished = drawing.samples is not None
    whole = zip(drawing.contents, drawing.captions, drawing.names, strict=True)
    figures = [shown.figure(content, caption, name if finished else "") for content, caption, name in whole if content]
    size = "pixels" if is_small(drawing.sampler) else ""
    ahead = [f"<figure>{shown.image(each, 'what it may become')}</figure>" for each in drawing.foreseen if each]
    told = '<p class="note">What may become of it: the rest drawn at once.</p>'
    return (
        f'<div class="stage"><div class="drawn">{shown.pictures([before, *figures] if before else figures, size)}'
        f"{told + shown.pictures(ahead, f'ahead {size}') if ahead else ''}</div>"
        f"<aside>{shown.numbers(drawing.spent)}{_plotted(drawing.settings, drawing)}</aside></div>"
    )


def _plotted(settings: Settings, drawing: Drawing | None = None) -> str:
    """The counts of a step policy; those made so far, of one that looks."""
    made = [] if drawing is None else drawing.counts
    if isinstance(settings.steps, Schedule):
        return counts_plot(settings.steps.counts(settings.num_ar_steps), len(made))
    if made:
        return counts_plot(made, len(made))
    return shown.sentence(f"{describe(settings.steps)} decides while it draws.")


def shown_png(edited: Edited, sampler: Sampler, settings: Settings) -> bytes:
    """The picture on the easel at the model's size."""
    return png(to_image(edited.fitted(sampler, settings)[0]))


def _picture_of(content: bytes) -> Image.Image:
    with Image.open(BytesIO(content)) as opened:
        return opened.copy()


def _cancelled(drawing: Drawing) -> str:
    return STOPPED.format(drawing.spent.ar_step, drawing.spent.num_ar_steps)


def _has_recipe(sampler: Sampler) -> bool:
    try:
        find_recipe(FAST, sampler)
    except DisaError:
        return False
    return True


def _check_edited(sampler: Sampler) -> None:
    """Raises DisaError where a model can neither keep a part of a picture nor edit it."""
    able = sampler.model.capabilities
    if not able.edits:
        able.check_keeps_tokens()


def _why_unedited(sampler: Sampler) -> str:
    try:
        _check_edited(sampler)
    except DisaError as error:
        return str(error)
    return ""
