"""What is called on diffusers' class and on ours with the same weights: a call a line, for `tests/test_every_call.py`.

In them `v` is a model, `cls` its class, `x` two images of 40 by 40 pixels, `z` two latents of 20 by 20, `float8` a
dtype; `p` is an empty folder, and `saved` one in which the model has been saved. Where several things are done in a
line, the last one counts.
"""

from __future__ import annotations

CALLS: dict[str, str] = {
    "Encode and decode": """
        v.encode(x)
        v.encode(x).latent_dist.mean
        v.encode(x, return_dict=False)
        v.encode(x, False)
        v.encode(x, True)[0].mode()
        v.encode(x).to_tuple()
        v.encode(x).keys()
        list(v.encode(x).values())
        v.encode(x)["latent_dist"].std
        v.encode(x).latent_dist.kl()
        v.encode(x).latent_dist.nll(z)
        v.encode(x).latent_dist.nll(z, dims=[1])
        v.encode(x).latent_dist.sample(torch.Generator().manual_seed(3))
        v.encode(x).latent_dist.kl(v.encode(x*.5).latent_dist)
        v.decode(z)
        v.decode(z, return_dict=False)
        v.decode(z, False)
        v.decode(z, True, None)
        v.decode(z).sample
        v.decode(z)[0]
        v.decode(z)[:1]
        v.decode(z, generator=torch.Generator())
        v.decode(z).commit_loss
        list(v.decode(z))
        dict(v.decode(z))
        v.decode(z).to_tuple()
        v.forward(x)
        v(x)
        v(x, True, True, torch.Generator().manual_seed(3))
        v(x, sample_posterior=True, generator=torch.Generator().manual_seed(3)).sample
        v(x, return_dict=False)
        v(sample=x)
        v.tiled_encode(x)
        v.tiled_decode(z)
        v.tiled_decode(z, return_dict=False)
        v.tiled_decode(z, False)
        v.blend_v(z.clone(), z.clone()*2, 4)
        v.blend_h(z.clone(), z.clone()*2, 4)
        v.blend_h(a=z.clone(), b=z.clone()*2, blend_extent=40)
        v.blend_v(z.clone(), z.clone()*2, 0)
    """,
    "Tiles and slices": """
        v.enable_tiling()
        v.enable_tiling(False)
        v.enable_tiling(use_tiling=True)
        v.disable_tiling()
        v.enable_slicing()
        v.disable_slicing()
        (v.enable_slicing(), v.decode(z).sample)[1]
        (v.enable_slicing(), v.encode(x).latent_dist.mean)[1]
        (v.enable_tiling(), v.use_tiling)[1]
        (v.disable_tiling(), v.use_tiling)[1]
        (v.enable_slicing(), v.use_slicing)[1]
        v.use_slicing
        v.use_tiling
        v.tile_sample_min_size
        v.tile_latent_min_size
        v.tile_overlap_factor
    """,
    "The config": """
        v.config
        dict(v.config)
        v.config.get("latent_channels")
        v.config["latent_channels"]
        v.config.block_out_channels
        list(v.config)
        v.config.keys()
        "scaling_factor" in v.config
        v.config.nothing
        v.config["nothing"]
        v.config_name
        v.has_compatibles
        v.ignore_for_config
    """,
    "What a model says of itself": """
        v.dtype
        v.device
        v.num_parameters()
        v.num_parameters(only_trainable=True)
        v.num_parameters(True, True)
        v.num_parameters(exclude_embeddings=True)
        v.get_memory_footprint()
        v.get_memory_footprint(return_buffers=False)
    """,
    "Gradient checkpointing": """
        v.is_gradient_checkpointing
        v.enable_gradient_checkpointing()
        v.disable_gradient_checkpointing()
        (v.enable_gradient_checkpointing(), v.is_gradient_checkpointing)[1]
        (v.enable_gradient_checkpointing(), v.disable_gradient_checkpointing(), v.is_gradient_checkpointing)[2]
        v.enable_gradient_checkpointing(None)
    """,
    "Attention": """
        v.attn_processors
        list(v.attn_processors)
        v.set_attn_processor(processors.AttnProcessor())
        (v.set_attn_processor(processors.AttnProcessor()), v.decode(z).sample)[1]
        (v.set_attn_processor({k: processors.AttnProcessor2_0() for k in v.attn_processors}), v.decode(z).sample)[1]
        v.set_attn_processor({})
        (v.set_default_attn_processor(), [type(p).__name__ for p in v.attn_processors.values()])[1]
        v.fuse_qkv_projections()
        (v.fuse_qkv_projections(), v.decode(z).sample)[1]
        (v.fuse_qkv_projections(), v.unfuse_qkv_projections(), v.decode(z).sample)[2]
        v.unfuse_qkv_projections()
        (v.fuse_qkv_projections(), sorted(v.state_dict()))[1]
        v.set_attention_backend("native")
        v.set_attention_backend("nonsense")
        v.reset_attention_backend()
        (v.set_attention_backend("native"), v.decode(z).sample)[1]
        v.enable_xformers_memory_efficient_attention()
        v.disable_xformers_memory_efficient_attention()
        v.set_use_memory_efficient_attention_xformers(False)
        v.set_use_memory_efficient_attention_xformers(True)
        v.enable_npu_flash_attention()
        v.disable_npu_flash_attention()
        v.set_use_npu_flash_attention(False)
        v.enable_xla_flash_attention()
        v.disable_xla_flash_attention()
        v.set_use_xla_flash_attention(False)
    """,
    "Casting, offloading, compiling": """
        v.enable_layerwise_casting()
        v.enable_layerwise_casting(storage_dtype=float8, compute_dtype=torch.float32)
        (v.enable_layerwise_casting(float8, torch.float32), v.decode(z).sample)[1]
        (v.enable_layerwise_casting(float8, torch.float32), {k: t.dtype for k, t in v.state_dict().items()})[1]
        v.enable_layerwise_casting(torch.bfloat16, torch.float32, ["norm"], [nn.Conv2d], True)
        v.enable_group_offload(torch.device("cpu"))
        (v.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level"), v.decode(z).sample)[1]
        (v.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1), v.decode(z).sample)[1]
        v.enable_group_offload(torch.device("cpu"), offload_type="block_level")
        v.enable_group_offload("cpu", offload_type="nonsense")
        v.compile_repeated_blocks()
        v.compile_repeated_blocks(fullgraph=True)
        v.dequantize()
        v.enable_parallelism(config=None)
    """,
    "Adapters": """
        v.active_adapters()
        v.add_adapter(1)
        v.set_adapter("a")
        v.set_adapters("a")
        v.set_adapters(["a"], [1.0])
        v.delete_adapters("a")
        v.enable_adapters()
        v.disable_adapters()
        v.enable_lora()
        v.disable_lora()
        v.fuse_lora()
        v.unfuse_lora()
        v.unload_lora()
        v.enable_lora_hotswap()
        v.load_lora_adapter({})
        v.save_lora_adapter(p, "a")
    """,
    "Files": """
        v.to_json_string()
        json.loads(v.to_json_string())
        v.to_json_file(p/"x.json")
        v.save_config(p)
        (v.save_config(p), json.loads((p/"config.json").read_text()))[1]
        (v.save_pretrained(p), files(p))[1]
        (v.save_pretrained(p, safe_serialization=False), files(p))[1]
        (v.save_pretrained(p, variant="fp16"), files(p))[1]
        (v.save_pretrained(p, max_shard_size="50KB"), files(p))[1]
        (v.save_pretrained(p, max_shard_size=50000), len(files(p)))[1]
        (v.save_pretrained(p, is_main_process=False), files(p))[1]
        (v.save_pretrained(p, save_function=torch.save), files(p))[1]
        cls.from_pretrained(saved).decode(z).sample
        cls.from_pretrained(saved, torch_dtype=torch.float16).dtype
        cls.from_pretrained(saved, output_loading_info=True)[1]
        cls.from_pretrained(saved).training
        cls.from_pretrained(saved).config
        cls.from_pretrained(saved, low_cpu_mem_usage=False).dtype
        cls.from_pretrained(saved, device_map="auto").dtype
        cls.from_pretrained(saved, device_map={"": "cpu"}).dtype
        cls.from_pretrained(saved, scaling_factor=0.5).config.scaling_factor
        cls.from_pretrained(saved, latent_channels=8)
        cls.from_pretrained(saved, use_safetensors=True).dtype
        cls.from_pretrained(saved, use_safetensors=False)
        cls.from_pretrained(saved, variant="fp16")
        cls.from_pretrained(saved, nonsense=3).config.get("nonsense")
        cls.from_pretrained(saved, torch_dtype="float16").dtype
        cls.from_pretrained(saved, torch_dtype="auto").dtype
        cls.from_pretrained(saved, dtype=torch.float16).dtype
        (v.save_pretrained(p/"vae"), cls.from_pretrained(p, subfolder="vae").dtype)[1]
        cls.load_config(saved)
        cls.load_config(saved, return_unused_kwargs=True, a=1)
        cls.load_config(saved, return_commit_hash=True)
        cls.get_config_dict(saved)
        cls._dict_from_json_file(p/"config.json")
    """,
    "Made from a config": """
        cls.from_config(dict(v.config)).config
        cls.from_config(v.config).config
        cls.from_config(v.config, return_unused_kwargs=True, extra=1)[1]
        cls.from_config(v.config, scaling_factor=2).config.scaling_factor
        cls.from_config({**v.config, "bogus": 1})
        cls.from_config()
        cls.from_config(None)
        cls.from_config(p)
        cls.extract_init_dict(dict(v.config))
        cls.extract_init_dict({"latent_channels": 4, "odd": 1})
        cls(**dict(v.config))
        cls(latent_channels=8).config.latent_channels
        cls()
        cls(3,3).config.in_channels
        cls(bogus=1)
        v.register_to_config(foo=3)
        (v.register_to_config(foo=3), v.config.foo)[1]
        (v.register_to_config(scaling_factor=3.), v.config.scaling_factor)[1]
        cls.register_for_auto_class()
        cls._auto_class
        cls._supports_gradient_checkpointing
        cls._no_split_modules
        cls._keep_in_fp32_modules
        cls._repeated_blocks
        cls._skip_layerwise_casting_patterns
        cls._automatically_saved_args
        v._hf_peft_config_loaded
        v._internal_dict
        v._set_gradient_checkpointing(True)
        v._set_gradient_checkpointing(enable=False)
        v._get_init_keys(cls)
    """,
    "Devices and precisions, odd inputs": """
        v.half().dtype
        v.to(torch.bfloat16).dtype
        v.to("cpu").device
        v.to("meta").device
        v.bfloat16().decode(z.bfloat16()).sample.dtype
        v.half().decode(z)
        v.decode(z.half())
        v.encode(x[0])
        v.decode(z[0])
        v.decode(z[:, :3])
        v.encode(x[:, :1])
        v.encode(None)
        v.decode(None)
        v.encode(x.numpy())
        v.encode(x.to(torch.uint8))
        v.encode(x[..., :39])
        v.encode(x[..., :1, :1])
        v.decode(z[..., :1, :1])
        v.decode(z[:0])
        v.encode(x[:0])
        v.train().training
        v.train().encode(x).latent_dist.mean
        v.eval().training
        v.requires_grad_(False).encoder.conv_in.weight.requires_grad
    """,
    "Its parts": """
        sorted(n for n, _ in v.named_modules())
        sorted(n for n, _ in v.named_parameters())
        [n for n, _ in v.named_children()]
        v.encoder(x)
        v.decoder(z)
        v.decoder(z, None)
        v.decoder(sample=z, latent_embeds=None)
        v.encoder(sample=x)
        v.quant_conv(torch.cat([z,z],1))
        v.post_quant_conv(z)
        v.encoder.down_blocks[0](torch.ones(1,16,8,8))
        v.decoder.up_blocks[0](torch.ones(1,32,8,8), None)
        v.decoder.up_blocks[0](torch.ones(1,32,8,8), temb=None)
        v.decoder.mid_block(torch.ones(1,32,8,8))
        v.decoder.mid_block(torch.ones(1,32,8,8), None)
        v.decoder.mid_block.attentions[0](torch.ones(1,32,8,8))
        v.decoder.mid_block.attentions[0](torch.ones(1,32,8,8), None)
        v.decoder.mid_block.attentions[0].to_q
        v.decoder.mid_block.attentions[0].heads
        v.decoder.mid_block.attentions[0].residual_connection
        v.decoder.mid_block.attentions[0].rescale_output_factor
        v.decoder.mid_block.attentions[0].scale
        v.decoder.mid_block.attentions[0].get_processor()
        v.decoder.mid_block.resnets[0](torch.ones(1,32,8,8), None)
        v.decoder.mid_block.resnets[0](input_tensor=torch.ones(1,32,8,8), temb=None)
        v.decoder.up_blocks[0].upsamplers[0](torch.ones(1,32,8,8))
        v.decoder.up_blocks[0].upsamplers[0](torch.ones(1,32,8,8), output_size=(16,16))
        v.decoder.up_blocks[0].upsamplers[0](torch.ones(1,32,8,8), (15,15))
        v.encoder.down_blocks[0].downsamplers[0](torch.ones(1,16,8,8))
        v.encoder.layers_per_block
        v.decoder.layers_per_block
        v.encoder.gradient_checkpointing
        v.decoder.conv_norm_out.num_groups
        v.encoder.double_z if hasattr(v.encoder,"double_z") else None
    """,
    "Copies, transformations, tracers, compilers": """
        copy.deepcopy(v).decode(z).sample
        copy.copy(v).decode(z).sample
        pickle.loads(pickle.dumps(v)).decode(z).sample
        torch.func.functional_call(v, dict(v.named_parameters()), (x,)).sample
        torch.func.vmap(lambda a: v.encode(a[None]).latent_dist.mean[0])(x)
        torch.func.vmap(lambda a: v.decode(a[None]).sample[0])(z)
        torch.func.jvp(lambda a: v.decode(a).sample, (z,), (z,))
        torch.func.vjp(lambda a: v.decode(a).sample, z)[0]
        torch.func.grad(lambda a: v.decode(a).sample.sum())(z)
        torch.func.vmap(torch.func.grad(lambda a: v.decode(a[None]).sample.sum()))(z)
        torch.func.jacrev(lambda a: v.decode(a).sample.mean((1,2,3)))(z)
        torch.func.jacfwd(lambda a: v.decode(a*z).sample.mean((1,2,3)))(torch.ones(()))
        torch.autograd.functional.hvp(lambda a: v.decode(a).sample.square().mean(), z, z)[0]
        make_fx(lambda a: v.decode(a).sample)(z)(z)
        make_fx(lambda a: v.encode(a).latent_dist.mean)(x)(x)
        torch.jit.trace(lambda a: v.decode(a).sample, z, check_trace=False)(z)
        torch.jit.trace(v, x, strict=False, check_trace=False)
        torch.export.export(v, (x,), strict=False).module()(x).sample
        torch.export.export(v.decoder, (z,), strict=True).module()(z)
        torch.compile(v.decode, backend="eager")(z).sample
        torch.compile(v.decode, backend="aot_eager")(z).sample
        torch.compile(v.decode, backend="eager", fullgraph=True)(z).sample
        torch.compile(v, backend="eager")(x).sample
        (v.compile(backend="eager"), v(x).sample)[1]
    """,
    "As any module": """
        torch.nn.utils.parameters_to_vector(v.parameters())
        torch.fx.symbolic_trace(v.decoder)(z)
        v.state_dict()
        v.load_state_dict(v.state_dict())
        v.load_state_dict({}, strict=False)
        v.load_state_dict({})
        v.float() is v
        v.cpu() is v
        str(v)
        v.apply(lambda m: None) is v
        v.zero_grad()
        isinstance(v, nn.Module)
        isinstance(v.config, dict)
        type(v.config).__name__
    """,
    "Modes, wrappers and changes": """
        torch.inference_mode()(lambda: v.decode(z).sample)()
        torch.autocast("cpu", torch.bfloat16)(lambda: v.decode(z).sample)()
        torch.nn.DataParallel(v)(x).sample
        torch.ao.quantization.quantize_dynamic(v, {nn.Linear}, torch.qint8).decode(z).sample
        torch.nn.utils.parametrizations.weight_norm(v.decoder.conv_in) and v.decode(z).sample
        torch.nn.utils.prune.l1_unstructured(v.decoder.conv_in, "weight", .5) and v.decode(z).sample
        setattr(v.decoder, "conv_in", nn.Conv2d(4,32,3,padding=1))
        (setattr(v, "post_quant_conv", None), v.decode(z))[1]
        (setattr(v, "quant_conv", nn.Identity()), v.encode(x).latent_dist.mean)[1]
        (v.decoder.conv_in.register_forward_hook(lambda m,i,o: o*2), v.decode(z).sample)[1]
        (v.register_forward_pre_hook(lambda m,i: None), v(x).sample)[1]
        (v.decoder.conv_out.register_forward_hook(lambda m,i,o: o.clamp(-1,1)), v.decode(z).sample)[1]
    """,
}
# Where ours answers otherwise, and why.
OTHERWISE = {
    'cls.from_config({**v.config, "bogus": 1})': "what is not a field is an error, unless it was saved",
    "cls.extract_init_dict(dict(v.config))": "theirs leaves out what it notes as defaults",
    "v.enable_tiling(False)": "their older versions take it",
    "v.enable_tiling(use_tiling=True)": "their older versions take it",
    "v.unfuse_qkv_projections()": "what was never fused needs no undoing",
    "v.compile_repeated_blocks()": "our blocks have one class, so they can be compiled each by itself",
    "v.compile_repeated_blocks(fullgraph=True)": "our blocks have one class, so they can be compiled each by itself",
    "cls._repeated_blocks": "our blocks have one class, so they can be compiled each by itself",
    "cls._no_split_modules": "the names of our classes",
    "str(v)": "the names of our classes",
    "type(v.config).__name__": "ours is checked",
    "v._get_init_keys(cls)": "ours has FLUX.2's fields as well",
    "v.to_json_string()": "their version is not ours",
    "(v.save_pretrained(p, is_main_process=False), files(p))[1]": "the main process alone writes",
    'cls.from_pretrained(saved, nonsense=3).config.get("nonsense")': "an argument that is none is an error",
    'cls.from_pretrained(saved, torch_dtype="float16").dtype': "theirs warns and takes float32",
    "sorted(n for n, _ in v.named_modules())": "ours has no dropout of nothing",
    "v.decoder.mid_block.attentions[0].rescale_output_factor": "1.0 is 1",
}
