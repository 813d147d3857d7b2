"""Images of every kind to the model's range and back."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vae_core import ImageError
from vae_core.image import (
    Fit,
    from_image,
    from_numpy,
    from_pil,
    open_image,
    reflect_to,
    to_image,
    to_numpy,
    to_pil,
    write_image,
)

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
GREYS = RNG.integers(0, 256, (16, 24), dtype=np.uint8)
OPACITY = RNG.integers(0, 256, (16, 24), dtype=np.uint8)


def as_bytes(pixels: torch.Tensor) -> np.ndarray:
    """[C, H, W] bytes of an image's pixels."""
    return ((pixels[0] + 1) * 127.5).round().to(torch.uint8).numpy()


class TestModes:
    def colour(self, mode: str) -> np.ndarray:
        """What PIL itself makes of COLOURS taken through a mode."""
        return np.asarray(Image.fromarray(COLOURS).convert(mode).convert("RGB")).transpose(2, 0, 1)

    @pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "HSV", "P", "RGBX"])
    def test_colours(self, mode: str) -> None:
        fitted = from_pil(Image.fromarray(COLOURS).convert(mode))
        assert np.array_equal(as_bytes(fitted.pixels), self.colour(mode))
        assert fitted.alpha is None and fitted.size == (16, 24)
        assert fitted.pixels.dtype == torch.float32 and fitted.pixels.shape == (1, 3, 16, 24)

    def test_grey_and_bits(self) -> None:
        assert np.array_equal(as_bytes(from_pil(Image.fromarray(GREYS)).pixels), np.stack([GREYS] * 3))
        bits = Image.fromarray(GREYS > 100)
        assert bits.mode == "1"
        assert np.array_equal(as_bytes(from_pil(bits, channels=1).pixels)[0], (GREYS > 100) * 255)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
    def test_alpha_comes_apart(self, mode: str) -> None:
        image = Image.merge("RGBA", [*Image.fromarray(COLOURS).split(), Image.fromarray(OPACITY)])
        straight = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode))
        image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode) if mode != "PA" else straight
        if mode == "PA":
            image = image.convert("PA")
        fitted = from_pil(image)
        expected = np.asarray(image.convert("RGBA" if mode != "La" else "LA").convert("RGBA"))
        assert np.array_equal(as_bytes(fitted.pixels), expected[..., :3].transpose(2, 0, 1))
        assert fitted.alpha is not None and fitted.alpha.shape == (1, 16, 24)
        assert np.array_equal((fitted.alpha[0] * 255).round().numpy(), expected[..., 3])

    def test_transparent_palette_entry(self) -> None:
        image = Image.new("P", (8, 8), 1)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((3, 2), 0)
        image.info["transparency"] = 0
        fitted = from_pil(image)
        assert fitted.alpha is not None
        assert fitted.alpha[0, 2, 3] == 0 and fitted.alpha.sum() == 63
        assert as_bytes(fitted.pixels)[:, 0, 0].tolist() == [40, 50, 60]

    def test_transparent_grey_and_colour(self) -> None:
        grey = Image.new("L", (8, 8), 7)
        grey.putpixel((0, 0), 9)
        grey.info["transparency"] = 9
        fitted = from_pil(grey, channels=1)
        assert fitted.alpha is not None and fitted.alpha[0, 0, 0] == 0 and fitted.alpha.sum() == 63
        colour = Image.new("RGB", (8, 8), (1, 2, 3))
        colour.info["transparency"] = (1, 2, 3)
        alpha = from_pil(colour).alpha
        assert alpha is not None and alpha.sum() == 0

    def test_sixteen_bits_keep_their_precision(self, tmp_path: Path) -> None:
        words = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
        Image.fromarray(words).save(tmp_path / "words.png")
        for image in (
            Image.fromarray(words),
            open_image(tmp_path / "words.png"),
            Image.fromarray(words.astype("i4")),
        ):
            fitted = from_pil(image, channels=1)
            assert np.array_equal(((fitted.pixels[0, 0].double() + 1) / 2 * 65535).round().numpy(), words), image.mode
        big_endian = Image.frombytes("I;16B", (8, 8), words.astype(">u2").tobytes())
        assert torch.equal(from_pil(big_endian, channels=1).pixels, from_pil(Image.fromarray(words), channels=1).pixels)

    def test_floats(self) -> None:
        values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
        fitted = from_pil(Image.fromarray(values), channels=1)
        assert np.array_equal(fitted.pixels[0, 0].numpy(), values * 2 - 1)
        for bad in (values * 255, values - 0.5, values * np.nan):
            with pytest.raises(ImageError, match=r"mode F has values from .* to .*; 0 to 1"):
                from_pil(Image.fromarray(bad.astype(np.float32)))
        with pytest.raises(ImageError, match="mode I has values from 0 to 70000"):
            from_pil(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))

    def test_lab(self) -> None:
        lab = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (136, 208, 195)])  # sRGB red
        red = as_bytes(from_pil(lab).pixels)[:, 0, 0].astype(int)
        assert abs(red - [255, 0, 0]).max() < 12
        white = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (255, 128, 128)])
        assert as_bytes(from_pil(white).pixels).min() >= 253

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation: int, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(COLOURS).save(tmp_path / "turned.png", exif=exif)
        expected = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1),
            7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a, 1),
        }[orientation](COLOURS)
        for fitted in (from_pil(open_image(tmp_path / "turned.png")), from_pil(Image.open(tmp_path / "turned.png"))):
            assert np.array_equal(as_bytes(fitted.pixels), expected.transpose(2, 0, 1))


