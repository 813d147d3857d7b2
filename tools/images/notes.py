"""The notes of the example workflows: name -> what they say in English and in Chinese."""

# ruff: noqa: E501, RUF001 - prose, in Chinese too

from __future__ import annotations

IMAGE = {
    "en": "`example.png` comes with every ComfyUI; any image of yours will do.",
    "zh": "`example.png` 是 ComfyUI 自带的图像，也可换成您自己的任何图像。",
}
DEMO = {
    "en": "`demo` is a small VAE that comes with the pack, so that this runs without a download.",
    "zh": "`demo` 是本节点包自带的小型 VAE，因此无需下载即可运行。",
}

NOTES: dict[str, dict[str, str]] = {
    "encode_and_decode": {
        "en": """## Encode and decode

An image is encoded to a latent and decoded again, and **Round Trip** shows what the VAE preserves: drag the slider, switch to the error.

- {DEMO}
- {IMAGE}
- The VAE also works in the core nodes, as *VAE Decode of the core* shows, and a VAE from *Load VAE* or *Load Checkpoint* works in the nodes here.""",
        "zh": """## 编码与解码

图像先编码为 Latent，再解码回来。**往返对比**显示 VAE 保留了什么：拖动滑块，或切换到误差图。

- {DEMO}
- {IMAGE}
- 这里的 VAE 也可接入核心节点（见“VAE Decode of the core”）；“加载VAE”或检查点加载器给出的 VAE 也可接入这里的节点。""",
    },
    "tiled_upscale": {
        "en": """## A large image in little memory

The image is enlarged to 2048x2048, encoded and decoded with a `memory_budget` of 0.5 GiB. In the mode *exact* the result is the same as from the untiled nodes: no seams, no colour shift, with any tile size.

The panels in the tiled nodes show the plan: memory, disk and time.

- It takes a few minutes on a CPU.
- {DEMO} Replace it with your own.
- {IMAGE}
- Replace *Upscale Image* with an upscale model to add detail.""",
        "zh": """## 用很少的内存处理大图

图像放大到 2048x2048，以 0.5 GiB 的“内存预算”编码和解码。exact 模式的结果与不分块的节点相同：没有接缝，没有偏色，分块尺寸任意。

分块节点中的面板显示计划：内存、磁盘和时间。

- 在 CPU 上需要几分钟。
- {DEMO}可换成您自己的 VAE。
- {IMAGE}
- 若要增加细节，可将放大图像的节点换成放大模型。""",
    },
    "tiled_upscale_with_sampler": {
        "en": """## Upscale with a sampler in between

Enlarge an image, encode it, let the sampler add detail, and decode it. Both VAE nodes use the checkpoint's own VAE, without a copy of its weights, within a memory budget of 1 GiB.

- It needs a checkpoint: choose yours in *Load Checkpoint*. This is set up for Stable Diffusion 1.5.
- `denoise` 0.35 keeps the image; higher values change more.
- {IMAGE}""",
        "zh": """## 带采样器的放大

放大图像，编码，由采样器增加细节，再解码。两个 VAE 节点都使用检查点自带的 VAE，不复制权重，内存预算为 1 GiB。

- 需要一个检查点：请在检查点加载器中选择。这里按 Stable Diffusion 1.5 设置。
- `denoise` 为 0.35 时保留原图，数值越大变化越多。
- {IMAGE}""",
    },
    "swap_vae": {
        "en": """## Another VAE in the middle of a workflow

One model cannot read the latents of another. **Swap** decodes a latent with its own VAE and encodes the image for the second model: SDXL for the composition, FLUX.1 for the finish.

- Both loaders are set to `demo`, so that this runs without a download. Choose the VAEs of your models.
- Put your samplers before and after *Swap*.
- {IMAGE}""",
        "zh": """## 在工作流中途换 VAE

一个模型读不懂另一个模型的 Latent。**转换**先用 Latent 自己的 VAE 解码，再为第二个模型编码：例如用 SDXL 构图，用 FLUX.1 完成细节。

- 两个加载节点都设为 `demo`，因此无需下载即可运行。请换成您的模型的 VAE。
- 将采样器放在“转换”的前后。
- {IMAGE}""",
    },
    "posterior_grid": {
        "en": """## Where the encoder is certain

An encoder gives a distribution, not one latent. **Posterior Preview** shows its mean and its standard deviation; **Sample Posterior** takes nine samples from it, which are decoded to nine images.

- `temperature` multiplies the standard deviation. The VAEs of diffusion models have very small variances, so 1 shows nothing; at 100 you see which details the latent leaves undetermined.
- {DEMO}
- {IMAGE}""",
        "zh": """## 编码器在哪里是确定的

编码器给出的是一个分布，而不是一个 Latent。**后验预览**显示其均值与标准差；**后验采样**从中取九个样本，解码为九张图像。

- “温度”是标准差的倍数。扩散模型的 VAE 方差很小，取 1 时看不出差别；取 100 时可以看到 Latent 没有确定的细节。
- {DEMO}
- {IMAGE}""",
    },
    "inpaint_with_composite": {
        "en": """## Inpaint, and keep the rest unchanged

A VAE changes every pixel a little, even where nothing was inpainted. **Inpaint Composite** decodes the latent and pastes it into the original with the mask: where the mask is 0, the image is unchanged, bit for bit.

- *Your KSampler goes here* only flips the latent, so that this runs without a model. Replace it, and use the VAE of your checkpoint.
- The mask is made of two rectangles here. Paint your own: right-click on *Load Image*, *Open in MaskEditor*, and connect its MASK.
- {IMAGE}""",
        "zh": """## 局部重绘，其余部分不变

VAE 会使每个像素略有变化，没有重绘的地方也不例外。**局部重绘合成**解码 Latent，并按遮罩贴回原图：遮罩为 0 的地方，图像逐位不变。

- 名为“Your KSampler goes here”的节点只翻转 Latent，因此无需模型即可运行。请将它换成K采样器，并使用检查点的 VAE。
- 这里的遮罩由两个矩形组成。若要自己绘制：右键点击“加载图像”，在遮罩编辑器中打开，再连接其遮罩输出。
- {IMAGE}""",
    },
    "seamless_texture": {
        "en": """## A texture that repeats

A VAE pads the edges of an image with zeros, so a seamless texture shows a line there. With `circular` it sees the opposite edge instead. The image is mirrored here, so that it repeats downwards, is encoded and decoded with `circular` *y*, and put below itself to show the joint.

- With the VAE of your model, choose *both* for textures that repeat in both directions. The demo VAE supports *y* only, because its encoder finds the level of the colours at the right edge of an image.
- A sampler goes between the two tiled nodes; its model must use circular padding too.
- {IMAGE}""",
        "zh": """## 可重复平铺的纹理

VAE 用零填充图像边缘，因此无缝纹理会在那里出现一条线。使用“循环填充”时，它看到的是对边。这里将图像镜像，使其可向下重复，以“循环填充” y 编码和解码，再上下相接以显示接合处。

- 使用您的模型的 VAE 时，若纹理在两个方向重复，请选择 both。演示 VAE 只支持 y，因为它的编码器依靠图像的右边缘来确定颜色的基准。
- 采样器放在两个分块节点之间，其模型也须使用循环填充。
- {IMAGE}""",
    },
    "compare_vaes": {
        "en": """## Several VAEs on one image

Each **Round Trip** encodes and decodes the same image with the VAE above it, and shows PSNR and SSIM below: higher is better. Drag the slider over a detail, or switch to the error.

- All loaders are set to `demo` in three precisions, so that this runs without a download. Choose your VAEs, and copy a column for one more.
- At the right the results are side by side, the original first. The image is made smaller only to be quick.
- {IMAGE}""",
        "zh": """## 用一张图像比较多个 VAE

每个**往返对比**用其上方的 VAE 编码和解码同一张图像，并在下方显示 PSNR 和 SSIM：越高越好。可将滑块拖到细节上，或切换到误差图。

- 所有加载节点都设为 `demo`，精度各不相同，因此无需下载即可运行。请换成您的 VAE；复制一列即可再加一个。
- 右侧将结果并排显示，最左是原图。图像缩小只是为了更快。
- {IMAGE}""",
    },
    "extract_vae": {
        "en": """## The VAE inside a checkpoint

A checkpoint has a VAE baked in. **Load** reads it alone, without the rest of the file; **Inspect** says what it is, and **Save** writes it to `output/vae` as one file that ComfyUI, A1111 and diffusers read.

- Choose your checkpoint in *Load*: entries that end in `[checkpoint]`. It is set to `demo`, so that this runs without a download.
- *Round Trip* shows what the VAE preserves of an image.
- Set `format` to *diffusers* for a folder, and `dtype` to halve the file.
- {IMAGE}""",
        "zh": """## 检查点中的 VAE

检查点中带有 VAE。**加载**只读取 VAE，不读文件的其余部分；**信息**说明它是什么；**保存**将它写入 `output/vae`，成为 ComfyUI、A1111 和 diffusers 都能读取的一个文件。

- 请在“加载”中选择您的检查点，即以 `[checkpoint]` 结尾的条目。这里设为 `demo`，因此无需下载即可运行。
- **往返对比**显示 VAE 对一张图像保留了什么。
- “格式”设为 diffusers 可得到文件夹；更改“数据类型”可使文件减半。
- {IMAGE}""",
    },
    "dataset_latents": {
        "en": """## Latents of a dataset

**Latent Load** reads latents that `seamless-vae encode-dataset`, *Latent Save* or kohya's trainers wrote, as raw latents like all others here, and says how their scale was converted. Below, an image is encoded and its posterior saved as a collection of one, in `output/latents`.

- `demo` is a collection of six photographs that comes with the pack. Yours appear in the list once they are in ComfyUI's `input` or `output` folder; press *R*.
- To go through a collection, set `count` to 1 and connect an *Int* node, set to increment, to `start`.
- Decode with the VAE that the latents were encoded with.
- {IMAGE}""",
        "zh": """## 数据集的 Latent

**Latent 加载**读取 `seamless-vae encode-dataset`、“Latent 保存”或 kohya 训练脚本写出的 Latent，像这里的其他 Latent 一样不经缩放，并说明缩放是如何换算的。下方将一张图像编码，并把其后验分布存为只有一项的数据集，位于 `output/latents`。

- `demo` 是本节点包自带的六张照片。您的数据集放入 ComfyUI 的 `input` 或 `output` 文件夹后即出现在列表中；请按 R 键刷新。
- 若要逐项浏览，请将“数量”设为 1，并将设为递增的整数节点连接到“起始”。
- 请用编码这些 Latent 的 VAE 解码。
- {IMAGE}""",
    },
    "float_exr": {
        "en": """## Beyond black and white, in a float file

A decoder also gives values below 0 and above 1, which most nodes cut off. With `clamp` off, **Decode** keeps them, and the core's *Save Image (Advanced)* writes them to a 32-bit EXR in `output`, as linear light for compositing and grading.

- **It needs a ComfyUI whose core has *Save Image (Advanced)*: from May 2026 on.** In an older one that node is missing: connect another pack's EXR node in its place.
- The file keeps the VAE's full precision; a PNG of 8 bits rounds to 256 levels.
- {DEMO}
- {IMAGE}""",
        "zh": """## 超出黑与白的浮点文件

解码器也会给出小于 0 和大于 1 的数值，多数节点会将其截断。关闭“限制范围”后，**解码**会保留它们，由核心节点“Save Image (Advanced)”以线性光写入 `output` 中的 32 位 EXR，用于合成与调色。

- **需要核心带有“Save Image (Advanced)”的 ComfyUI：2026 年 5 月及以后的版本。** 较旧的版本缺少该节点，请接入其他节点包的 EXR 节点。
- 文件保留 VAE 的全部精度；8 位 PNG 只有 256 级。
- {DEMO}
- {IMAGE}""",
    },
}


def texts(name: str) -> tuple[str, str]:
    """The notes of a workflow, in English and in Chinese."""
    english, chinese = (
        NOTES[name][language].replace("{DEMO}", DEMO[language]).replace("{IMAGE}", IMAGE[language])
        for language in ("en", "zh")
    )
    return english, chinese
