"""How tensors are computed here: rows in tiles, kernels that keep a row's bits, packing, devices, the clock."""

import time
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.models.layers import MLP, initialise
from disa.runtime import packing
from disa.runtime.clock import clock_of
from disa.runtime.devices import pick_device, pick_dtype
from disa.runtime.kernels import attend, cos_and_sin, linear, swish
from disa.runtime.packing import Linear, PackedLinear, adopt, can_pack, has_fast_bf16, pack, prepare
from disa.runtime.tiles import MIN_ROWS, in_tiles, one_by_one, padding, sums_vary, tiles

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this build of PyTorch cannot pack weights")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- tiles -----------------------------------------------------------------------------------------------------------


def test_tiles_hold_all_rows_in_few_sizes() -> None:
    sizes = {n: tiles(n) for n in range(5000)}
    for n, found in sizes.items():
        assert 0 <= sum(found) - n < MIN_ROWS
        assert found == (n,) or all(tile % MIN_ROWS == 0 for tile in found)
    assert {tile for found in sizes.values() if len(found) > 1 for tile in found} == {1024, 256, 64, 48, 32, 16}
    assert sizes[0] == (0,)
    assert sizes[640] == (640,)  # no seams where the number of rows is round


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_packing)])
def test_rows_do_not_depend_on_their_tiles(packed: bool) -> None:
    mlp = MLP(32, 48).requires_grad_(False)
    initialise(mlp, seed=0)
    model = pack(mlp) if packed else mlp
    x = normal(1, 1400, 32, seed=1)
    with torch.no_grad():
        together = model(x)
        for count in (1, 11, 12, 15, 16, 17, 40, 100, 257, 333, 1103, 1399):
            assert torch.equal(model(x[:, 1:][:, :count]), together[:, 1:][:, :count])
            assert torch.equal(model(x[0, -count:]), together[0, -count:])