class TestChannels:
    def test_grey_model(self) -> None:
        fitted = from_pil(Image.fromarray(COLOURS), channels=1)
        expected = COLOURS.astype(np.float64) @ [0.299, 0.587, 0.114] / 127.5 - 1
        np.testing.assert_allclose(fitted.pixels[0, 0].numpy(), expected, atol=1e-6)

    def test_rgba_model(self) -> None:
        opaque = from_pil(Image.fromarray(COLOURS), channels=4)
        assert opaque.pixels.shape[1] == 4 and (opaque.pixels[:, 3] == 1).all() and opaque.alpha is None
        grey_alpha = Image.merge("LA", [Image.fromarray(GREYS), Image.fromarray(OPACITY)])
        both = as_bytes(from_pil(grey_alpha, channels=4).pixels)
        assert np.array_equal(both, np.stack([GREYS, GREYS, GREYS, OPACITY]))

    def test_what_cannot_be_adapted(self) -> None:
        with pytest.raises(ImageError, match="to 7 channels"):
            from_pil(Image.fromarray(COLOURS), channels=7)
        with pytest.raises(ImageError, match="5 channels has no known colours"):
            from_image(torch.zeros(1, 8, 8, 5))
        with pytest.raises(ImageError, match=r"\(8, 8, 3\) is not a batch"):
            from_image(torch.zeros(8, 8, 3))


