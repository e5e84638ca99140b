"""Run by the host's own interpreter inside the host's folder: checks of single functions, without a server.

    python inside.py models FOLDER              write small stand-ins for an upscale and an interpolation model
    python inside.py checks PACK CHECKPOINT     print one JSON object of results on the last line
"""
import asyncio
import importlib.util
import json
import os
import sys
import time

command, arguments = sys.argv[1], sys.argv[2:]
sys.argv = [sys.argv[0], "--cpu", "--fp32-vae"]      # figures are compared in float32; the default type has a check of its own
sys.path.insert(0, os.getcwd())
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import torch  # noqa: E402

torch.set_num_threads(1)


TRAINING = ("train", "accelerate", "open_clip", "lpips", "tensorboard")


def models(folder):
    """Random weights are enough: only that the nodes pass frames on is tested."""
    os.makedirs(f"{folder}/upscale_models", exist_ok=True)
    from safetensors.torch import save_file
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
    save_file(RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4).state_dict(),
              f"{folder}/upscale_models/RealESRGAN_x4plus.safetensors")
    try:
        from comfy_extras.frame_interpolation_models.ifnet import IFNet
    except ImportError:
        return
    os.makedirs(f"{folder}/frame_interpolation", exist_ok=True)
    torch.manual_seed(0)
    net = IFNet(head_ch=4, channels=[8, 8, 8, 8, 8])
    state = {k: torch.randn_like(v) * 0.01 for k, v in net.state_dict().items()}
    save_file(state, f"{folder}/frame_interpolation/film_net_fp16.safetensors")


