"""The studio without a browser: what visitors ask for, what is drawn for them, and what is kept of them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
import zipfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import ClientDisconnect

from command import Command, complaint
from disa.draw.folder import TEXT
from disa.draw.inputs import Inputs
from disa.draw.pictures import png, text_of
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.studio import explaining, gallery, shown
from disa.studio.drawing import Drawing, captions, in_turn
from disa.studio.editing import mask_of
from disa.studio.form import MOST_IMAGES, Form, options_of
from disa.studio.halves import HALVES, WHAT_I_PAINT
from disa.studio.handlers import Handlers
from disa.studio.imports import import_gradio
from disa.studio.machine import Machine
from disa.studio.models import Models
from disa.studio.plot import counts_plot
from disa.studio.restoring import NO_PICTURE, Told
from disa.studio.server import POLICY, Guard
from disa.studio.shown import Shown
from disa.studio.visitors import MOST_PICTURES, MOST_VISITORS, Picture, Visitor, Visitors
from serving import until

QUICK = Form("mar-digits", labels="3", seeds="0", steps="linear:3-1", num_ar_steps="4")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    found = Sampler.from_pretrained("mar-digits", device="cpu")
    found.preset = replace(found.preset, defaults=replace(found.preset.defaults, original="constant:2"))
    return found


@pytest.fixture(scope="module")
def handlers(sampler: Sampler) -> Handlers:
    machine = Machine()
    return Handlers(machine, Models(machine, lambda: sampler))


def last(found: Iterator[Shown]) -> Shown:
    *_, end = found
    return end


def form(**values: Any) -> Form:
    return Form(**vars(QUICK) | values)


# -- fields --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "seeds", "expected"),
    [
        ("3", "0", ([3], [0])),
        ("3", "0-2", ([3, 3, 3], [0, 1, 2])),
        ("1, 4-5", "7", ([1, 4, 5], [7, 7, 7])),
        ("1,2", "5,6", ([1, 2], [5, 6])),
        ("none", "1-2", (None, [1, 2])),
        ("", "", (None, [0])),
    ],
)
def test_labels_and_seeds_are_paired(sampler: Sampler, labels: str, seeds: str, expected: tuple[Any, Any]) -> None:
    inputs = Form(labels=labels, seeds=seeds).inputs(sampler)
    assert (inputs.labels, inputs.seeds) == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"labels": "three"}, "labels must be whole numbers"),
        ({"labels": "@/etc/passwd"}, "labels must be whole numbers"),
        ({"labels": "1,2,3", "seeds": "0,1"}, "paired one to one"),
        ({"labels": "0-9", "seeds": "0-999999999"}, "too many seeds"),
        ({"labels": "3", "seeds": f"0-{MOST_IMAGES}"}, f"at most {MOST_IMAGES} images at a time"),
        ({"steps": "linear:50"}, "unknown step policy"),
        ({"steps": "constant:5000"}, "at most 1000 denoising steps"),
        ({"num_ar_steps": "4.5"}, "AR steps must be a whole number"),
        ({"num_ar_steps": "65"}, "1 to 64"),
        ({"guidance": "much"}, "guidance must be a number"),
        ({"solver": "dimm"}, "dimm"),
        ({"more": "size=9000x9000"}, "pixels"),
        ({"more": "gidance=2"}, "Did you mean guidance?"),
        ({"more": "batch_size=1"}, "it changes no image"),
        ({"more": "order='raster"}, "quotation mark"),
    ],
)
def test_a_field_that_is_wrong_is_told_in_a_sentence(sampler: Sampler, values: dict[str, Any], said: str) -> None:
    filled = form(**values)
    with pytest.raises(DisaError, match=said):
        _ = filled.settings(sampler), filled.inputs(sampler)


def test_options_are_read_as_everywhere(sampler: Sampler) -> None:
    assert options_of("linear:9-2 solver=ddim guidance=2") == {"steps": "linear:9-2", "solver": "ddim", "guidance": "2"}
    assert options_of("rewrite=true") == {"rewrite": True}
    filled = form(steps="9, 4, 4, 1", more="guidance=2 order=raster").settings(sampler)
    assert filled.steps.counts(4) == [9, 4, 4, 1]
    assert filled.guidance.scale == 2
    assert str(filled.order) == "raster"


def test_prompts_are_one_a_line_and_not_empty() -> None:
    asked = Form(prompts="  a red circle \n\n two blue squares", seeds="4")

    class Prompts:
        class preset:
            prompts = True

    inputs = asked.inputs(Prompts())  # pyright: ignore[reportArgumentType]
    assert inputs.prompts == ["a red circle", "two blue squares"]
    with pytest.raises(DisaError, match="a prompt is empty"):
        Form(prompts=" \n ").inputs(Prompts())  # pyright: ignore[reportArgumentType]


def test_the_plot_has_a_bar_for_every_ar_step(handlers: Handlers) -> None:
    plot = handlers.plan(form(steps="linear:50-5", num_ar_steps="8"))
    assert plot.count("<rect") == 8
    assert "50 in the first, 5 in the last" in plot
    assert counts_plot([5, 4, 3], drawn=2).count('class="done"') == 2
    assert "unknown step policy" in handlers.plan(form(steps="linaer"))
    assert 'role="alert"' in handlers.plan(form(steps="linaer"))


@pytest.mark.parametrize("words", ["table:/etc/passwd", "plan:/etc/passwd", "mlp:/etc/passwd:9-1"])
def test_who_is_not_here_names_no_file(sampler: Sampler, words: str) -> None:
    machine = Machine()
    guarded = Handlers(machine, Models(machine, lambda: sampler), files=False)
    for given in (form(steps=words), form(steps="", more=f"steps={words}")):
        with pytest.raises(DisaError, match="may not name a file"):
            last(guarded.draw(Visitor(), given))
    with pytest.raises(DisaError, match="may not name a file"):
        last(guarded.compare(Visitor(), form(), [words]))


# -- drawing -------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_file_that_disa_writes(handlers: Handlers, sampler: Sampler, tmp_path: Path) -> None:
    visitor = Visitor()
    found = list(handlers.draw(visitor, form(labels="3,5")))
    assert len({each.stage for each in found}) >= 4
    assert [each.busy for each in found] == [True] * 4 + [False]
    sampler.sample_into(tmp_path, Inputs.paired(0, [3, 5]), steps="linear:3-1", num_ar_steps=4)
    for picture in visitor.pictures:
        assert picture.content == (tmp_path / "samples" / picture.name).read_bytes()
    assert "2 pictures in " in found[-1].said


def test_what_a_picture_may_become_is_shown_while_it_is_drawn_and_changes_nothing(
    handlers: Handlers,
) -> None:
    visitor = Visitor()
    *under_way, end = handlers.draw(visitor, form(labels="3,5"), ahead=True)
    assert all((each.stage or "").count("<img") in (2, 4) for each in under_way)
    assert (under_way[0].stage or "").count("what it may become") == 2
    assert "what it may become" not in (end.stage or "")
    plain = last(handlers.draw(visitor, form(labels="3,5")))
    assert [each.content for each in list(visitor.pictures)[:2]] == [
        each.content for each in list(visitor.pictures)[2:]
    ]
    assert plain.stage is not None


def test_cancelling_takes_effect_within_an_ar_step(handlers: Handlers) -> None:
    visitor = Visitor()
    drawn = handlers.draw(visitor, form(num_ar_steps="8"))
    next(drawn)
    next(drawn)
    visitor.stop("draw")
    rest = list(drawn)
    assert len(rest) == 1
    assert rest[0].said == "Cancelled after 2 of 8 AR steps."
    assert not rest[0].busy
    assert not visitor.pictures


@contextmanager
def busy(machine: Machine) -> Iterator[None]:
    """With something else, until this ends."""
    begun, others = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: machine.do(lambda: begun.set() or others.wait()))
    thread.start()
    assert begun.wait(30)
    try:
        yield
    finally:
        others.set()
        thread.join()


def in_order(machine: Machine, works: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, of which none begins before all are asked for."""
    found = list[Future[Any]]()
    with ThreadPoolExecutor(len(works)) as pool:
        with busy(machine):
            for work in works:
                found.append(pool.submit(work))
                until(lambda: machine._waiting.qsize() == len(found))
        return [each.result(60) for each in found]