class TestNumpy:
    @pytest.mark.parametrize(
        "array", [COLOURS, COLOURS[None], GREYS, GREYS[..., None], GREYS > 7, COLOURS / 255.0, COLOURS * np.uint16(257)]
    )
    def test_types_and_shapes(self, array: np.ndarray) -> None:
        fitted = from_numpy(array)
        assert fitted.pixels.shape == (1, 3, 16, 24)
        unit = array / {np.dtype("u1"): 255, np.dtype("u2"): 65535}.get(array.dtype, 1)
        expected = np.broadcast_to(unit.reshape(16, 24, -1), (16, 24, 3)) * 2 - 1
        np.testing.assert_allclose(fitted.pixels[0].numpy(), expected.transpose(2, 0, 1), atol=1e-6)

    def test_errors(self) -> None:
        with pytest.raises(ImageError, match=r"floats has values from 0 to 255.*Divide"):
            from_numpy(np.array([[0.0, 255.0]]))
        with pytest.raises(ImageError, match="int64 has no known range"):
            from_numpy(np.zeros((8, 8), dtype=np.int64))
        with pytest.raises(ImageError, match="Tensor; give a numpy array, or use from_image"):
            from_numpy(torch.zeros(8, 8, 3))  # type: ignore[arg-type]
        with pytest.raises(ImageError, match=r"\(8,\) is not an image"):
            from_numpy(np.zeros(8))
        with pytest.raises(ImageError, match="is not a batch"):
            from_numpy(np.zeros((0, 8, 3), dtype=np.uint8))

    def test_back(self) -> None:
        pixels = from_numpy(COLOURS).pixels
        assert np.array_equal(to_numpy(pixels)[0], COLOURS)
        assert np.array_equal(to_numpy(pixels, np.uint16)[0], COLOURS * np.uint16(257))
        np.testing.assert_allclose(to_numpy(pixels, np.float32)[0], COLOURS / 255, atol=1e-6)
        for kind in ("uint8", ">u2", "<u2", np.dtype("uint16"), "f2", ">f4", float):
            given = to_numpy(pixels, kind)
            assert given.dtype == np.dtype(kind)
            assert torch.allclose(from_numpy(given).pixels, pixels, atol=2e-3)
        assert to_numpy(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)).ravel().tolist() == [0, 255]
        with pytest.raises(ImageError, match="not finite.*float32"):
            to_numpy(pixels * torch.nan)
        with pytest.raises(ImageError, match="int32"):
            to_numpy(pixels, np.int32)


class TestImageTensor:
    def test_there_and_back(self) -> None:
        image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0))
        fitted = from_image(image)
        assert fitted.pixels.shape == (2, 3, 16, 24) and fitted.pixels.is_contiguous()
        torch.testing.assert_close(to_image(fitted.pixels), image, rtol=0, atol=1e-6)
        assert torch.equal(fitted.pixels[1], (image[1] * 2 - 1).permute(2, 0, 1))

    def test_half_precision_and_alpha(self) -> None:
        image = torch.rand(1, 8, 8, 4).half()
        fitted = from_image(image)
        assert fitted.pixels.dtype == torch.float32 and fitted.alpha is not None
        assert torch.equal(fitted.alpha, image[..., 3].float())