def test_nothing_is_divided_while_training() -> None:
    seen = list[int]()

    def apply(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return 2 * rows

    x = normal(3, 7, 5)
    assert torch.equal(in_tiles(apply, x.flatten(0, 1)), 2 * x.flatten(0, 1))
    with torch.no_grad():
        assert torch.equal(in_tiles(apply, x), 2 * x)
    assert seen == [21, 32]


def test_only_inference_on_a_cpu_has_to_see_to_its_sums() -> None:
    assert not sums_vary(CPU)
    with torch.no_grad():
        assert sums_vary(CPU)
        assert not sums_vary(ELSEWHERE)


@pytest.mark.parametrize("halves", [{1}, {2}, {1, 2}])
def test_padding_is_the_least_that_makes_every_number_of_halves_one_tile(halves: set[int]) -> None:
    for rows in (*range(1, 200), 255, 256, 257, 1000):
        lack = padding(rows, halves, CPU)
        whole = [
            all(
                len(tiles(half * (rows + more))) == 1 and tiles(half * (rows + more))[0] == half * (rows + more)
                for half in halves
            )
            for more in range(lack + 1)
        ]
        assert whole == [False] * lack + [True]
        assert padding(rows, halves, ELSEWHERE) == 0


def test_images_are_taken_one_by_one_on_a_cpu_alone() -> None:
    seen = list[int]()

    def apply(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    x = normal(3, 2, 4, 4)
    assert torch.equal(one_by_one(apply, x), 2 * x)
    assert one_by_one(apply, x.to(ELSEWHERE)).shape == x.shape
    assert seen == [1, 1, 1, 3]


# -- kernels ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kernel", [swish, lambda x: cos_and_sin(x)[0], lambda x: cos_and_sin(x)[1]])
def test_a_value_does_not_depend_on_where_its_tensor_ends(kernel: Callable[[Tensor], Tensor]) -> None:
    x = 3 * normal(4099)
    whole = kernel(x)
    assert all(torch.equal(kernel(x[:count].clone()), whole[:count]) for count in (1, 3, 7, 9, 15, 17, 31, 1000, 4097))


@torch.no_grad()
def test_kernels_compute_what_they_are_called() -> None:
    x, weight, bias = normal(5, 40, 24), normal(16, 24, seed=1), normal(16, seed=2)
    exact = x.double()
    torch.testing.assert_close(swish(x).double(), exact * exact.sigmoid(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(swish(x.bfloat16()).double(), exact * exact.sigmoid(), rtol=2e-2, atol=2e-2)
    expected = exact @ weight.double().T + bias.double()
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)
    cos, sin = cos_and_sin(x)
    torch.testing.assert_close(torch.stack([cos, sin]), torch.stack([exact.cos(), exact.sin()]))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("count", [1, 5, 16, 31, 40])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_softmax_of_scaled_products(dtype: torch.dtype, bound: float, count: int, masked: bool) -> None:
    query, key, value = (normal(2, 3, size, 8, seed=i).to(dtype) for i, size in enumerate((count, 40, 40)))
    mask = torch.zeros(count, 40, dtype=dtype).masked_fill(normal(count, 40, seed=9) > 1, -torch.inf)
    scores = query.double() @ key.double().mT / 8**0.5 + (mask.double() if masked else 0)
    found = attend(query, key, value, mask if masked else None)
    torch.testing.assert_close(found.double(), scores.softmax(-1) @ value.double(), rtol=bound, atol=bound)


@torch.no_grad()
def test_a_query_does_not_depend_on_the_number_of_queries_and_images() -> None:
    query, key, value = (normal(4, 3, 72, 32, seed=i) for i in range(3))
    whole = attend(query, key, value)
    for count in (1, 2, 15, 16, 17, 31, 40):
        assert torch.equal(attend(query[1:2, :, :count], key[1:2], value[1:2]), whole[1:2, :, :count])


# -- packing ---------------------------------------------------------------------------------------------------------


@needs_packing
def test_packing_lets_go_of_a_layer_before_it_packs_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Sequential(Linear(8, 8), Linear(8, 8)) for _ in range(3)))
    originals = [weakref.ref(m) for m in model.modules() if type(m) is Linear]
    alive = list[int]()

    def counted(linear: nn.Linear) -> PackedLinear:
        alive.append(sum(original() is not None for original in originals))
        return PackedLinear(linear)

    monkeypatch.setattr(packing, "PackedLinear", counted)
    pack(model)
    assert alive == [6, 5, 4, 3, 2, 1]


@needs_packing
def test_packed_weights_are_the_same_and_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adopt(nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))).requires_grad_(False)
    before, x = {name: value.clone() for name, value in plain.state_dict().items()}, normal(20, 24)
    expected = plain(x)
    packed = prepare(plain, CPU, torch.float32)
    assert [type(layer) for layer in packed.children()] == [PackedLinear, nn.ReLU, PackedLinear]
    torch.testing.assert_close(packed(x), expected)
    after = packed.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_only_a_cpu_packs_and_it_says_where_bf16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Sequential(Linear(8, 8))
    assert type(prepare(layer, ELSEWHERE, torch.float32).get_submodule("0")) is Linear
    monkeypatch.setattr(packing, "has_fast_bf16", lambda: False)
    with pytest.warns(UserWarning, match="no bfloat16 instructions"):
        assert type(prepare(layer, CPU, torch.bfloat16).get_submodule("0")) is Linear


def test_only_floats_that_are_fast_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(torch.float64)
    assert can_pack(torch.bfloat16) == (can_pack(torch.float32) and has_fast_bf16())


# -- devices and the clock -------------------------------------------------------------------------------------------


def test_devices_and_dtypes_by_name() -> None:
    assert pick_device("cpu") == pick_device(CPU) == CPU
    assert pick_dtype("bf16") is torch.bfloat16
    with pytest.raises(DisaError, match="the device 'abacus' cannot be used here"):
        pick_device("abacus")
    with pytest.raises(DisaError, match="unknown dtype 'fp8': expected fp32, bf16 or tf32"):
        pick_dtype("fp8")


def test_a_cpu_s_clock_is_the_steady_one() -> None:
    assert clock_of(torch.device("cpu")) is time.perf_counter


def test_a_gpu_is_waited_for_when_times_are_read_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.place = Event.made

        def record(self, stream: str) -> None:
            assert stream == "the stream of cuda:1"

        def synchronize(self) -> None:
            waited.append(self.place)

        def elapsed_time(self, later: "Event") -> float:
            assert later.place in waited
            return 2000.0 * (later.place - self.place)  # in milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    now = clock_of(torch.device("cuda:1"))
    moments = [now() for _ in range(4)]
    assert not waited
    assert moments[3] - moments[1] == 4.0
    assert waited == [4]


def test_mps_is_waited_for_at_every_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "synchronize", lambda: time.sleep(0.01))
    now = clock_of(torch.device("mps"))
    first = now()
    assert now() - first >= 0.01