@pytest.mark.parametrize("what", ["draw", "compare", "edit", "why"])
def test_what_is_cancelled_while_it_waits_for_others_is_not_drawn(handlers: Handlers, what: str) -> None:
    visitor, machine = Visitor(), handlers.machine
    last(handlers.draw(visitor, form()))
    handlers.take(visitor, form())
    asked = {
        "draw": lambda: handlers.draw(visitor, form()),
        "compare": lambda: handlers.compare(visitor, form(), ["constant:1"]),
        "edit": lambda: handlers.edit(visitor, form(), None, "the left half", None),
        "why": lambda: handlers.why(visitor, form()),
    }
    with ThreadPoolExecutor(1) as pool:
        with busy(machine):
            found = pool.submit(lambda: list(asked[what]()))
            until(lambda: machine._waiting.qsize())
            visitor.stop(what)
        end = found.result(60)[-1]
    assert end.said in ("Cancelled after 0 of 4 AR steps.", "Cancelled.")
    assert not end.busy
    assert len(visitor.pictures) == 1


def test_nothing_begins_for_a_visitor_who_has_left(handlers: Handlers) -> None:
    visitor = Visitor()
    visitor.leave()
    assert visitor.begin("draw").is_set()
    assert last(handlers.draw(visitor, form())).said == "Cancelled after 0 of 4 AR steps."
    assert not visitor.pictures