class TestFit:
    @settings(max_examples=60, deadline=None)
    @given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.sampled_from([4, 8, 16]))
    def test_pad_gives_back_what_came_in(self, height: int, width: int, multiple: int) -> None:
        array = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        fitted = from_numpy(array, multiple=multiple, fit="pad")
        padded_height, padded_width = fitted.pixels.shape[2:]
        assert 0 <= padded_height - height < multiple and padded_height % multiple == 0
        assert 0 <= padded_width - width < multiple and padded_width % multiple == 0
        assert np.array_equal(to_numpy(fitted.restore(fitted.pixels))[0], array)
        if height > 1 and width > 1:  # numpy reflects as often as needed, too
            pads = ((0, padded_height - height), (0, padded_width - width), (0, 0))
            assert np.array_equal(to_numpy(fitted.pixels)[0], np.pad(array, pads, mode="reflect"))

    def test_pad_literal(self) -> None:
        row = torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3)
        assert reflect_to(row, 1, 8).flatten().tolist() == [1, 2, 3, 2, 1, 2, 3, 2]
        assert reflect_to(row[..., :1], 2, 3).flatten().tolist() == [1.0] * 6
        assert reflect_to(row, 1, 3) is row

    @pytest.mark.parametrize(
        ("size", "top", "left"), [((17, 30), 0, 3), ((23, 24), 3, 0), ((8, 15), 0, 3), ((16, 9), 0, 0)]
    )
    def test_crop_keeps_the_centre(self, size: tuple[int, int], top: int, left: int) -> None:
        array = RNG.integers(0, 256, (*size, 4), dtype=np.uint8)
        fitted = from_numpy(array, fit="crop")
        height, width = size[0] // 8 * 8, size[1] // 8 * 8
        expected = array[top : top + height, left : left + width]
        assert fitted.size == (height, width) and fitted.alpha is not None
        assert np.array_equal(to_numpy(fitted.pixels)[0], expected[..., :3])
        assert np.array_equal((fitted.alpha[0] * 255).round().numpy(), expected[..., 3])
        assert fitted.restore(fitted.pixels).shape == fitted.pixels.shape

    def test_too_small_to_crop(self) -> None:
        with pytest.raises(ImageError, match="24x7.*less than 8x8.*pad"):
            from_numpy(COLOURS[:7], fit="crop")

    def test_error_names_the_nearest_sizes(self) -> None:
        with pytest.raises(ImageError, match="23x15 is not a multiple of 8.*16x8 or 24x16"):
            from_numpy(COLOURS[:15, :23], fit="error")
        with pytest.raises(ImageError, match="24x7 is not a multiple of 8.*24x8 or 24x8"):
            from_numpy(COLOURS[:7], fit="error")
        assert from_numpy(COLOURS, fit="error").size == (16, 24)

    def test_alpha_is_of_the_size_that_comes_back(self) -> None:
        array = np.dstack([COLOURS, OPACITY])[:13, :21]
        fitted = from_numpy(array)
        assert fitted.alpha is not None and fitted.alpha.shape[1:] == fitted.size == (13, 21)
        [image] = to_pil(fitted.restore(fitted.pixels), fitted.alpha)
        assert image.mode == "RGBA" and np.array_equal(np.asarray(image), array)

    def test_unknown_rule_and_wrong_latent(self) -> None:
        unknown: Fit = "stretch"  # type: ignore[assignment]
        with pytest.raises(ImageError, match="'stretch'.*crop, pad, error"):
            from_numpy(COLOURS, fit=unknown)
        with pytest.raises(ImageError, match="decoded image is 8x16, but 24x16 was encoded"):
            from_numpy(COLOURS).restore(torch.zeros(1, 3, 16, 8))


class TestValues:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_rounding_beyond_black_and_white_is_cut_off(self, dtype: type) -> None:
        high, low = np.nextafter(dtype(1), dtype(2)), np.nextafter(dtype(0), dtype(-1))
        array = np.full((16, 16, 3), high)
        array[0] = low
        pixels = from_numpy(array).pixels
        assert pixels.max() == 1 and pixels.min() == -1
        for wrong in (1.01, -0.01, 255.0, np.nan, np.inf):
            with pytest.raises(ImageError, match="0 to 1 are taken"):
                from_numpy(np.full((16, 16, 3), wrong, dtype))

    def test_a_resize_of_white_is_white(self) -> None:
        white = torch.ones(1, 3, 37, 41)
        resized = torch.nn.functional.interpolate(white, (64, 96), mode="bicubic")[0].permute(1, 2, 0).numpy()
        assert from_numpy(resized).pixels.max() == 1
        image = Image.fromarray(np.full((16, 16), np.nextafter(np.float32(1), np.float32(2))))
        assert image.mode == "F" and from_pil(image).pixels.max() == 1

    def test_tensors_of_every_type(self) -> None:
        image = torch.tensor(COLOURS)[None, :16, :16]
        assert torch.equal(from_image(image).pixels, from_numpy(COLOURS[:16, :16]).pixels)
        assert from_image(image > 127).pixels.unique().tolist() == [-1, 1]
        for wrong, says in (
            (image.int(), "int32 has no known range"),
            (image.to(torch.complex64), "complex64"),
            (image.float().to_sparse(), "sparse"),
            (COLOURS, "Use from_numpy"),
            (None, "NoneType"),
        ):
            with pytest.raises(ImageError, match=says):
                from_image(wrong)  # type: ignore[arg-type]


