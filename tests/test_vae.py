"""The autoencoder: the converter is a bijection, the codec gives the official numbers, mistakes give one line."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from disa.codecs import kl16 as vae
from disa.codecs.base import split_moments
from disa.errors import DisaError

GOLDEN = Path(__file__).parents[1] / "../shared/golden"
CASES = ("vae_kl16", "vae_kl16_mult")
SMALL = vae.VAEConfig(block_widths=(32, 32, 64, 32, 32))
# Two levels, so that a tile is many latents wide and its norms and attention see nearly what the whole image shows.
SHALLOW = vae.VAEConfig(
    latent_channels=4, block_widths=(32, 32), layers_per_block=1, norm_groups=1, encoder_attention_levels=(1,)
)


def codec(config: vae.VAEConfig, seed: int = 0) -> vae.KL16Codec:
    torch.manual_seed(seed)
    return vae.KL16Codec(vae.build(config))


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def root_mean_square(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


def official_weights(config: vae.VAEConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return vae.to_official(vae.build(config).state_dict(), config)


class Golden:
    """One recorded case of the official code, and the codec that holds its weights."""

    def __init__(self, case: str) -> None:
        self.tensors = load_file(GOLDEN / f"{case}.safetensors")
        self.config = vae.VAEConfig.from_official(json.loads((GOLDEN / f"{case}.json").read_text())["config"])
        prefix = "weights/"
        self.weights = {
            name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)
        }
        with torch.device("meta"):
            model = vae.build(self.config)
        model.load_state_dict(vae.from_official(self.weights, self.config), strict=True, assign=True)
        self.codec = vae.KL16Codec(model)

    def check(self, name: str, found: torch.Tensor) -> None:
        expected = self.tensors[f"expected/{name}"]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    if not (GOLDEN / f"{request.param}.safetensors").exists():
        pytest.skip(f"no recorded case {request.param} in {GOLDEN.resolve()}: the official numbers are not checked")
    return Golden(request.param)


# --- config -----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_published_kl16():
    config = vae.VAEConfig()
    assert config.stride == 16
    assert config == vae.VAEConfig.from_official({"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2})


def test_a_config_survives_json():
    assert vae.VAEConfig(**json.loads(json.dumps(asdict(SMALL)))) == SMALL


@pytest.mark.parametrize(("resolution", "levels"), [(256, (4,)), (128, (3,)), (512, ())])
def test_encoder_attention_follows_the_nominal_resolution(resolution: int, levels: tuple[int, ...]):
    config = vae.VAEConfig.from_official({"resolution": resolution, "encoder_attn_resolutions": [16]})
    assert config.encoder_attention_levels == levels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ch_mult": [2, 2]}, r"ch_mult\[0\]"),
        ({"decoder_attn_resolutions": [16]}, "decoder_attn_resolutions"),
        ({"double_z": False}, "double_z"),
        ({"gn_eps": 1e-5}, "gn_eps"),
        ({"out_ch": 1}, "out_ch"),
        ({"ch": 40}, "multiples of norm_groups = 32"),
    ],
)
def test_variants_that_cannot_be_built_are_refused(arguments: dict, message: str):
    with pytest.raises(DisaError, match=message):
        vae.VAEConfig.from_official(arguments)


def test_attention_on_a_level_that_is_not_there_is_refused():
    with pytest.raises(DisaError, match=r"0\.\.1, found \(4,\)"):
        vae.VAEConfig(block_widths=(32, 32))


def test_importing_the_module_does_not_import_diffusers():
    code = "import sys, disa.codecs.kl16; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


# --- converter --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, SHALLOW, replace(SMALL, encoder_attention_levels=(1, 3))])
def test_converting_there_and_back_is_bit_equal(config: vae.VAEConfig):
    torch.manual_seed(0)
    ours = vae.build(config).state_dict()
    theirs = vae.to_official(ours, config)
    back = vae.from_official(theirs, config)
    assert set(back) == set(ours)
    assert len(theirs) == len(ours)
    assert all(back[name].shape == ours[name].shape and torch.equal(back[name], ours[name]) for name in ours)


def test_the_published_shape_converts_without_memory():
    with torch.device("meta"):
        model = vae.build(vae.VAEConfig())
    theirs = vae.to_official(model.state_dict(), vae.VAEConfig())
    assert {value.device.type for value in theirs.values()} == {"meta"}
    assert theirs["encoder.down.4.attn.1.q.weight"].shape == (512, 512, 1, 1)
    assert theirs["decoder.up.3.block.0.nin_shortcut.weight"].shape == (256, 512, 1, 1)
    assert sum(value.numel() for value in theirs.values()) == 66_456_019


@pytest.mark.parametrize(
    ("official", "diffusers"),
    [
        ("decoder.up.4.block.2.conv1.bias", "decoder.up_blocks.0.resnets.2.conv1.bias"),
        ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.3.upsamplers.0.conv.bias"),
        ("encoder.down.2.block.0.nin_shortcut.bias", "encoder.down_blocks.2.resnets.0.conv_shortcut.bias"),
        ("encoder.down.4.attn.1.k.bias", "encoder.down_blocks.4.attentions.1.to_k.bias"),
        ("decoder.mid.attn_1.proj_out.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
        ("encoder.mid.block_2.norm1.weight", "encoder.mid_block.resnets.1.norm1.weight"),
    ],
)
def test_a_parameter_arrives_at_its_place(official: str, diffusers: str):
    weights = official_weights(SMALL)
    weights[official] = torch.full_like(weights[official], 7.0)
    assert torch.equal(vae.from_official(weights, SMALL)[diffusers], weights[official])


def test_missing_and_unexpected_names_are_told_in_one_line():
    weights = official_weights(SHALLOW)
    lacking = {name: value for name, value in weights.items() if not name.startswith("encoder.mid.attn_1")}
    with pytest.raises(DisaError) as caught:
        vae.from_official(lacking | {"loss.logvar": torch.zeros(())}, SHALLOW)
    message = str(caught.value)
    assert "10 missing (encoder.mid.attn_1.k.bias, " in message
    assert ", ...)" in message
    assert "1 unexpected (loss.logvar)" in message
    assert "\n" not in message


def test_a_wrong_shape_is_told():
    weights = official_weights(SHALLOW)
    weights["quant_conv.bias"] = torch.zeros(5)
    with pytest.raises(
        DisaError, match=r"1 of its tensors has another shape; quant_conv\.bias should be \(8,\), found \(5,\)"
    ):
        vae.from_official(weights, SHALLOW)


def test_each_direction_refuses_the_names_of_the_other():
    with pytest.raises(DisaError, match="does not fit the official KL-16 names"):
        vae.from_official(vae.build(SHALLOW).state_dict(), SHALLOW)
    with pytest.raises(DisaError, match="does not fit the diffusers KL-16 names"):
        vae.to_official(official_weights(SHALLOW), SHALLOW)


def test_weights_of_another_config_are_refused():
    with pytest.raises(DisaError, match=r"20 missing \(encoder\.down\.3\.attn\.0\.k\.bias"):
        vae.from_official(official_weights(SMALL), replace(SMALL, encoder_attention_levels=(3, 4)))


# --- codec against the official numbers -------------------------------------------------------------------------------


def test_golden_encoding(golden: Golden):
    images, noise = golden.tensors["inputs/image"], golden.tensors["noise/sample"]
    moments = golden.codec.moments(images)
    mean, log_variance = split_moments(moments)
    golden.check("moments", moments)
    golden.check("mean", mean)
    golden.check("logvar", log_variance)
    golden.check("mean", golden.codec.encode(images) / 0.2325)
    golden.check("sample", golden.codec.encode(images, noise) / 0.2325)


def test_golden_decoding(golden: Golden):
    golden.check("decoded", golden.codec.decode(golden.tensors["inputs/latent"] * 0.2325))


def test_golden_weights_come_back_bit_equal(golden: Golden):
    back = vae.to_official(golden.codec.model.state_dict(), golden.config)
    assert set(back) == set(golden.weights)
    assert all(torch.equal(back[name], value) for name, value in golden.weights.items())


# --- codec on its own -------------------------------------------------------------------------------------------------


def test_log_variance_is_clamped():
    mean, log_variance = split_moments(torch.tensor([5.0, -100.0, -100.0, 100.0]).reshape(1, 4, 1, 1))
    assert mean.flatten().tolist() == [5.0, -100.0]
    assert log_variance.flatten().tolist() == [-30.0, 20.0]


def test_the_scale_multiplies_latents_and_divides_before_decoding():
    latents, images, noise = random_tensor(1, 4, 4, 4), random_tensor(1, 3, 8, 8), random_tensor(1, 4, 4, 4, seed=1)
    # Powers of two, so that scaling is exact.
    fine, coarse = codec(replace(SHALLOW, scale=0.25)), codec(replace(SHALLOW, scale=0.5))
    assert torch.equal(fine.decode(latents), coarse.decode(2 * latents))
    assert torch.equal(2 * fine.encode(images, noise), coarse.encode(images, noise))
    assert torch.equal(fine.encode(images), 0.25 * split_moments(fine.moments(images))[0])


def test_an_image_does_not_depend_on_its_batch():
    latents, images = random_tensor(3, 16, 2, 2), random_tensor(3, 3, 32, 32)
    small = codec(SMALL)
    assert torch.equal(small.decode(latents)[1:2], small.decode(latents[1:2]))
    assert torch.equal(small.encode(images)[1:2], small.encode(images[1:2]))


def test_double_and_permuted_latents_decode_like_plain_ones():
    latents = random_tensor(2, 16, 2, 3)
    small = codec(SMALL)
    permuted = latents.double().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(small.decode(permuted), small.decode(latents))


def test_clamping_cuts_only_what_is_outside():
    latents = random_tensor(1, 4, 8, 8)
    shallow = codec(SHALLOW)
    shallow.model.state_dict()["decoder.conv_out.bias"].fill_(1.0)
    raw = shallow.decode(latents)
    assert raw.min() < 1 < raw.max()
    assert torch.equal(shallow.decode(latents, clamp=True), raw.clamp(-1, 1))


def test_bfloat16_is_close_and_returns_float32():
    latents, images = random_tensor(1, 16, 4, 4), random_tensor(1, 3, 64, 64)
    small = codec(SMALL)
    exact_images, exact_moments = small.decode(latents), small.moments(images)
    rounded = small.to(dtype=torch.bfloat16)
    assert rounded.model.dtype == torch.bfloat16
    for found, exact in ((rounded.decode(latents), exact_images), (rounded.moments(images), exact_moments)):
        assert found.dtype == torch.float32
        assert 0 < root_mean_square(found - exact) < 0.06 * root_mean_square(exact)


def test_tiled_decoding_is_close_inside_a_tile():
    latents = random_tensor(1, 4, 40, 40) * SHALLOW.scale
    shallow = codec(SHALLOW)
    whole, first_tile = shallow.decode(latents), shallow.decode(latents[..., :32, :32])
    shallow.enable_tiling(64)
    tiled = shallow.decode(latents)
    assert tiled.shape == whole.shape
    # Tiles of 64 pixels start every 48: up to there the first one is unblended, and its middle is far from any edge.
    assert torch.equal(tiled[..., :48, :48], first_tile[..., :48, :48])
    assert 0 < root_mean_square((tiled - whole)[..., 8:40, 8:40]) < 0.1 * whole.std().item()


def test_images_that_fit_a_tile_are_not_tiled():
    latents = random_tensor(1, 4, 8, 8)
    shallow = codec(SHALLOW)
    whole = shallow.decode(latents)
    shallow.enable_tiling()
    assert torch.equal(shallow.decode(latents), whole)


def test_wrong_sizes_are_told():
    small = codec(SMALL)
    with pytest.raises(DisaError, match="multiples of 16, found 32 x 40"):
        small.encode(torch.zeros(1, 3, 32, 40))
    with pytest.raises(DisaError, match=r"images must be \[B, 3, H, W\], found \[1, 1, 32, 32\]"):
        small.moments(torch.zeros(1, 1, 32, 32))
    with pytest.raises(DisaError, match=r"latents must be \[B, 16, h, w\], found \[16, 2, 2\]"):
        small.decode(torch.zeros(16, 2, 2))
    with pytest.raises(DisaError, match=r"noise must be \[2, 16, 2, 2\], found \[1, 16, 2, 2\]"):
        small.encode(torch.zeros(2, 3, 32, 32), torch.zeros(1, 16, 2, 2))
    with pytest.raises(DisaError, match="multiple of 64 pixels, found 96"):
        small.enable_tiling(96)