def test_nothing_begins_for_a_tab_that_was_closed_while_the_model_was_loaded(handlers: Handlers) -> None:
    import_gradio()
    from disa.studio.page import Page

    page = Page()
    run = next(each.fn for each in page.blocks.fns.values() if each.name == "run")
    assert run is not None
    changes = run(SimpleNamespace(session_hash="tab"), *vars(form()).values(), False)
    next(changes)
    visitor = page.studio.visitors.visitor("tab")
    page.studio.visitors.leave("tab")
    page.studio.handlers.set_result(handlers)
    *_, end = changes
    assert "Cancelled after 0 of 4 AR steps." in end[1]
    assert not visitor.pictures


def test_visitors_take_turns_and_get_their_own_pictures(handlers: Handlers) -> None:
    alone = [Visitor(), Visitor()]
    asked = [form(labels="3", seeds="1"), form(labels="7", seeds="2")]
    for visitor, wanted in zip(alone, asked, strict=True):
        last(handlers.draw(visitor, wanted))
    together = [Visitor(), Visitor()]
    under_way = [handlers.draw(visitor, wanted) for visitor, wanted in zip(together, asked, strict=True)]
    for _ in range(5):
        for each in under_way:
            next(each)
    for one, other in zip(alone, together, strict=True):
        assert [picture.content for picture in one.pictures] == [picture.content for picture in other.pictures]


def test_the_machine_works_in_the_order_of_asking() -> None:
    machine, done = Machine(), list[str]()

    def long(name: str) -> str:
        def work(next_turn: Callable[[], None]) -> str:
            for i in range(3):
                done.append(f"{name}{i}")
                next_turn()
            return name

        return machine.do_in_turns(work)

    works = [lambda: long("a"), lambda: long("b"), lambda: machine.do(lambda: done.append("c"))]
    for _ in range(20):
        done.clear()
        assert in_order(machine, works) == ["a", "b", None]
        assert done == ["a0", "b0", "c", "a1", "b1", "a2", "b2"]
    for each in (machine.do, machine.do_in_turns):
        with pytest.raises(ZeroDivisionError):
            each(lambda *_: 1 / 0)
    assert machine.do(lambda: 3) == 3


def test_drawings_in_turn_go_step_by_step(handlers: Handlers, sampler: Sampler) -> None:
    settings = [form(steps=steps).settings(sampler) for steps in ("constant:2", "constant:1")]
    both = [Drawing(handlers.machine, sampler, form().inputs(sampler), each) for each in settings]
    seen = [(both[0].spent.ar_step, both[1].spent.ar_step) for _ in in_turn(both, threading.Event())]
    assert seen[:4] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert all(drawing.samples is not None for drawing in both)


def test_what_others_wrote_is_shown_as_text(handlers: Handlers) -> None:
    inputs = Inputs.paired(0, prompts="<script>alert(1)</script>")
    figure = shown.figure(b"", captions(inputs)[0], "a.png")
    assert "<script" not in figure + shown.sentence("<b>", wrong=True) + shown.table(["<i>"], [["<u>"]])
    with pytest.raises(DisaError):
        handlers.about("<model>")


# -- comparing -----------------------------------------------------------------------------------------------------