class TestFiles:
    def test_damaged_exif_turns_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """EXIF data of a turned image, damaged at each of its bytes in turn: the image is read, turned or not."""
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x010F] = "maker"
        image = Image.fromarray(COLOURS[:16, :24])
        image.save(tmp_path / "whole.jpg", exif=exif)
        whole = (tmp_path / "whole.jpg").read_bytes()
        start = whole.index(b"Exif")
        assert open_image(tmp_path / "whole.jpg").size == (16, 24)
        length = len(exif.tobytes())
        for place in range(start + 6, start + length):
            for value in (0x00, 0xFF):
                damaged = bytearray(whole)
                damaged[place] = value
                (tmp_path / "damaged.jpg").write_bytes(damaged)
                found = open_image(tmp_path / "damaged.jpg")
                assert found.size in ((16, 24), (24, 16))
                assert from_pil(found).size in ((24, 16), (16, 24))
        assert "cannot be read" in caplog.text

    @pytest.mark.parametrize("form", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
    def test_a_file_damaged_anywhere_is_read_or_refused(self, form: str, tmp_path: Path) -> None:
        path = tmp_path / f"image.{form}"
        Image.fromarray(COLOURS[:16, :24]).save(path)
        whole = path.read_bytes()
        for seed in range(60):
            damaged = bytearray(whole)
            for place in np.random.default_rng(seed).integers(0, len(whole), 4):
                damaged[place] ^= 0x55
            path.write_bytes(damaged[: len(damaged) - seed])
            with contextlib.suppress(ImageError):
                from_pil(open_image(path))

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
    def test_written_and_read(self, mode: str, tmp_path: Path) -> None:
        image = Image.fromarray(COLOURS).convert(mode)
        write_image(image, tmp_path / "new" / "image.png")
        again = open_image(tmp_path / "new" / "image.png")
        assert again.mode == mode and np.array_equal(np.asarray(again), np.asarray(image))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["image.png"]

    def test_nothing_is_left_when_writing_fails(self, tmp_path: Path) -> None:
        target = tmp_path / "image.jpg"
        target.write_bytes(b"what was there")
        with pytest.raises(ImageError, match=r"image\.jpg.*RGBA.*PNG"):
            write_image(Image.new("RGBA", (8, 8)), target)
        assert target.read_bytes() == b"what was there" and len(list(tmp_path.iterdir())) == 1
        with pytest.raises(ImageError, match=r"image\.xyz does not have the ending"):
            write_image(Image.new("RGB", (8, 8)), tmp_path / "image.xyz")
        (tmp_path / "file").write_text("")
        with pytest.raises(ImageError, match="cannot write"):
            write_image(Image.new("RGB", (8, 8)), tmp_path / "file" / "image.png")

    def test_reading_fails_in_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="cannot read .*missing.png: No such file"):
            open_image(tmp_path / "missing.png")
        with pytest.raises(ImageError, match="cannot read"):
            open_image(tmp_path)
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(ImageError, match=r"text\.png is not an image of a known format"):
            open_image(tmp_path / "text.png")
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
        whole = (tmp_path / "whole.png").read_bytes()
        for length in (60, len(whole) // 2):
            (tmp_path / "cut.png").write_bytes(whole[:length])
            with pytest.raises(ImageError, match=r"cut\.png"):
                open_image(tmp_path / "cut.png")

    def test_first_frame_of_an_animation(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
        with caplog.at_level(logging.WARNING, "seamless_vae"):
            fitted = from_pil(open_image(tmp_path / "moving.gif"))
        assert as_bytes(fitted.pixels)[:, 0, 0].tolist() == [255, 0, 0]
        assert "2 frames" in caplog.text

    def test_to_pil_errors(self) -> None:
        with pytest.raises(ImageError, match=r"\(1, 2, 8, 8\) is not a batch of images"):
            to_pil(torch.zeros(1, 2, 8, 8))
        with pytest.raises(ImageError, match=r"alpha of shape \(1, 4, 4\)"):
            to_pil(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 4))
