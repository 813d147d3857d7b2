"""An hour in a real host: `COMFYUI_PATH=CHECKOUT python tools/soak_host.py --seconds 3600 --log soak.jsonl`.

Starts a ComfyUI with this pack (COMFYUI_PYTHON: the interpreter that has its requirements) and asks it by its HTTP
interface, as a page does: encode, decode, tiles, swap, round trip, save, wrong inputs, cancelled runs, a weights file
that is replaced, questions of the page. Each round is drawn from a seed. Every prompt must end as it should, and what
was computed before must be the same to the last bit. Now and then everything is unloaded, and memory, open files,
threads and the temporary folder of the host's process are written to the log, a line of JSON each. The host keeps a
history of what was run and previews in its own temporary folder; both are emptied then, as they are its own.

`--only theirs` runs the host's own VAE and nodes alone, which shows what grows without us: ComfyUI 0.3.64 keeps some
500 small objects each time that its own loader reads a VAE. `--only ours` leaves that loader out. oneDNN keeps what it
compiled for the last 1,024 shapes, which are reached after some thousand rounds and look like a leak until then; the
host is told to keep one (`--shapes 1024` for what users have). Ends with status 1 and a sentence for what grew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soak_samples import Sample, verdict

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 25  # from one sample to the next
LOAD = {"dtype": "auto", "device": "auto", "latent_scale": "auto"}
DEMO, SMALL, THEIRS = "demo", "small.safetensors", "host.safetensors"
CHANNELS = {DEMO: 16, SMALL: 4, THEIRS: 4}


class Soak:
    """The rounds.

    Args:
        host: a running `e2e.real_host.Comfy`.
        spare: weights files that `small.safetensors` is replaced by in turn.
    """

    def __init__(self, host: Any, spare: list[Path], temporary: Path, seed: int, only: str) -> None:
        from e2e.real_host import Workflow

        self.host, self.spare, self.temporary, self.workflow = host, spare, temporary, Workflow
        self.random, self.version = random.Random(seed), 0
        self.results: dict[tuple[Any, ...], bytes] = {}
        self.done: Counter[str] = Counter()
        theirs = [self.their_decode, self.their_encode]
        ours = [
            *(self.decode, self.encode, self.tiled, self.tiled, self.swap, self.round_trip, self.save),
            *(self.cancelled, self.refused, self.replaced, self.unloaded, self.asked),
        ]
        kinds = {"all": [*ours, *ours, *theirs], "ours": ours, "theirs": theirs}
        self.kinds: list[Callable[[], None]] = kinds[only]
        self.names = [name for name in CHANNELS if name != THEIRS or only != "ours"]

    def round(self) -> None:
        work = self.random.choice(self.kinds)
        work()
        self.done[work.__name__] += 1

    # What is run.

    def run(self, workflow: Any) -> Any:
        run = self.host.run(workflow)
        if run.error is not None or run.interrupted:
            raise AssertionError(f"a prompt ended with {run.error or 'an interruption'}: {workflow.nodes}")
        return run

    def same(self, *key: Any) -> None:
        """What TestKeep wrote is that of the first time, to the last bit."""
        key = (self.version if SMALL in key else 0, *key)
        tensors, _ = self.host.kept("soak")
        found = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
        if self.results.setdefault(key, found) != found:
            raise AssertionError(f"{key}: another result than at first")

    def vae(self, workflow: Any, name: str) -> list[Any]:
        if name == THEIRS:
            return workflow.add("VAELoader", vae_name=name)[0]
        return workflow.add("SeamlessVAELoad", vae_name=name, **LOAD)[0]

    def latent(self, workflow: Any, name: str) -> tuple[list[Any], tuple[int, ...]]:
        height, width = self.random.choice([(4, 4), (8, 12), (24, 16)])
        batch, channels = self.random.choice([1, 1, 2]), CHANNELS[name]
        shape = {"width": width, "height": height, "batch": batch, "channels": channels}
        return workflow.add("TestSeededLatent", **shape, seed=1, frames=0)[0], (batch, height, width)

    def image(self, workflow: Any) -> tuple[list[Any], tuple[int, ...]]:
        height, width = self.random.choice([(32, 32), (60, 101), (192, 128)])
        shape = {"width": width, "height": height, "batch": self.random.choice([1, 1, 2]), "channels": 3}
        return workflow.add("TestSeededImage", **shape, seed=1)[0], tuple(shape.values())

    def decode(self) -> None:
        self._decode(self.random.choice([DEMO, SMALL]))

    def their_decode(self) -> None:
        self._decode(THEIRS)

    def _decode(self, name: str) -> None:
        workflow = self.workflow()
        vae = self.vae(workflow, name)
        z, shape = self.latent(workflow, name)
        kind = "VAEDecode" if name == THEIRS else self.random.choice(["VAEDecode", "SeamlessVAEDecode"])
        clamp = {} if kind == "VAEDecode" else {"clamp": True}
        workflow.add("TestKeep", name="soak", image=workflow.add(kind, samples=z, vae=vae, **clamp)[0])
        self.run(workflow)
        self.same("decode", name, shape)

    def encode(self) -> None:
        self._encode(self.random.choice([DEMO, SMALL]))

    def their_encode(self) -> None:
        self._encode(THEIRS)

    def _encode(self, name: str) -> None:
        workflow = self.workflow()
        vae = self.vae(workflow, name)
        pixels, shape = self.image(workflow)
        kind = "VAEEncode" if name == THEIRS else self.random.choice(["VAEEncode", "SeamlessVAEEncode"])
        options = {} if kind == "VAEEncode" else {"sample_mode": "sample", "seed": 3, "fit": "crop"}
        latent = workflow.add(kind, pixels=pixels, vae=vae, **options)[0]
        workflow.add("TestKeep", name="soak", latent=latent)
        self.run(workflow)
        self.same("encode", name, kind, shape)

    def tiles(self) -> dict[str, Any]:
        exact = {"mode": "exact", "circular": self.random.choice(["none", "x", "both"])}
        exact |= {"tile_size": self.random.choice([0, 32, 72]), "memory_budget": self.random.choice([0.0, 0.04])}
        blended = {"mode": "blended", "circular": "none", "tile_size": 64, "memory_budget": 0.0}
        return {**self.random.choice([exact, exact, blended]), "overlap": 16}

    def tiled(self) -> None:
        workflow, name = self.workflow(), self.random.choice([DEMO, SMALL])
        vae, options = self.vae(workflow, name), self.tiles()
        if self.random.random() < 0.5:
            given, shape = self.latent(workflow, name)
            made = workflow.add("SeamlessVAEDecodeTiled", samples=given, vae=vae, clamp=True, **options)[0]
            workflow.add("TestKeep", name="soak", image=made)
        else:
            given, shape = self.image(workflow)
            how = {"sample_mode": "mean", "seed": 0, "fit": "pad"}
            made = workflow.add("SeamlessVAEEncodeTiled", pixels=given, vae=vae, **how, **options)[0]
            workflow.add("TestKeep", name="soak", latent=made)
        self.run(workflow)
        self.same("tiled", name, shape, repr(options))

    def swap(self) -> None:
        workflow = self.workflow()
        one, other = self.random.sample(self.names, 2)
        vaes = {name: self.vae(workflow, name) for name in (one, other)}
        z, shape = self.latent(workflow, one)
        there = workflow.add("SeamlessVAESwap", samples=z, from_vae=vaes[one], to_vae=vaes[other])
        back = workflow.add("SeamlessVAESwap", samples=there[0], from_vae=vaes[other], to_vae=vaes[one])
        workflow.add("TestKeep", name="soak", latent=back[0], image=back[1])
        self.run(workflow)
        self.same("swap", one, other, shape)

    def round_trip(self) -> None:
        workflow = self.workflow()
        pixels, shape = self.image(workflow)
        made = workflow.add("SeamlessVAERoundTrip", pixels=pixels, vae=self.vae(workflow, DEMO))
        workflow.add("TestKeep", name="soak", image=made[0])
        self.run(workflow)
        self.same("round trip", shape)

    def save(self) -> None:
        workflow = self.workflow()
        vae, kind = self.vae(workflow, SMALL), self.random.choice(["diffusers", "single_file"])
        # What it reads differs, so that the host does not take it for one that it ran already.
        prefix = f"saved/{self.random.randrange(10**9)}"
        saved = workflow.add("SeamlessVAESave", vae=vae, filename_prefix=prefix, format=kind, dtype="auto")
        path = Path(self.run(workflow).shown[saved[0][0]]["text"][0])
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            each.unlink()
        if path.is_dir():
            path.rmdir()

    def cancelled(self) -> None:
        workflow, tiled = self.workflow(), self.random.random() < 0.5
        vae, shape = self.vae(workflow, DEMO), {"width": 96, "height": 96, "batch": 1, "channels": 16}
        seed = self.random.randrange(2, 16384)  # never one that was decoded
        z = workflow.add("TestSeededLatent", **shape, seed=seed, frames=0)[0]
        options = {"clamp": True, **self.tiles()} if tiled else {}
        made = workflow.add("SeamlessVAEDecodeTiled" if tiled else "VAEDecode", samples=z, vae=vae, **options)
        workflow.add("TestKeep", name="never", image=made[0])
        left = self.random.randrange(8)

        def cancel(message: dict[str, Any]) -> bool:
            nonlocal left
            left -= message["type"] == "progress"
            return left < 0

        run = self.host.run(workflow, cancel)
        if run.error is not None or not run.interrupted:
            raise AssertionError(f"a cancelled prompt ended with {run.error or 'success'}")

    def refused(self) -> None:
        workflow = self.workflow()
        wrong = self.random.choice([{"channels": 5}, {"frames": 3}, {"memory_budget": 0.0001}])
        shape = {"width": 64, "height": 64, "batch": 1, "channels": 4, "frames": 0}
        shape["seed"] = self.random.randrange(2, 16384)
        z = workflow.add("TestSeededLatent", **{key: wrong.get(key, value) for key, value in shape.items()})[0]
        options = {"mode": "exact", "circular": "none", "tile_size": 0, "overlap": 16, "memory_budget": 0.0}
        options = {key: wrong.get(key, value) for key, value in options.items()}
        vae = self.vae(workflow, SMALL)
        made = workflow.add("SeamlessVAEDecodeTiled", samples=z, vae=vae, clamp=True, **options)
        workflow.add("TestKeep", name="never", image=made[0])
        error = self.host.run(workflow).error
        if error is None or not error.endswith("."):
            raise AssertionError(f"{wrong} ended with {error or 'success'}")

    def replaced(self) -> None:
        """Another file under the name of one that was loaded; it is read when it is loaded next."""
        self.version = 1 - self.version
        place = self.host.folder / "models" / "vae" / SMALL
        fresh = place.with_name("small.part")
        fresh.write_bytes(self.spare[self.version].read_bytes())
        os.replace(fresh, place)
        self.unloaded()

    def unloaded(self) -> None:
        self.host.free()
        self.run_empty()

    def run_empty(self) -> dict[str, Any]:
        """A prompt of one node, before which the host has forgotten all that it had."""
        workflow = self.workflow()
        asked = workflow.add("TestAlive")[0][0]
        return self.run(workflow).shown[asked]

    def asked(self) -> None:
        if self.random.random() < 0.5:
            name = self.random.choice(self.names)
            self.host.get("/seamless_vae/info?" + urllib.parse.urlencode({"name": name}))
            return
        request = urllib.request.Request(
            f"{self.host.address}/seamless_vae/plan", b"{]", {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
        else:
            raise AssertionError("a question that is no JSON was answered")

    # What must not grow.

    def sample(self, seconds: float) -> Sample:
        """Everything unloaded, and what is the host's own emptied."""
        body = json.dumps({"clear": True}).encode()
        request = urllib.request.Request(f"{self.host.address}/history", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()
        for each in (self.host.folder / "temp").rglob("*"):
            each.unlink()
        for _ in range(100):  # models are unloaded by another thread, when it next looks
            self.host.free()
            time.sleep(0.3)
            alive = self.run_empty()
            if alive["ours"] == [0]:
                break
        held = {"in_use": alive["bytes"][0], "blocks": alive["blocks"][0], "models": alive["ours"][0]}
        rounds = sum(self.done.values())
        return Sample.of(self.host.process.pid, seconds, rounds, temporary=self.temporary, **held)


def soak(seconds: float, seed: int, only: str, log: Path, say: Callable[[str], object]) -> list[str]:
    """Start a host and run for so long.

    Returns:
        A sentence for each thing that grew; none if all is well.

    Raises:
        AssertionError: a prompt ended as it should not.
    """
    from e2e.conftest import SD_FIELDS, SMALL_FIELDS, random_vae
    from e2e.real_host import checkout, running

    import vae_core

    with tempfile.TemporaryDirectory(prefix="seamless-soak-") as made:
        base, temporary, models = Path(made, "host"), Path(made, "tmp"), Path(made, "host", "models", "vae")
        models.mkdir(parents=True)
        temporary.mkdir()
        spare = [Path(made, f"{version}.safetensors") for version in (0, 1)]
        for version, path in enumerate(spare):
            vae_core.save_single_file(random_vae(SMALL_FIELDS, version), path)
        (models / SMALL).write_bytes(spare[0].read_bytes())
        vae_core.save_single_file(random_vae(SD_FIELDS, 2), models / THEIRS)
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = str(temporary)  # the host's
        try:
            with running(checkout(), base) as host, log.open("a", encoding="utf-8") as lines:
                return _soak(Soak(host, spare, temporary, seed, only), seconds, lines, say)
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


def _soak(run: Soak, seconds: float, lines: Any, say: Callable[[str], object]) -> list[str]:
    samples, start = [], time.monotonic()
    while time.monotonic() - start < seconds:
        for _ in range(ROUNDS):
            run.round()
        samples.append(run.sample(time.monotonic() - start))
        lines.write(json.dumps(asdict(samples[-1])) + "\n")
        lines.flush()
    found = verdict(samples)
    say(f"{dict(run.done)}")
    say(f"first {samples[0]}, last {samples[-1]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["all", "ours", "theirs"], default="all")
    parser.add_argument("--shapes", type=int, default=1, help="for how many oneDNN keeps what it compiled")
    parser.add_argument("--log", type=Path, default=Path("soak_host.jsonl"))
    options = parser.parse_args()
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(options.shapes)  # the host's
    found = soak(options.seconds, options.seed, options.only, options.log, lambda line: print(line, flush=True))
    print("\n".join(found) or "nothing grew")
    sys.exit(bool(found))


sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

if __name__ == "__main__":
    main()