def test_settings_are_compared_with_the_original_and_measured(handlers: Handlers) -> None:
    visitor = Visitor()
    asked = form(labels="0-9", steps="", num_ar_steps="4")
    end = last(handlers.compare(visitor, asked, ["linear:3-1", "constant:1 solver=ddim", ""]))
    assert end.stage is not None
    for title in ("constant:2", "linear:3-1", "constant:1 solver=ddim"):
        assert f"<h3>{title}</h3>" in end.stage
    assert end.stage.count('class="apart"') == 2 * 10
    assert "draw 50 more" in end.said
    compared = visitor.compared
    kept = len(visitor.pictures)
    more = last(handlers.compare_more(visitor))
    assert more.stage is not None
    assert "Measured on 60 pictures of each setting" in more.stage
    assert len(compared.drawn) == 60
    assert len(set(compared.drawn.seeds[10:])) == 50
    assert not set(compared.drawn.seeds[10:]) & set(compared.drawn.seeds[:10])
    assert len(visitor.pictures) == kept


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["", " "], "nothing to compare"),
        (["linear:3-1", "linear:3-1"], "compared once"),
        (["linear:3-1 solver=euler"], "euler"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_drawn(
    handlers: Handlers, others: list[str], said: str
) -> None:
    with pytest.raises(DisaError, match=said):
        next(handlers.compare(Visitor(), form(), others))


def test_more_needs_a_comparison(handlers: Handlers) -> None:
    with pytest.raises(DisaError, match="compare some settings first"):
        next(handlers.compare_more(Visitor()))


# -- editing -------------------------------------------------------------------------------------------------------


def painted(*boxes: tuple[int, int, int, int], size: int = 512) -> dict[str, Any]:
    """What the editor says where boxes (left, top, right, bottom) are painted over."""
    layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    for box in boxes:
        layer.paste((255, 0, 0, 180), box)
    return {"background": None, "layers": [layer], "composite": None}


def test_what_is_painted_over_is_the_mask() -> None:
    mask = mask_of(painted((0, 0, 128, 64)), WHAT_I_PAINT, (8, 8))
    assert mask.nonzero().tolist() == [[0, 0, 0], [0, 0, 1]]
    assert mask_of(painted((130, 130, 132, 132)), WHAT_I_PAINT, (8, 8)).nonzero().tolist() == [[0, 2, 2]]
    assert mask_of(None, "the left half", (8, 8))[0, :, :4].all()
    assert [int(mask_of(None, half, (8, 8)).sum()) for half in HALVES] == [32] * 4
    with pytest.raises(DisaError, match="nothing is painted over"):
        mask_of(painted(), WHAT_I_PAINT, (8, 8))
    with pytest.raises(DisaError, match="nothing is painted over"):
        mask_of(None, WHAT_I_PAINT, (8, 8))


def test_what_is_not_painted_over_is_kept(handlers: Handlers) -> None:
    visitor = Visitor()
    last(handlers.draw(visitor, form()))
    before = visitor.pictures[-1]
    easel, said = handlers.take(visitor, form())
    assert easel.size == (512, 512)
    assert "32x32" in said
    found = list(handlers.edit(visitor, form(seeds="9"), painted((0, 0, 256, 512)), WHAT_I_PAINT, None))
    assert found[-1].said.startswith("32 of 64 tokens drawn again. 1 picture in ")
    after = visitor.pictures[-1]
    assert torch.equal(after.latents[..., 4:], before.latents[..., 4:])
    assert not torch.equal(after.latents[..., :4], before.latents[..., :4])


def test_a_small_part_is_drawn_in_as_many_ar_steps_as_it_has_tokens(handlers: Handlers) -> None:
    visitor = Visitor()
    last(handlers.draw(visitor, form()))
    handlers.take(visitor, form())
    end = last(handlers.edit(visitor, form(num_ar_steps=""), painted((0, 0, 64, 128)), WHAT_I_PAINT, ""))
    assert end.stage is not None
    assert "2 / 2" in end.stage


def test_an_upload_is_read_as_any_picture_is(handlers: Handlers, tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 4), dtype=np.uint8)
    pixels[:, 20:] = (255, 0, 0, 255)  # the left half is transparent
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    visitor = Visitor()
    easel, said = handlers.open(visitor, form(), str(tmp_path / "turned.png"))
    assert said == "turned.png, 40x40 pixels."
    assert easel.getpixel((10, 256)) == (255, 0, 0)
    assert easel.getpixel((500, 256)) == (255, 255, 255)