def load_pack(folder, name):
    """As the host does: a module named after its path, with a package around it."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    return module, nodes


def message(function, *args, **kw):
    """The sentence of the error that a call must end in."""
    try:
        function(*args, **kw)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def patches(model, sample):
    """What each kind of patch does: nothing where it changes nothing itself, its calls, and how far one that changes something gets."""
    plain, found = sample(model), {}

    def tried(kind, hang_in):
        """[calls, difference by a patch that gives back what it got, difference by one that changes it]"""
        calls, differences = [], []
        for factor in (1, 2):
            changed = model.clone()
            hang_in(changed, lambda x, factor=factor: calls.append(tuple(x.shape)) or x * factor)
            differences.append((sample(changed) - plain).abs().max().item())
        found[kind] = [len(calls), *differences]

    def sizes(m, change):
        """A patch that looks at all that it is told."""
        def patch(q, k, v, extra):
            assert q.shape[-1] == extra["n_heads"] * extra["dim_head"] and extra["block"][0] in ("input", "middle", "output")
            batch, _, height, width = extra["original_shape"]
            assert len(q) == batch and q.shape[1] <= height * width and len(extra["cond_or_uncond"]) == 2
            return change(q), k, v
        m.set_model_attn1_patch(patch)

    attention = torch.nn.functional.scaled_dot_product_attention

    def replaced(m, change):
        def patch(q, k, v, extra):
            heads = (x.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
            return change(attention(*heads).transpose(1, 2).flatten(2))
        m.set_model_attn1_replace(patch, "middle", 0)
        m.set_model_attn2_replace(patch, "middle", 0, 0)

    tried("attn1_patch", sizes)
    tried("attn2_patch", lambda m, change: m.set_model_attn2_patch(lambda q, k, v, extra: (q, k, change(v))))
    tried("attn1_output_patch", lambda m, change: m.set_model_attn1_output_patch(lambda n, extra: change(n)))
    tried("attn2_output_patch", lambda m, change: m.set_model_attn2_output_patch(lambda n, extra: change(n)))
    tried("middle_patch", lambda m, change: m.set_model_patch(lambda n, extra: change(n), "middle_patch"))
    tried("replace", replaced)
    tried("input_block_patch", lambda m, change: m.set_model_input_block_patch(lambda h, options: change(h)))
    tried("input_block_patch_after_skip", lambda m, change: m.set_model_input_block_patch_after_skip(lambda h, options: change(h)))
    tried("output_block_patch", lambda m, change: m.set_model_output_block_patch(lambda h, skip, options: (h, change(skip))))
    refused, nowhere = model.clone(), model.clone()
    refused.set_model_patch(lambda *a: a, "double_block")
    nowhere.set_model_attn1_replace(lambda q, k, v, extra: v, "input", 0)
    found["refused"] = [message(sample, refused), message(sample, nowhere)]
    return found


def checks(folder, checkpoint):
    import av  # noqa: F401  the host has these in memory when it comes to custom nodes
    import comfy.context_windows
    import comfy.patcher_extension
    import comfy.sample
    import comfy.sd
    import comfy.utils
    import folder_paths
    import latent_preview  # noqa: F401
    from comfy_api.latest import io as _io  # noqa: F401

    import nodes as host_nodes

    result = {}
    before, patched = set(sys.modules), {name: id(getattr(torch.nn, name)) for name in ("Linear", "Conv2d", "Conv3d")}
    start, cpu = time.perf_counter(), time.process_time()
    module, nodes = load_pack(folder, "/somewhere/else/a pack with_x_another name")
    result["import_seconds"], result["import_cpu_seconds"] = time.perf_counter() - start, time.process_time() - cpu
    new = set(sys.modules) - before
    result["training_modules"] = sorted(m for m in new if m.split(".")[0] in TRAINING)
    result["patched"] = [name for name, was in patched.items() if id(getattr(torch.nn, name)) != was]
    result["nodes"] = sorted(nodes)
    _, second = load_pack(folder, "second_copy")
    result["second_copy"] = sorted(second)

    name = module.__name__
    native, sampling, latents = (sys.modules[f"{name}.nodes.{part}"] for part in ("native", "sampling", "latents"))
    folders = sys.modules[f"{name}.nodes.folders"]
    diffusion, sampler = sys.modules[f"{name}.vdd_model.diffusion.schedule"], sys.modules[f"{name}.vdd_model.diffusion.sampler"]
    package = sys.modules[f"{name}.vdd_model.checkpoint.store"].load(checkpoint)
    folder_paths.add_model_folder_path("vdd", os.path.dirname(checkpoint))
    choice = os.path.basename(checkpoint)

    with torch.inference_mode():
        model, vae, encoders = nodes["VDDLoadCheckpoint"].execute(choice, "auto").result
        torch.manual_seed(0)
        frames = 0.9 * torch.rand(1, 40, 52, 4) + 0.1 * torch.rand(9, 40, 52, 4)           # one scene, in which all frames differ
        positive, negative, latent = nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
        result["memory_usage_factor"] = [model.model.memory_usage_factor, native.memory_usage_factor(encoders.config)]
        samples = latent["samples"]
        noise = sampling.frame_noise(7, range(9), 4, *samples.shape[-2:])
        fresh = positive[0][1]

        def ours(steps, guidance, **kw):
            return nodes["VDDSampler"].execute(model, positive, negative, latent, 7, steps, guidance, 0.0, **kw).result[0]["samples"]

        asked, drawn = fresh[latents.PICTURES].cache_info, []
        for steps in (1, 4):
            nodes["VDDSampler"].execute(model, positive, negative, latent, 7, steps, 1.0, 0.0)
            drawn.append(asked().misses)
        comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", positive, negative, samples, seed=7, disable_pbar=True)
        result["pictures_computed"] = [*drawn, asked().misses]
        blur, image = latents.with_pictures(fresh)[latents.BLUR], fresh[latents.IMAGE][0, 0, 4][None]
        concat, schedule = package.adapter(blur), diffusion.make_schedule(package.config.diffusion)
        table = result["samplers"] = {}
        for steps, guidance in ((1, 1.0), (4, 1.0), (10, 2.0)):
            a = ours(steps, guidance, window=0, denoise_at_one_step=True)
            b = comfy.sample.sample(model, noise, steps, guidance, "euler", "simple", positive, negative, samples, seed=7,
                                    disable_pbar=True)
            v = sampler.guided(lambda x, t: package.unet(x, t, package.context(image), concat),
                               lambda x, t: package.unet(x, t, package.context(image, True), concat), guidance)
            c = sampler.ddim(v, noise, schedule, sampler.timesteps(steps))
            scale = a.std().item()
            table[f"{steps} steps, guidance {guidance}"] = {
                "ksampler_rms": (a - b).square().mean().sqrt().item() / scale, "ksampler_max": (a - b).abs().max().item() / scale,
                "package_rms": (a - c).square().mean().sqrt().item() / scale}
        sigmas = nodes["VDDSigmas"].execute(model, 4).result[0]
        euler = comfy.samplers.KSAMPLER(comfy.samplers.k_diffusion_sampling.sample_euler)
        d = comfy.sample.sample_custom(model, noise, 1.0, euler, sigmas, positive, negative, samples, seed=7, disable_pbar=True)
        result["sigmas_rms"] = ((ours(4, 1.0, window=0) - d).square().mean().sqrt() / d.std()).item()

        reference = ours(2, 1.0, window=0)
        result["precision"] = {}
        for dtype in ("bfloat16", "float16", "fp8_e4m3fn"):
            other, _, _ = native.load(checkpoint, dtype)
            out = nodes["VDDSampler"].execute(other, positive, negative, latent, 7, 2, 1.0, 0.0, window=0).result[0]["samples"]
            result["precision"][dtype] = ((out - reference).square().mean().sqrt() / reference.std()).item()

        # the graph, window by window, against the one-node way
        windows = {"window": 6, "overlap": 2}
        graph = nodes["VDDDecode"].execute({**latent, "samples": ours(2, 1.0, **windows)}, vae, frames).result[0]
        one = nodes["VDDDeblurFrames"].execute(frames, choice, steps=2, guidance=1.0, fidelity=1.0, color="wavelet", seed=7,
                                               **windows).result[0]
        result["graph_against_one_node"] = (graph - one).abs().max().item()
        one_step = result["one_step_against_one_node"] = []
        for denoise in (True, False):
            drawn = nodes["VDDSampler"].execute(model, positive, negative, latent, 7, 1, 1.0, 0.0, denoise_at_one_step=denoise,
                                                **windows).result[0]
            steps1 = nodes["VDDDecode"].execute(drawn, vae, frames).result[0]
            single = nodes["VDDDeblurFrames"].execute(frames, choice, steps=1, guidance=1.0, fidelity=1.0, color="wavelet", seed=7,
                                                      denoise_at_one_step=denoise, **windows).result[0]
            one_step.append((steps1 - single).abs().max().item())
        mean = nodes["VDDDeblurFrames"].execute(frames, choice, steps=1, guidance=1.0, fidelity=1.0, color="wavelet", seed=7, ensemble=4)
        turned = nodes["VDDDecode"].execute(drawn, vae, frames, ensemble=4).result[0]
        result["turned"] = (turned - mean.result[0]).abs().max().item(), (turned - steps1).abs().max().item()
        called, unet = [], model.model.diffusion_model
        hook = unet.time_embed.register_forward_hook(lambda *_: called.append(1))
        for denoise, more in ((False, {}), (True, {}), (False, {"noise_mask": torch.ones(1, 40, 52)})):
            nodes["VDDSampler"].execute(model, positive, negative, {**latent, **more}, 7, 1, 1.0, 0.0, denoise_at_one_step=denoise)
            called.append(0)
        hook.remove()
        result["unet_calls_at_one_step"] = called
        other = nodes["VDDDecode"].execute(drawn, vae, frames, detail="sampled").result[0]
        result["the_other_branch"] = (steps1 - other).abs().max().item()
        comfy.cli_args.args.fp32_vae = False
        fast = nodes["VDDDeblurFrames"].execute(frames, choice, steps=2, guidance=1.0, fidelity=1.0, color="wavelet", seed=7,
                                                **windows).result[0]
        result["default_type"] = str(native.load(checkpoint)[2].dtype), str(native.default_dtype("cpu"))
        result["default_type_against_float32"] = (fast - one).abs().max().item()
        comfy.cli_args.args.fp32_vae = True
        result["shapes"] = [list(graph.shape), list(one.shape), list(vae.decode(reference).shape), list(vae.encode(frames[..., :3]).shape)]
        result["alpha_kept"] = bool(torch.equal(graph[..., 3], frames[..., 3]) and torch.equal(one[..., 3], frames[..., 3]))
        tiles = nodes["VDDDecode"].execute({**latent, "samples": reference}, vae, frames, tile=32, tile_overlap=16).result[0]
        result["tiles_shape"] = list(tiles.shape)
        single = nodes["VDDEncodeClip"].execute(frames[:1], encoders, vae).result[2]["samples"]
        result["one_frame"] = list(single.shape)

        # LoRA on a linear and on a 3-D convolution layer
        unet, lora = model.model.diffusion_model.state_dict(), {}
        keys = [k for k in unet if k.endswith(("attn1.to_q.weight", "temopral_conv.conv1.2.weight"))][:2]
        for key in keys:
            weight, base = unet[key], "diffusion_model." + key.removesuffix(".weight")
            lora[base + ".lora_up.weight"] = torch.randn(weight.shape[0], 2)
            lora[base + ".lora_down.weight"] = torch.randn(2, *weight.shape[1:])
        patched_model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        result["lora_keys"] = [len(keys), len(patched_model.patches)]
        changed = nodes["VDDSampler"].execute(patched_model, positive, negative, latent, 7, 2, 1.0, 0.0, window=0).result[0]["samples"]
        result["lora_changes"] = (changed - reference).abs().max().item()
        saved = os.path.join(os.path.dirname(checkpoint), "saved.safetensors")
        comfy.sd.save_checkpoint(saved, patched_model, metadata={"prompt": "{}"},                       # as Save Model calls it
                                 extra_keys={"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
        again = nodes["VDDLoadCheckpoint"].execute("saved.safetensors", "auto").result
        positive2, negative2, latent2 = nodes["VDDEncodeClip"].execute(frames, again[2], again[1]).result
        found = nodes["VDDSampler"].execute(again[0], positive2, negative2, latent2, 7, 2, 1.0, 0.0, window=0).result[0]["samples"]
        result["saved_model"] = (changed - found).abs().max().item(), (found - reference).abs().max().item()
        result["lora_undone"] = (ours(2, 1.0, window=0) - reference).abs().max().item()

        # what other nodes hang around the network and its guidance; the denoiser loaded again, as the host does for another GPU
        doubled, wrapped, calls = model.clone(), model.clone(), []
        doubled.set_model_sampler_post_cfg_function(lambda args: 2 * args["denoised"])
        wrapped.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test",
                                     lambda execute, *args, **kw: calls.append(1) or execute(*args, **kw))
        function, reload = model.cached_patcher_init
        guided = ours(1, 2.0, window=0)
        twice, same, again = (nodes["VDDSampler"].execute(m, positive, negative, latent, 7, 1, 2.0, 0.0, window=0).result[0]["samples"]
                              for m in (doubled, wrapped, function(*reload, disable_dynamic=True)))
        result["post_cfg"] = ((twice - 2 * guided).abs().max() / guided.std()).item()
        unguided, halved = (nodes["VDDSampler"].execute(m, positive, negative, latent, 7, 1, guidance, 0.0, window=0, guidance_to=0.9,
                                                        denoise_at_one_step=True).result[0]["samples"]
                            for m, guidance in ((model, 1.0), (doubled, 2.0)))
        whole = nodes["VDDSampler"].execute(model, positive, negative, latent, 7, 1, 2.0, 0.0, window=0, guidance_from=1.0,
                                            guidance_to=0.0).result[0]["samples"]                     # in either order
        result["interval"] = [((a - b).abs().max() / guided.std()).item() for a, b in ((halved, 2 * unguided), (whole, guided))]
        formula = model.clone()
        formula.set_model_sampler_cfg_function(lambda args: args["input"] - 7.0)
        seven = nodes["VDDSampler"].execute(formula, positive, negative, latent, 7, 1, 2.0, 0.0, window=0).result[0]["samples"]
        result["formula"] = (model.model.process_latent_in(seven) - 7.0).abs().max().item()
        result["wrapped"], result["wrapper_calls"] = (same - guided).abs().max().item(), len(calls)
        result["loaded_again"] = (again - guided).abs().max().item()

        result["patches"] = patches(model, lambda m, guidance=2.0: nodes["VDDSampler"].execute(
            m, positive, negative, latent, 7, 2, guidance, 0.0, window=0).result[0]["samples"])

        # a clip with as many frames as the text is wide, in the core's context windows
        width = encoders.null_text.shape[2]
        wide = nodes["VDDEncodeClip"].execute(frames[:1].expand(width, -1, -1, -1), encoders, vae).result
        in_windows = model.clone()
        in_windows.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
            comfy.context_windows.get_matching_context_schedule("standard_static"),
            comfy.context_windows.get_matching_fuse_method("pyramid"), width - 4, 2, dim=2)
        result["text_in_windows"] = message(comfy.sample.sample, in_windows, torch.randn(wide[2]["samples"].shape), 1, 1.0, "euler",
                                            "simple", *wide[:2], wide[2]["samples"], seed=7, disable_pbar=True)

        # a noise mask keeps what it covers
        mask = torch.zeros(1, 1, *samples.shape[-2:])
        kept = {"samples": torch.full_like(samples, 0.5), "noise_mask": mask}
        masked = nodes["VDDSampler"].execute(model, positive, negative, kept, 7, 2, 1.0, 0.0, window=0).result[0]["samples"]
        result["mask_error"] = (masked - 0.5).abs().max().item()

        # refusals
        layout = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
                  "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
        from comfy.ldm.models.autoencoder import AutoencoderKL
        plain = comfy.sd.VAE(sd=AutoencoderKL(ddconfig=dict(layout), embed_dim=4).state_dict(),
                             config={"params": {"ddconfig": dict(layout), "embed_dim": 4}})
        bad = os.path.join(os.path.dirname(checkpoint), "not-a-checkpoint.safetensors")
        with open(bad, "wb") as file:
            file.write(b"<html>not found</html>" * 40)
        result["refusals"] = {
            "image vae": message(nodes["VDDDecode"].execute, latent, plain),
            "missing checkpoint": message(folders.path_of, "nothing.safetensors"),
            "wrong checkpoint": message(nodes["VDDLoadCheckpoint"].execute, os.path.basename(bad), "auto"),
            "image latent": message(nodes["VDDSampler"].execute, model, positive, negative, {"samples": samples[:, :, 0]}, 7, 1, 1.0, 0.0),
            "two clips": message(nodes["VDDDecode"].execute, {"samples": samples.expand(2, -1, -1, -1, -1)}, vae),
            "other frames": message(nodes["VDDDecode"].execute, latent, vae, frames[:4]),
            "text conditioning": message(comfy.sample.sample, model, noise, 1, 1.0, "euler", "simple", [[encoders.null_text, {}]],
                                         [[encoders.null_text, {}]], samples, seed=7, disable_pbar=True),
        }
    result["core_nodes"] = len(host_nodes.NODE_CLASS_MAPPINGS)
    print("\n" + json.dumps(result))


if command == "models":
    models(*arguments)
else:
    checks(*arguments)
