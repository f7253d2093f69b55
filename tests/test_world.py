"""The program around a call: what a caller has set in PyTorch, threads, forks, folders, copies, devices."""

import copy
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import small
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.request import Guidance, Request
from disa.core.solvers import DDIM, Euler
from disa.core.steps import Constant, Table
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime import devices, packing
from disa.runtime.devices import dtype_name, pick_device, pick_dtype
from disa.runtime.packing import PackedLinear, can_pack
from disa.runtime.surroundings import SHARED, undisturbed

ASKED: dict[str, dict[str, Any]] = {
    "mar-digits": {"labels": [3, 5, 7], "num_ar_steps": 4, "guidance": 2.0},
    "flowar-digits": {"labels": [3, 5, 7], "guidance": 2.0},
    "xar-digits": {"labels": [3, 5, 7], "guidance": 2.0},
    "harmon-shapes": {"prompts": ["a red circle", "three yellow squares", "a green star"], "num_ar_steps": 3},
}
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks here")
pytestmark = pytest.mark.usefixtures("one_thread")


def draw(sampler: Sampler, **options: Any) -> Tensor:
    """Three images of the small model, in two batches."""
    asked: dict[str, Any] = {
        "labels": [3, 5, 7],
        "seeds": [0, 1, 2],
        "batch_size": 2,
        "steps": "linear:4-2",
        "num_ar_steps": 4,
    }
    return sampler.sample(**{**asked, "guidance": 2.0, **options}).images


# -- what a caller has set -------------------------------------------------------------------------------------------