def test_an_upload_that_is_no_picture_is_refused(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(Image.new("1", (20_000, 20_000))))
    for name, said in (("words.png", "it is a text"), ("bomb.png", "million pixels")):
        with pytest.raises(DisaError, match=said) as refused:
            handlers.open(Visitor(), form(), str(tmp_path / name))
        assert str(tmp_path) not in str(refused.value)


def test_models_that_keep_nothing_say_so(handlers: Handlers) -> None:
    about = handlers.about("flowar-digits")
    assert not about.keeps
    assert "cannot keep known tokens" in about.unedited
    with pytest.raises(DisaError, match="draw one, or open a file"):
        handlers.take(Visitor(), form())
    with pytest.raises(DisaError, match="there is no picture to edit"):
        next(handlers.edit(Visitor(), form(), None, "the left half", ""))


# -- restoring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"labels": "none", "seeds": "77"},
        {"solver": "ddim@uniform:eta=0.5", "guidance": "2.5"},
        {"steps": "5, 3, 2, 1", "more": "order=raster reuse=tokens:2 interval=0.1-0.8 guidance=3"},
        {"more": "size=32x64 counts=linear"},
        {"model": "flowar-digits", "steps": "constant:3", "num_ar_steps": ""},
    ],
)
def test_a_picture_restores_what_it_was_drawn_from(handlers: Handlers, tmp_path: Path, values: dict[str, Any]) -> None:
    visitor = Visitor()
    last(handlers.draw(visitor, form(**values)))
    file = tmp_path / "picture.png"
    file.write_bytes(visitor.pictures[-1].content)
    restored, said = handlers.restore(str(file))
    assert said == "Restored: these settings draw this very picture."
    last(handlers.draw(visitor, restored))
    assert visitor.pictures[-1].content == visitor.pictures[-2].content


def test_what_a_file_does_not_have_is_told(handlers: Handlers, tmp_path: Path) -> None:
    visitor = Visitor()
    last(handlers.draw(visitor, form()))
    handlers.take(visitor, form())
    last(handlers.edit(visitor, form(), None, "the left half", ""))
    file = tmp_path / "edited.png"
    file.write_bytes(visitor.pictures[-1].content)
    assert "not all that it was drawn from is here" in handlers.restore(str(file))[1]


def about_of(content: bytes, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "whole.png").write_bytes(content)
    return json.loads(text_of(tmp_path / "whole.png", TEXT))


def test_pictures_of_others_are_refused(handlers: Handlers, tmp_path: Path) -> None:
    visitor, image = Visitor(), Image.new("L", (4, 4))
    last(handlers.draw(visitor, form()))
    about = about_of(visitor.pictures[-1].content, tmp_path)
    wrong = [
        b"",
        b"no picture",
        png(image),
        png(image, {TEXT: "[]"}),
        png(image, {TEXT: "{"}),
        png(image, {TEXT: json.dumps(about | {"seed": -1})}),
        png(image, {TEXT: json.dumps(about | {"settings": {"model": 3}})}),
        visitor.pictures[-1].content[:-20],
        png(Image.new("1", (20_000, 20_000))),
    ]
    for content in wrong:
        (tmp_path / "wrong.png").write_bytes(content)
        with pytest.raises(DisaError, match=NO_PICTURE[:30]):
            Told.read(tmp_path / "wrong.png")
    for settings, said in (({"model": "mar-huge"}, "start the studio with --model mar-huge"), ({"steps": "x"}, "x")):
        told = about | {"settings": about["settings"] | settings}
        (tmp_path / "other.png").write_bytes(png(image, {TEXT: json.dumps(told)}))
        with pytest.raises(DisaError, match=said):
            handlers.restore(str(tmp_path / "other.png"))


# -- why -----------------------------------------------------------------------------------------------------------


