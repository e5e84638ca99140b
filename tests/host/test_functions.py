"""Single functions in the host's interpreter: no server."""
from __future__ import annotations

import pytest

NODES = {"VDDLoadCheckpoint", "VDDEncodeClip", "VDDSampler", "VDDSigmas", "VDDDecode", "VDDDeblurVideo", "VDDDeblurFrames", "VDDCompare",
         "VDDSynthesizeBlur", "VDDPrior"}


def test_importing_the_pack_is_cheap_and_changes_nothing(checked):
    assert set(checked["nodes"]) == NODES
    assert set(checked["second_copy"]) == NODES
    assert checked["import_cpu_seconds"] < 1.0
    assert checked["training_modules"] == [] and checked["patched"] == []


@pytest.mark.parametrize("setting", ["4 steps, guidance 1.0", "10 steps, guidance 2.0"])
def test_the_core_sampler_gives_the_same_latents(checked, setting):
    found = checked["samplers"][setting]
    assert found["ksampler_rms"] < 1e-4
    assert found["package_rms"] < 1e-4
    assert checked["sigmas_rms"] < 1e-4


def test_one_step_differs_by_the_host_arithmetic_only(checked):
    """The host begins at sigma 4519 in float32 (alpha_bar 5e-8 in place of 0)."""
    found = checked["samplers"]["1 steps, guidance 1.0"]
    assert found["ksampler_rms"] < 3e-3 and found["package_rms"] < 3e-3


def test_weights_of_fewer_bits(checked):
    found = checked["precision"]
    assert found["float16"] < 2e-3 and found["bfloat16"] < 2e-2 and found["fp8_e4m3fn"] < 0.15


def test_graph_and_one_node_agree(checked):
    assert checked["graph_against_one_node"] < 2e-3
    called, estimated = checked["one_step_against_one_node"]
    assert estimated < 1e-6 < called < 2e-3 < checked["the_other_branch"]
    same, changed = checked["turned"]                                            # the mean over four orientations
    assert same < 1e-6 < 1e-4 < changed
    assert checked["unet_calls_at_one_step"] == [0, 1, 0, 1, 0]                  # none, for the option, for a mask
    assert checked["shapes"][:2] == [[9, 40, 52, 4], [9, 40, 52, 4]]
    assert checked["shapes"][2] == [1, 9, 40, 56, 3]
    assert checked["alpha_kept"]
    assert checked["tiles_shape"] == [9, 40, 52, 4]
    assert checked["one_frame"] == [1, 4, 1, 10, 14]


def test_only_several_steps_pay_for_what_one_step_shows(checked):
    """It is computed once, for the first sampler that asks."""
    assert checked["pictures_computed"] == [0, 1, 1]


def test_a_cpu_computes_in_the_type_that_it_is_fast_in(checked):
    assert checked["default_type"][0] == checked["default_type"][1]
    assert checked["default_type_against_float32"] < 0.02


def test_the_host_is_told_what_sampling_needs(checked):
    found, expected = checked["memory_usage_factor"]
    assert found == expected > 0


def test_lora_reaches_the_unet_and_leaves_it(checked):
    assert checked["lora_keys"] == [2, 2]
    assert checked["lora_changes"] > 1e-3
    assert checked["lora_undone"] == 0.0


def test_a_saved_model_is_loaded_again(checked):
    """With the LoRA in its weights."""
    difference, effect = checked["saved_model"]
    assert difference < 1e-5 < 1e-3 < effect


def test_other_nodes_reach_the_network_and_its_guidance(checked):
    assert checked["post_cfg"] < 1e-3 and max(checked["interval"]) < 1e-3 and checked["formula"] < 1e-2
    assert checked["wrapper_calls"] >= 1 and checked["wrapped"] == 0.0


@pytest.mark.parametrize("kind", ["attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch", "middle_patch", "replace",
                                  "input_block_patch", "input_block_patch_after_skip", "output_block_patch"])
def test_patches_of_layers_are_called_where_they_belong(checked, kind):
    calls, same, changed = checked["patches"][kind]
    assert calls and same < 1e-4 < 1e-3 < changed


def test_patches_that_have_no_place_are_refused(checked):
    kind, place = checked["patches"]["refused"]
    assert "changes layers (double_block) in a way" in kind and "the attention of input block 0, where this 3D-UNet has none" in place


def test_the_denoiser_can_be_loaded_again(checked):
    assert checked["loaded_again"] == 0.0


def test_context_windows_do_not_cut_the_text(checked):
    assert checked["text_in_windows"] == ""


def test_noise_mask_keeps_what_it_covers(checked):
    assert checked["mask_error"] < 1e-5


@pytest.mark.parametrize(("case", "words"), [
    ("image vae", "connect the VAE output of 'Load Deblur Checkpoint'"),
    ("missing checkpoint", "models/vdd"),
    ("wrong checkpoint", "is not a safetensors file"),
    ("image latent", "Encode Blurred Clip"),
    ("two clips", "holds 2 clips: take one of them, with Latent From Batch"),
    ("other frames", "connect the frames that were encoded"),
    ("text conditioning", "Encode Blurred Clip"),
])
def test_refusals_are_sentences(checked, case, words):
    assert words in checked["refusals"][case]
    assert "UserError" in checked["refusals"][case] or "CheckpointError" in checked["refusals"][case]
