"""The page: its fields, its tabs, and what happens when one of them is used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from disa.errors import DisaError
from disa.studio import shown
from disa.studio.halves import HALVES, WHAT_I_PAINT
from disa.studio.shown import Shown
from disa.studio.visitors import Visitor, Visitors
from disa.values import first_line

if TYPE_CHECKING:
    from disa.studio.form import Form
    from disa.studio.handlers import Handlers

LOG = logging.getLogger("disa.studio")
STEPS = ("constant:100", "linear:50-5", "cosine:50-5", "two-stage:50-5")
SOLVERS = ("", "ddpm", "ddim", "dpm-solver", "dpm-solver++", "dpm-solver++-2", "euler", "heun", "euler-maruyama")
AT_ONCE = 8
"""Events of a sort that are answered at the same time; others wait. What computes takes turns anyway."""


class Studio:
    """What a page is of: who visits it, and what is done for them once the model is loaded."""

    def __init__(self) -> None:
        self.visitors, self.handlers = Visitors(), Future["Handlers"]()

    def visitor(self, request: gr.Request) -> Visitor:
        """That of the tab which asks."""
        return self.visitors.visitor(request.session_hash or "")


Work = Callable[["Handlers", Visitor, "Form", list[Any]], Iterator[Shown]]


@dataclass
class Bench:
    """A tab where something is drawn: its buttons, what it says and what it shows."""

    start: gr.Button
    cancel: gr.Button
    said: gr.HTML
    stage: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.stage, self.said, self.start, self.cancel]


class Page:
    """Makes the page. Components are attributes, so that events can name those of other tabs."""

    def __init__(self) -> None:
        self.studio = Studio()
        with gr.Blocks(title="disa studio", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            with gr.Row(elem_id="top"):
                gr.HTML('<h1>disa <span>studio</span></h1><p class="note">The same images from fewer steps.</p>')
                self.state = gr.HTML('<p class="state" role="status">Loading the model ...</p>')
            with gr.Row(elem_id="room"):
                with gr.Column(scale=2, min_width=300, elem_id="fields"):
                    self._fields()
                with gr.Column(scale=5, min_width=340), gr.Tabs(elem_id="tabs"):
                    self._draw_tab()
                    self._compare_tab()
                    self._edit_tab()
                    self._why_tab()
                    self._gallery_tab()
            self._events()

    # -- fields ----------------------------------------------------------------------------------------------------

    def _fields(self) -> None:
        self.model = gr.Dropdown([], label="Model", interactive=True, elem_id="model")
        self.labels = gr.Textbox("3", label="Labels", info="3, 0-7 or 1,5,9; none for no class", elem_id="labels")
        self.prompts = gr.Textbox(
            "", label="Prompts", info="One a line", lines=2, max_lines=6, visible=False, elem_id="prompts"
        )
        self.seeds = gr.Textbox("0", label="Seeds", info="One picture each, up to 16", elem_id="seeds")
        self.steps = gr.Textbox("linear:50-5", label="Denoising steps", info="From early to late", elem_id="steps")
        with gr.Row(elem_classes="chips"):
            self.chips = [gr.Button(each, size="sm", min_width=0) for each in STEPS]
        self.plot = gr.HTML(elem_id="plot")
        with gr.Accordion("More settings", open=False):
            self.solver = gr.Dropdown(
                list(SOLVERS), label="Solver", info="Empty: the model's", allow_custom_value=True, elem_id="solver"
            )
            self.guidance = gr.Textbox("", label="Guidance", info="1 is off; empty: the model's", elem_id="guidance")
            self.ar_steps = gr.Textbox("", label="AR steps", info="Empty: the model's", elem_id="ar")
            self.recipe = gr.Dropdown(
                [""], label="Recipe", info="Settings that were tuned", allow_custom_value=True, elem_id="recipe"
            )
            self.more = gr.Textbox("", label="Other options", info="order=raster reuse=tokens:2", elem_id="more")
        self.restore = gr.UploadButton("Restore settings from a PNG", size="sm", file_types=[".png"], elem_id="restore")
        self.restored = gr.HTML(elem_id="restored")
        self.form = [
            self.model,
            self.labels,
            self.prompts,
            self.seeds,
            self.steps,
            self.solver,
            self.guidance,
            self.recipe,
            self.ar_steps,
            self.more,
        ]

    # -- tabs ------------------------------------------------------------------------------------------------------

    def _bench(self, name: str, start: str, empty: str) -> Bench:
        with gr.Row(elem_classes="buttons"):
            begin = gr.Button(start, variant="primary", min_width=100, elem_id=f"{name}-start")
            cancel = gr.Button("Cancel", interactive=False, min_width=100, elem_id=f"{name}-cancel")
        said = gr.HTML(elem_id=f"{name}-said")
        stage = gr.HTML(shown.nothing_yet(empty), elem_id=f"{name}-stage")
        return Bench(begin, cancel, said, stage)

    def _draw_tab(self) -> None:
        with gr.Tab("Draw", id="draw"):
            self.ahead = gr.Checkbox(True, label="Show what may become of it, too", container=False, elem_id="ahead")
            self.drawing = self._bench("draw", "Draw", "Pictures appear here while they are drawn.")

    def _compare_tab(self) -> None:
        with gr.Tab("Compare", id="compare"):
            gr.HTML('<p class="note">The original against up to three settings, on the same seeds and in turn.</p>')
            with gr.Row():
                self.others = [
                    gr.Textbox(label=f"Setting {i + 1}", min_width=140, elem_id=f"setting-{i + 1}") for i in range(3)
                ]
            self.look = gr.Radio(
                ["pictures", "difference", "flicker"], value="pictures", label="Show", elem_id="look", container=False
            )
            self.comparing = self._bench("compare", "Compare", "Write settings such as linear:25-3 solver=ddim.")
            self.fifty = gr.Button("Draw 50 more and measure", elem_id="compare-more")

    def _edit_tab(self) -> None:
        with gr.Tab("Edit", id="edit"):
            self.unedited = gr.HTML(elem_id="unedited-said")
            with gr.Row(elem_classes="buttons"):
                self.open = gr.UploadButton("Open a picture", file_types=["image"], min_width=100, elem_id="edit-open")
                self.take = gr.Button("Take the last one", min_width=100, elem_id="edit-take")
            self.opened = gr.HTML(elem_id="edit-opened")
            with gr.Row():
                with gr.Column(min_width=320):
                    self.easel = gr.ImageEditor(
                        label="Paint over it",
                        type="pil",
                        sources=(),
                        transforms=(),
                        layers=False,
                        brush=gr.Brush(default_size=48, colors=[("#ff4d6d", 0.7)], color_mode="fixed"),
                        canvas_size=(512, 512),
                        height=400,
                        buttons=[],
                        elem_id="easel",
                    )
                    self.where = gr.Radio(
                        [WHAT_I_PAINT, *HALVES], value=WHAT_I_PAINT, label="Draw again", elem_id="where"
                    )
                    self.instruction = gr.Textbox(
                        label="Instruction", info="What to change", visible=False, elem_id="instruction"
                    )
                with gr.Column(min_width=320):
                    self.editing = self._bench("edit", "Draw again", "Open a picture, and paint over a part of it.")

    def _why_tab(self) -> None:
        with gr.Tab("Why", id="why"):
            gr.HTML(
                '<p class="note">Three measurements on a few images say why late tokens need few denoising steps.</p>'
            )
            self.explaining = self._bench("why", "Measure", "It takes a while: a model draws each token many times.")

    def _gallery_tab(self) -> None:
        with gr.Tab("Gallery", id="gallery"):
            self.zip = gr.Button("Save all as a zip", elem_id="zip")
            self.zipped = gr.Textbox(visible="hidden", elem_id="zipped")
            self.zip_said = gr.HTML(elem_id="zip-said")
            told = "Pictures that you draw are kept here, as long as this page is open."
            self.gallery = gr.HTML(shown.nothing_yet(told), elem_id="gallery")

    # -- events ----------------------------------------------------------------------------------------------------

    def _events(self) -> None:
        self._of_fields()
        self._work(
            self.drawing,
            "draw",
            lambda handlers, visitor, form, ahead: handlers.draw(visitor, form, *ahead),
            [self.ahead],
        )
        self._work(
            self.comparing,
            "compare",
            lambda handlers, visitor, form, others: handlers.compare(visitor, form, others),
            self.others,
        )
        self._work(
            self.comparing,
            "compare",
            lambda handlers, visitor, _, __: handlers.compare_more(visitor),
            [],
            self.fifty,
        )
        self._work(
            self.editing,
            "edit",
            lambda handlers, visitor, form, given: handlers.edit(visitor, form, *given),
            [self.easel, self.where, self.instruction],
        )
        self._work(self.explaining, "why", lambda handlers, visitor, form, _: handlers.why(visitor, form), [])
        look = "look => { document.getElementById('compare-stage').dataset.look = look; }"
        self.look.change(None, self.look, None, js=look)
        self._of_pictures()
        self.blocks.unload(self._leave)

    def _of_fields(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": AT_ONCE}
        model = [
            *(self.state, self.model, self.labels, self.prompts, self.steps, self.recipe, *self.others),
            *(self.unedited, self.easel, self.where, self.instruction, self.fifty),
        ]
        self.blocks.load(lambda: self._about(""), None, model, **quiet)
        self.model.input(self._about, self.model, model, **quiet)
        changes = [each.change for each in self.form]
        gr.on(changes, self._plan, self.form, self.plot, trigger_mode="always_last", **quiet)
        for chip in self.chips:
            chip.click(None, None, self.steps, js=f"() => '{chip.value}'", api_visibility="private")
        everything = [*self.form, self.restored]
        self.restore.upload(self._restore, self.restore, everything, **quiet)

    def _of_pictures(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": AT_ONCE}
        easel = [self.easel, self.opened]
        self.open.upload(self._open, [self.open, *self.form], easel, **quiet)
        self.take.click(self._take, self.form, easel, **quiet)
        done = self.zip.click(self._zip, None, [self.zipped, self.zip_said], **quiet)
        done.then(None, self.zipped, None, js="zip => window.disaSave('disa.zip', 'application/zip', zip)")

    def _work(self, bench: Bench, name: str, work: Work, given: Sequence[Any], button: gr.Button | None = None) -> None:
        """What a button starts, and what ends it."""

        def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            visitor = self.studio.visitor(request)  # who leaves while the model is waited for is known to have left
            yield _changed(Shown())
            try:
                handlers = self.studio.handlers.result()
                form, rest = _form(values[: len(self.form)]), list(values[len(self.form) :])
                for each in work(handlers, visitor, form, rest):
                    yield _changed(each)
            except Exception as error:
                yield _changed(Shown(said=_reason(error), wrong=True, busy=False))

        (button or bench.start).click(
            run,
            [*self.form, *given],
            [*bench.outputs, self.gallery],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=AT_ONCE,
        )
        if button is None:

            def stop(request: gr.Request) -> None:
                self.studio.visitor(request).stop(name)

            bench.cancel.click(stop, None, None, queue=False, api_visibility="private")

    # -- answers ---------------------------------------------------------------------------------------------------

    def _leave(self, request: gr.Request) -> None:
        self.studio.visitors.leave(request.session_hash or "")

    def _about(self, name: str) -> list[Any]:
        """How the page is for a model."""
        handlers = self.studio.handlers.result()
        try:
            about = handlers.about(name)
        except DisaError as error:
            return [shown.sentence(str(error), wrong=True), *(gr.skip() for _ in range(13))]
        others = [*about.others, "", "", ""][:3]
        labels = f"0 to {about.num_labels - 1}, as 3, 0-7 or 1,5,9; none for no class"
        return [
            f'<p class="state ready" role="status">{shown.escape(about.told)}</p>',
            gr.update(choices=handlers.models.names, value=about.name),
            gr.update(visible=not about.takes_prompts, info=labels),
            gr.update(visible=about.takes_prompts),
            about.steps,
            gr.update(choices=["", "fast", "none"] if about.has_recipe else ["", "none"], value=""),
            *others,
            shown.sentence(about.unedited),
            gr.update(visible=about.keeps or about.edits),
            gr.update(visible=about.keeps),
            gr.update(visible=about.edits or (about.keeps and about.takes_prompts)),
            gr.update(visible=about.measured),
        ]

    def _plan(self, *values: Any) -> str:
        return self.studio.handlers.result().plan(_form(values))

    def _restore(self, file: str) -> list[Any]:
        try:
            form, said = self.studio.handlers.result().restore(file)
        except Exception as error:
            return [*(gr.skip() for _ in self.form), shown.sentence(_reason(error), wrong=True)]
        told = {
            "labels": gr.update(value=form.labels, visible=not form.prompts),
            "prompts": gr.update(value=form.prompts, visible=bool(form.prompts)),
        }
        return [*(told.get(name, value) for name, value in vars(form).items()), shown.sentence(said)]

    def _open(self, request: gr.Request, file: str, *values: Any) -> list[Any]:
        return self._easel(lambda handlers: handlers.open(self.studio.visitor(request), _form(values), file))

    def _take(self, request: gr.Request, *values: Any) -> list[Any]:
        return self._easel(lambda handlers: handlers.take(self.studio.visitor(request), _form(values)))

    def _easel(self, put: Callable[[Handlers], tuple[Any, str]]) -> list[Any]:
        """A picture to paint on, or what is wrong with it."""
        try:
            picture, said = put(self.studio.handlers.result())
        except Exception as error:
            return [gr.skip(), shown.sentence(_reason(error), wrong=True)]
        return [{"background": picture, "layers": [], "composite": picture}, shown.sentence(said)]

    def _zip(self, request: gr.Request) -> list[Any]:
        from disa.studio.gallery import zipped

        try:
            return [zipped(self.studio.visitor(request).pictures), ""]
        except DisaError as error:
            return ["", shown.sentence(str(error), wrong=True)]


def _form(values: Sequence[Any]) -> Form:
    """The fields; what a page has nothing for is an empty text."""
    from disa.studio.form import Form

    return Form(*(value or "" for value in values))


def _changed(found: Shown) -> list[Any]:
    return [
        gr.skip() if found.stage is None else found.stage,
        shown.sentence(found.said, found.wrong),
        gr.update(interactive=not found.busy),
        gr.update(interactive=found.busy),
        gr.skip() if found.gallery is None else found.gallery,
    ]


def _reason(error: Exception) -> str:
    """What went wrong, for a visitor; the log has more where it is no mistake of theirs."""
    if isinstance(error, DisaError):
        return str(error)
    LOG.error("something failed", exc_info=error)
    return f"that failed ({type(error).__name__}: {first_line(error)})."