def test_the_measurements_of_the_paper_are_shown(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    few = explaining.Effort(draws=2, draw_steps=1, varied=2, path_steps=2, fit_images=5)
    monkeypatch.setattr(explaining, "EFFORT", few)
    found = list(handlers.why(Visitor(), form()))
    assert found[-1].stage is not None
    assert found[-1].stage.count("<svg") == 3
    assert found[-1].stage.count("<p>Variance") == 1
    assert "What can be foreseen" in found[-1].stage
    assert not found[-1].busy


def test_measurements_take_turns(handlers: Handlers, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    few = explaining.Effort(draws=2, draw_steps=1, varied=2, path_steps=2, fit_images=5)
    monkeypatch.setattr(explaining, "EFFORT", few)
    machine, inputs, settings = handlers.machine, Inputs.paired([0, 1], 3), form().settings(sampler)
    order, stopped = list[str](), threading.Event()

    def explain(name: str) -> Any:
        return explaining.explain(machine, sampler, inputs, settings, stopped, lambda _: order.append(name))

    found = in_order(machine, [lambda: explain("a"), lambda: explain("b")])
    assert order == ["a", "b"] * (len(order) // 2)
    assert len(order) > 8
    alone = explain("c")
    assert [each.curves for each in found] == [alone.curves] * 2


def test_a_measurement_can_be_cancelled(handlers: Handlers) -> None:
    visitor = Visitor()
    measuring = handlers.why(visitor, form(num_ar_steps="16"))
    next(measuring)
    visitor.leave()
    assert last(measuring).said == "Cancelled."


# -- what is kept --------------------------------------------------------------------------------------------------


def picture(name: str) -> Picture:
    return Picture(name, name.encode(), "", "mar-digits", None)


def test_little_is_kept_of_a_visitor_and_nothing_once_they_leave() -> None:
    visitors = Visitors()
    visitor = visitors.visitor("a")
    visitor.pictures.extend(picture(f"{i}.png") for i in range(MOST_PICTURES + 5))
    assert len(visitor.pictures) == MOST_PICTURES
    stopped = visitor.begin("draw")
    assert visitors.visitor("a") is visitor
    assert visitors.visitor("b") is not visitor
    visitors.leave("a")
    assert stopped.is_set()
    assert len(visitors) == 1
    assert not visitors.visitor("a").pictures
    first = visitors.visitor("0").begin("draw")
    for i in range(1, MOST_VISITORS + 1):
        visitors.visitor(f"{i}")
    assert first.is_set()
    assert len(visitors) == MOST_VISITORS


def test_the_gallery_is_a_zip() -> None:
    kept = [picture("a.png"), picture("b.png"), picture("a.png")]
    with zipfile.ZipFile(io.BytesIO(b64decode(gallery.zipped(kept)))) as file:
        assert {name: file.read(name) for name in file.namelist()} == {
            "a.png": b"a.png",
            "b.png": b"b.png",
            "a_2.png": b"a.png",
        }
    with pytest.raises(DisaError, match="no pictures to save"):
        gallery.zipped([])
    assert "3 pictures" in gallery.html(kept)


# -- the server ----------------------------------------------------------------------------------------------------


def answer(host: str | None, only_here: bool = True) -> tuple[int, dict[bytes, bytes]]:
    sent = list[dict[str, Any]]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [] if host is None else [(b"host", host.encode())]
    asyncio.run(Guard(app, only_here)({"type": "http", "headers": headers}, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_a_page_of_another_site_gets_no_answer() -> None:
    for host in ("localhost:7860", "127.0.0.1:7860", "[::1]:7860"):
        status, headers = answer(host)
        assert status == 200
        assert headers[b"x"] == b"y"
        assert headers[b"content-security-policy"].decode() == POLICY
    for host in ("evil.example", "evil.example:7860", None):
        assert answer(host)[0] == 403
    assert answer("studio.example", only_here=False)[0] == 200


def test_who_leaves_while_sending_is_no_fault() -> None:
    async def left(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    scope = {"type": "http", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(left, True)(scope, None, None))


def test_browsers_ask_nobody_else() -> None:
    sources = {word.rstrip(";") for word in POLICY.split()}
    assert not [word for word in sources if "." in word or "*" in word or "http" in word]


def test_a_missing_extra_is_one_line(disa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert complaint(disa("studio")) == 'disa: the studio needs gradio: pip install "disa[studio]".\n'


def test_the_import_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    before = list(sys.meta_path)
    import_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert sys.meta_path == before
    component_meta = sys.modules["gradio.component_meta"]
    assert component_meta.__dict__["create_or_modify_pyi"](None, "", []) is None


def test_the_page_offers_the_halves_that_edits_know(monkeypatch: pytest.MonkeyPatch) -> None:
    import_gradio()
    from disa.studio.page import Page

    monkeypatch.setitem(HALVES, "the middle", (0.25, 0.25, 0.75, 0.75))
    offered = [value for _, value in Page().where.choices]
    assert offered == [WHAT_I_PAINT, *HALVES]
    assert mask_of(None, "the middle", (8, 8)).sum() == 16