@contextmanager
def having(write: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    write(value)
    try:
        yield
    finally:
        write(before)


def allow_tf32_in_convolutions(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed


def everything_in(precision: str) -> None:
    """Versions of PyTorch before 2.9 do not read it."""
    setattr(torch.backends, "fp32_precision", precision)  # noqa: B010


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to fp16 without a cache": lambda: torch.autocast("cpu", torch.float16, cache_enabled=False),
    "default dtype float64": lambda: having(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": lambda: having(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default dtype float16": lambda: having(torch.set_default_dtype, torch.float16, torch.float32),
    "default device": lambda: having(torch.set_default_device, "meta", None),
    "device as a context": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": lambda: having(torch.use_deterministic_algorithms, True, False),
    "denormals flushed": lambda: having(torch.set_flush_denormal, True, False),
    "matmul precision": lambda: having(torch.set_float32_matmul_precision, "medium", "highest"),
    "convolutions in TF32": lambda: having(allow_tf32_in_convolutions, True, False),
    "everything in TF32": lambda: having(everything_in, "tf32", "none"),
    "two threads": lambda: having(torch.set_num_threads, 2, 1),
    "one kernel of attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "no fused attention": lambda: having(torch.backends.cuda.enable_flash_sdp, False, True),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "seed": lambda: having(torch.manual_seed, 5, 0),
}


def state() -> list[Any]:
    """All that drawing must leave as it is."""
    shared = [each.read() for each in SHARED]
    own = [torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    return [*shared, *own, str(torch.get_default_device()), torch.empty(1).dtype]


@pytest.mark.parametrize("name", STATES)
def test_pictures_do_not_depend_on_what_a_caller_has_set(name: str, tmp_path: Path) -> None:
    folder = small.folder(tmp_path / "small")
    sampler = Sampler.load(folder, device="cpu")
    expected = draw(sampler)
    with STATES[name]():
        before = state()
        inside = Sampler.load(folder, device="cpu")
        drawn = [draw(sampler), draw(inside)]
        assert state() == before
    drawn.append(draw(inside))
    assert all(torch.equal(images, expected) for images in drawn)


@contextmanager
def everything() -> Iterator[None]:
    with ExitStack() as stack:
        names = "default dtype bfloat16", "autocast to bf16", "device as a context", "inference mode", "no oneDNN"
        for name in names:
            stack.enter_context(STATES[name]())
        yield


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.filterwarnings("ignore:.*was measured for")
def test_no_family_depends_on_it(name: str) -> None:
    """Loading, drawing, encoding, words and policies that look."""
    outside, asked = Sampler.load(name, device="cpu"), {"seeds": [0, 1, 2], "batch_size": 2, **ASKED[name]}
    counts = "mlp:4-2@3"

    def told(sampler: Sampler) -> list[Any]:
        images = sampler.sample(**asked, steps="constant:2").images
        looked = sampler.sample(**asked, steps=counts, output_type="latent").latents
        words = sampler.describe(images, max_tokens=3) if name == "harmon-shapes" else []
        return [images, looked, sampler.encode(images), sampler.weights_hash, words]

    expected = told(outside)
    with everything():
        found = [told(outside), told(Sampler.load(name, device="cpu"))]
    for each in found:
        assert all(torch.equal(one, other) for one, other in zip(each[:3], expected[:3], strict=True))
        assert each[3:] == expected[3:]


@pytest.mark.parametrize("name", ["mar-digits", "flowar-digits", "xar-digits"])
def test_a_loop_of_ones_own_needs_no_default_dtype(name: str) -> None:
    model = Sampler.load(name, device="cpu").model
    solver = DDIM("uniform") if name == "mar-digits" else Euler("uniform")

    def latents() -> Tensor:
        request = Request(2, model.capabilities.num_ar_steps or 3, torch.tensor([3, 5]), Guidance(2.0))
        *_, last = generate_steps(model, request, Constant(2), solver, SeededNoise([0, 1]))
        return model.finish(last.state)

    expected = latents()
    for dtype in (torch.float64, torch.bfloat16):
        with having(torch.set_default_dtype, dtype, torch.float32):
            assert torch.equal(latents(), expected)


def test_between_turns_the_callers_state_is_the_callers() -> None:
    sampler = small.sampler()
    expected = draw(sampler, batch_size=3)
    with everything():
        before = state()
        run = sampler.start(Inputs.paired([0, 1, 2], [3, 5, 7]), steps="linear:4-2", guidance=2.0, batch_size=3)
        for turn in run:
            assert state() == before
            if turn.samples is not None:
                assert torch.equal(turn.samples.images, expected)


def test_a_run_may_change_its_surroundings_between_turns() -> None:
    sampler = small.sampler()
    run = sampler.start(Inputs.paired([0, 1, 2], [3, 5, 7]), steps="linear:4-2", guidance=2.0, batch_size=3)
    with torch.inference_mode():
        next(run)
    with STATES["default dtype float64"]():
        next(run)
    assert torch.equal(run.result().images, draw(sampler, batch_size=3))


def test_words_are_told_in_the_callers_state() -> None:
    sampler = Sampler.load("harmon-shapes", device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        for _ in sampler.describe_steps(torch.rand(1, 3, 48, 48), max_tokens=3):
            assert torch.is_autocast_enabled("cpu")


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    def numbers() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # pyright: ignore

    before = numbers()
    Sampler.untrained("mar-digits", device="cpu")
    sampler = Sampler.load("mar-digits", device="cpu")
    images = sampler.sample(3, 0, steps="mlp", num_ar_steps=4).images
    sampler.encode(images)
    pickle.loads(pickle.dumps(sampler))
    assert numbers() == before


def test_what_is_shared_is_set_back_by_the_last_thread() -> None:
    inside, leave = threading.Barrier(3), threading.Event()

    def work() -> None:
        with undisturbed():
            inside.wait()
            leave.wait()

    with STATES["default dtype float64"](), STATES["matmul precision"]():
        before = state()
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside.wait()
        assert torch.get_default_dtype() == torch.float32
        leave.set()
        for thread in threads:
            thread.join()
        assert state() == before


def tf32() -> tuple[bool, bool]:
    """Whether matrix products and convolutions on CUDA are computed in TF32."""
    return torch.get_float32_matmul_precision() == "high", bool(torch.backends.cudnn.allow_tf32)


def test_tf32_is_off_if_not_asked_for() -> None:
    """PyTorch's own default has it on for convolutions."""
    with undisturbed():
        assert tf32() == (False, False)
        with undisturbed(tf32=True):
            assert tf32() == (True, True)
            with undisturbed():  # part of what was asked for
                assert tf32() == (True, True)
        assert tf32() == (False, False)


def test_tf32_is_off_for_convolutions_though_everything_is_set_to_it() -> None:
    cudnn: Any = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        pytest.skip("this version of PyTorch has no setting for everything")
    with STATES["everything in TF32"](), undisturbed():
        assert cudnn.conv.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_tf32_leaves_no_trace(precision: str) -> None:
    with having(torch.set_float32_matmul_precision, precision, "highest"):
        before = state()
        with undisturbed(tf32=True):
            assert tf32() == (True, True)
        assert state() == before


def test_no_thread_computes_in_tf32_that_did_not_ask_for_it() -> None:
    seen = list[tuple[bool, bool]]()

    def exact() -> None:
        with undisturbed():
            seen.append(tf32())

    with undisturbed(tf32=True):
        thread = threading.Thread(target=exact)
        thread.start()
        thread.join()
        seen.append(tf32())
    assert seen == [(False, False), (True, True)]


@pytest.mark.filterwarnings("ignore:.*known to this program alone")
@pytest.mark.parametrize("asked", [False, True])
def test_a_sampler_computes_in_tf32_where_that_is_its_dtype(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU knows no TF32."""
    sampler, seen = small.sampler(), list[tuple[bool, bool]]()
    expected = draw(sampler)
    assert torch.equal(draw(sampler.to(dtype="tf32")), expected)
    assert sampler.about()["dtype"] == "tf32"
    monkeypatch.setattr(devices, "allows_tf32", lambda _, dtype: asked and dtype == "tf32")
    run = sampler.start(Inputs.paired([0], [3]), steps=lambda _: seen.append(tf32()) or 2, num_ar_steps=2)
    monkeypatch.setattr(sampler.codec, "decode", lambda latents: seen.append(tf32()) or latents)
    images = run.result().images
    sampler.decode(images)
    assert set(seen) == {(asked, asked)}


def test_training_makes_gradients_whatever_the_caller_has_set() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), undisturbed(training=True):
        (weight @ weight).backward()
    assert weight.grad is not None


# -- threads, forks, interruptions -------------------------------------------------------------------------------------


def test_threads_draw_the_same_pictures_from_one_sampler() -> None:
    sampler, drawn = small.sampler(), dict[int, Tensor]()
    expected = draw(sampler)

    def work(i: int) -> None:
        drawn[i] = draw(sampler, batch_size=1 + i % 3)

    with STATES["default dtype bfloat16"]():
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.bfloat16
    assert len(drawn) == 4
    assert all(torch.equal(images, expected) for images in drawn.values())


def test_threads_share_a_run() -> None:
    sampler, found = small.sampler(), list[Tensor]()
    run = sampler.start(Inputs.paired(range(6), 3), batch_size=1)
    threads = [threading.Thread(target=lambda: found.extend(each.images for each in run.batches())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert run.turns_made == run.num_turns


FORKED = """
import multiprocessing, torch
import small
torch.set_num_threads(2)
sampler = small.sampler()
expected = sampler.sample(3, 0).images
def work(queue):
    queue.put(torch.equal(sampler.sample(3, 0).images, expected))
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
child = context.Process(target=work, args=(queue,))
child.start()
child.join(60)
code = child.exitcode
child.kill()
print(code, code == 0 and queue.get())
"""


@needs_fork
def test_a_forked_process_draws() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.stdout == "0 True\n", done.stderr


class Interrupted:
    """A policy that is stopped in its second AR step."""

    def __call__(self, problem: Any) -> int:
        if problem.ar_step == 1:
            raise KeyboardInterrupt
        return 2


@pytest.mark.filterwarnings("ignore:.*known to this program alone")
def test_after_an_interruption_a_run_says_so_and_its_sampler_draws_on() -> None:
    sampler = small.sampler()
    expected = draw(sampler)
    run = sampler.start(Inputs.paired([0, 1], [3, 5]), steps=Interrupted(), batch_size=1)
    with STATES["default dtype float64"]():
        next(run)
        with pytest.raises(KeyboardInterrupt):
            next(run)
        assert torch.get_default_dtype() == torch.float64
    with pytest.raises(DisaError, match="broke off within a batch"):
        run.result()
    assert torch.equal(draw(sampler), expected)


@pytest.mark.filterwarnings("ignore:.*known to this program alone")
def test_who_waits_while_a_batch_breaks_off_gets_no_turn_of_the_next() -> None:
    entered, go, found = threading.Event(), threading.Event(), list[object]()

    def steps(problem: Any) -> int:
        if not entered.is_set():
            entered.set()
            go.wait(20)
            raise RuntimeError("stopped")
        return 2

    run = small.sampler().start(Inputs.paired([0, 1], [3, 5]), steps=steps, batch_size=1)

    def take() -> None:
        try:
            found.append(next(run))
        except (RuntimeError, DisaError) as error:
            found.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(2)]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    time.sleep(0.1)  # it waits for the first
    go.set()
    for thread in threads:
        thread.join()
    assert found == ["stopped", "this run broke off within a batch, which is lost: start another one."]


def test_a_run_is_dropped_in_another_thread() -> None:
    sampler = small.sampler()
    runs = [sampler.start(Inputs.paired(0, 3))]
    with torch.inference_mode():
        next(runs[0])
    thread = threading.Thread(target=runs.clear)
    thread.start()
    thread.join()
    assert torch.equal(draw(sampler), draw(small.sampler()))
    assert torch.is_grad_enabled()


# -- folders and warnings ----------------------------------------------------------------------------------------------


def test_what_is_read_later_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sampler.load("mar-digits", device="cpu").save_pretrained(tmp_path / "own")
    Sampler.load("harmon-shapes", device="cpu").text.save(tmp_path / "words")
    start, gone = tmp_path, tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(start)
    vae = str(Path("own") / "vae") if (tmp_path / "own" / "vae").is_dir() else None
    sampler = Sampler.load("own", vae=vae, device="cpu")
    harmon = Sampler.load("harmon-shapes", tokenizer="words", device="cpu")
    monkeypatch.chdir(gone)
    shutil.rmtree(gone)
    assert sampler.sample(3, 0, steps="constant:1", num_ar_steps=2).images.shape == (1, 1, 32, 32)
    assert harmon.text.stop_ids
    monkeypatch.chdir(start)


def test_a_warning_points_at_the_callers_line() -> None:
    sampler = small.sampler()
    with pytest.warns(UserWarning, match="is resampled to 4") as caught:
        sampler.sample(3, 0, steps=Table((2, 3)))
    assert {warning.filename for warning in caught} == {__file__}


def test_nothing_warns_of_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(small.sampler())


# -- copies ------------------------------------------------------------------------------------------------------------

COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy, "copy": copy.copy}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore:.*bfloat16 instructions")
def test_a_copied_sampler_draws_the_same(how: str, dtype: str) -> None:
    sampler = small.sampler(dtype)
    other = COPIES[how](sampler)
    assert torch.equal(draw(other), draw(sampler))
    assert other.about() == sampler.about()
    kinds = [[type(module) for module in each.model.modules()] for each in (sampler, other)]
    assert kinds[0] == kinds[1]


def test_a_copy_is_plain_where_weights_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = small.sampler()
    content = pickle.dumps(sampler)
    monkeypatch.setattr(packing, "can_pack", lambda dtype: False)
    other = pickle.loads(content)
    assert not any(isinstance(module, PackedLinear) for module in other.model.modules())
    torch.testing.assert_close(draw(other), draw(sampler), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", small.EMBEDDED.values())
def test_a_decoded_image_does_not_depend_on_the_number_of_threads(name: str, threads: Callable[[int], None]) -> None:
    sampler = Sampler.load(name, device="cpu")
    config = sampler.model.config
    size = (1, config.latent_channels, *config.latent_size)
    latents = torch.randn(size, generator=torch.Generator().manual_seed(0))
    images = sampler.decode(latents)
    for count in (2, 3, 4):
        threads(count)
        assert torch.equal(sampler.decode(latents), images), count


def _drawn_there(sampler: Sampler, asked: dict[str, Any]) -> np.ndarray:
    return sampler.sample(**asked).images.numpy()


def test_a_spawned_process_draws_the_same() -> None:
    sampler = Sampler.load("harmon-shapes", device="cpu")
    asked = {"prompts": "a red circle", "seeds": [0], "steps": "constant:2", "num_ar_steps": 2}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_drawn_there, (sampler, asked))
    assert np.array_equal(found, _drawn_there(sampler, asked))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": "mlp"},
        {"steps": "variance:draws"},
        {"steps": "straight@4"},
        {"steps": [3, 2]},
        {"solver": "ddim:eta=0.5"},
        {"guidance": 2.0, "interval": "0-0.9"},
    ],
    ids=str,
)
def test_settings_are_copied_compared_and_short(options: dict[str, Any]) -> None:
    sampler = Sampler.load("mar-digits", device="cpu")
    settings, again = sampler.settings(num_ar_steps=2, **options), sampler.settings(num_ar_steps=2, **options)
    other = COPIES["pickle"](settings)
    assert settings == again == other == copy.deepcopy(settings)
    assert settings != sampler.settings(num_ar_steps=2, steps="constant:7")
    assert other.to_json() == settings.to_json()
    one, two = (sampler.sample(3, 0, settings=each, output_type="latent").latents for each in (settings, other))
    assert torch.equal(one, two)
    assert len(repr(settings)) < 300


def test_samples_and_inputs_are_copied() -> None:
    sampler = small.sampler()
    samples = sampler.sample([3, 5], [0, 1])
    for other in (COPIES["pickle"](samples), copy.deepcopy(samples)):
        assert torch.equal(other.images, samples.images)
        assert other.report() == samples.report()
    assert COPIES["pickle"](samples.inputs).numbers() == samples.inputs.numbers()


@pytest.mark.parametrize("how", [*COPIES, "dumps"])
def test_a_run_under_way_is_not_copied(how: str) -> None:
    run = small.sampler().start(Inputs.paired(0, 3))
    with pytest.raises(DisaError, match="a run under way cannot be copied"):
        (COPIES | {"dumps": pickle.dumps})[how](run)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_everything_public_is_one_short_line_and_may_be_compared() -> None:
    sampler = small.sampler()
    run = sampler.start(Inputs.paired(range(200), 3), batch_size=200)
    turn = next(run)
    samples = sampler.sample([3] * 3, [0, 1, 2])
    shown = [sampler, run, turn, turn.step, turn.step.problem, samples, samples.inputs, sampler.settings(), Settings()]
    for each in shown:
        assert len(repr(each)) < 300
        assert "\n" not in repr(each)
        assert each == each
        assert each != copy.copy(each) if each is not run and not isinstance(each, Settings) else True
    assert repr(run) == "Run(200 images in 1 batch, 1 of 4 AR steps drawn)"


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_a_notebook_shows_a_page_at_most(output_type: str) -> None:
    samples = small.sampler().sample([3] * 60, list(range(60)), output_type=output_type, batch_size=60)
    content = samples._repr_png_()
    assert content is not None
    assert content.startswith(b"\x89PNG")
    assert len(content) < 200_000
    assert small.sampler().sample(3, 0, output_type="latent")._repr_png_() is None


# -- the hash of the weights -------------------------------------------------------------------------------------------


def test_weights_are_hashed_when_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from disa.draw import identity

    hashed = list[int]()
    plain = identity.hash_of
    monkeypatch.setattr(identity, "hash_of", lambda model: hashed.append(1) or plain(model))
    sampler = small.sampler()
    samples = [sampler.sample(3, 0), sampler.sample(5, 1)]
    assert not hashed
    assert samples[0].settings["weights"] == samples[1].settings["weights"] == plain(sampler.model)
    assert len(hashed) == 1


def test_the_hash_is_of_the_weights_that_drew() -> None:
    sampler = small.sampler()
    early, late = sampler.sample(3, 0), sampler.sample(3, 0)
    told = early.settings["weights"]
    sampler.model.no_class.add_(1)
    assert sampler.sample(3, 0).settings["weights"] != told
    assert late.settings["weights"] == told
    lost = sampler.sample(3, 0, guidance=3.0)
    sampler.weights_hash  # noqa: B018
    assert lost.settings["weights"] == sampler.weights_hash

    other = small.sampler()
    lost = other.sample(3, 0)
    other.model.no_class.add_(1)
    with pytest.raises(DisaError, match="the weights were changed after this was drawn"):
        _ = lost.settings


# -- devices and dtypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_devices_that_are_there(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["cpu"])
    assert pick_device(device) == torch.device("cpu")


NOT_THERE = ["cuda", "cuda:7", "gpu", "cpu:99", "meta", torch.device("meta"), torch.device("cuda", 1), 0, -1, True, 1.5]


@pytest.mark.parametrize("device", [*NOT_THERE, "", "CPU", "cpu\n", b"cpu", [], "x" * 200], ids=repr)
def test_devices_that_are_not(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["cpu"])
    for ask in (pick_device, small.sampler().to, lambda device: Sampler.load("mar-digits", device=device)):
        with pytest.raises(DisaError, match=r"cannot be used here: expected auto or cpu\.") as caught:
            ask(device)
        assert len(str(caught.value)) < 200


def test_cuda_is_the_current_device_and_all_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    assert [str(pick_device(device)) for device in (None, "auto", "cuda", "cuda:2", 0)] == [
        "cuda:1",
        "cuda:1",
        "cuda:1",
        "cuda:2",
        "cuda:0",
    ]
    with pytest.raises(DisaError, match=r"expected auto, cuda:1, cuda:0, cuda:2 or cpu\. Did you mean cuda:"):
        pick_device("cuda:7")
    with pytest.raises(DisaError, match=r"Did you mean cuda\?"):
        pick_device("gpu")
    monkeypatch.setattr(torch, "zeros", lambda *size, device: 1 / 0 if device == "cpu" else _fails())
    with pytest.raises(DisaError, match="the device cuda:1 is there, but cannot be used: CUDA error: busy"):
        pick_device("cuda")


def _fails() -> None:
    raise RuntimeError("CUDA error: busy\nmore")


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", torch.bfloat16])
def test_dtypes_by_name_and_as_objects(dtype: Any) -> None:
    assert dtype_name(dtype) == "bf16"
    assert pick_dtype(dtype) is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, "fp16", "float64", None, 32, [], torch.int8])
def test_dtypes_that_are_not_there(dtype: Any) -> None:
    with pytest.raises(DisaError, match=r"^unknown dtype .*: expected fp32, bf16 or tf32"):
        dtype_name(dtype)


@pytest.mark.filterwarnings("ignore:.*bfloat16 instructions")
def test_a_sampler_is_moved_to_another_dtype_and_back() -> None:
    sampler = Sampler.load("mar-digits", device="cpu")
    asked = {"labels": 3, "seeds": 0, "steps": "constant:2", "num_ar_steps": 2}
    told, images = sampler.about(), sampler.sample(**asked).images
    assert sampler.to() is sampler
    assert sampler.to("cpu", "fp32") is sampler
    assert torch.equal(sampler.sample(**asked).images, images)
    assert sampler.to(torch.bfloat16) is sampler
    expected = Sampler.load("mar-digits", device="cpu", dtype="bf16").sample(**asked).images
    assert torch.equal(sampler.sample(**asked).images, expected)
    assert not torch.equal(expected, images)
    assert sampler.about()["weights"] == told["weights"]
    back = sampler.to(dtype="fp32")
    assert any(isinstance(module, PackedLinear) for module in back.model.modules()) == can_pack(torch.float32)
    assert back.sample(**asked).images.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*bfloat16 instructions")
def test_where_a_move_fails_the_sampler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = small.sampler()
    expected, prepare = draw(sampler), packing.prepare

    def fails(model: Any, device: Any, dtype: torch.dtype) -> Any:
        if dtype == torch.bfloat16:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return prepare(model, device, dtype)

    monkeypatch.setattr(packing, "prepare", fails)
    with pytest.raises(DisaError, match="not enough memory"):
        sampler.to(dtype="bf16")
    assert sampler.dtype == "fp32"
    assert draw(sampler).dtype == expected.dtype


@pytest.mark.filterwarnings("ignore:.*bfloat16 instructions")
def test_a_run_whose_sampler_was_moved_says_so() -> None:
    sampler = small.sampler()
    run = sampler.start(Inputs.paired(0, 3))
    next(run)
    sampler.to(dtype="bf16")
    with pytest.raises(DisaError, match="the sampler was moved while this run was under way"):
        next(run)
