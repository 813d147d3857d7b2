"""diffusers' own tests of AutoencoderKL, with our class in the place of theirs.

    python tools/diffusers_tests.py CHECKOUT

CHECKOUT is a checkout of the diffusers repository, at a version near to the installed one (`git checkout v0.40.0`).
Its tests run twice, offline, both times with the installed diffusers: with its class and with ours. Every test that
theirs passes, ours must pass, and none may be skipped that theirs runs. They need `parameterized` and `peft`.

The old layout of the tests runs with a diffusers of its time, in an environment of its own with this package's torch:
v0.26.3 with `diffusers==0.26.3 "huggingface_hub<0.26" "peft<0.9" "accelerate<0.27" "transformers<4.38"`, and with
`requests_mock` as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = (
    "tests/models/autoencoders/test_models_autoencoder_kl.py",
    "tests/models/test_models_vae.py",  # up to 0.26
)
PLUGIN = """
import json, os

import diffusers  # the installed one, before the checkout puts its own first

if os.environ["SEAMLESS_CLASS"] == "ours":
    import vae_core
    diffusers.AutoencoderKL = vae_core.AutoencoderKL

outcomes = {}

def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome

def pytest_sessionfinish():
    with open(os.environ["SEAMLESS_OUTCOMES"], "w") as file:
        json.dump(outcomes, file)
"""


def run_tests(checkout: Path, file: str, which: str, folder: Path, arguments: list[str]) -> dict[str, str]:
    """Outcome of each test ("passed", "failed", "skipped"), with our class or with theirs."""
    (folder / "seamless_plugin.py").write_text(PLUGIN, encoding="utf-8")
    outcomes = folder / f"{which}.json"
    paths = [str(folder), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SEAMLESS_CLASS": which,
        "SEAMLESS_OUTCOMES": str(outcomes),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "seamless_plugin", "-p", "no:cacheprovider", "--tb=short"]
    subprocess.run([*command, file, *arguments], cwd=checkout, env=environment)
    if not outcomes.is_file():
        raise SystemExit(f"pytest did not run the tests of {checkout} with {which}: see above.")
    return json.loads(outcomes.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of the diffusers repository")
    parser.add_argument("arguments", nargs="*", help="further arguments for pytest, after --")
    given = parser.parse_args()
    file = next((name for name in TESTS if (given.checkout / name).is_file()), None)
    if file is None:
        parser.error(f"{given.checkout} has none of {', '.join(TESTS)}: it is not a checkout of diffusers.")
    with tempfile.TemporaryDirectory() as folder:
        found = {
            which: run_tests(given.checkout, file, which, Path(folder), given.arguments) for which in ("theirs", "ours")
        }
    theirs, ours = found["theirs"], found["ours"]
    if not theirs:
        print(f"{file} does not run with the installed diffusers: see above. Check out a version nearer to it.")
        return 1
    worse = [
        name
        for name, outcome in theirs.items()
        if (outcome == "passed" and ours.get(name) != "passed")
        or (outcome != "skipped" and ours.get(name, "skipped") == "skipped")
    ]
    for which, outcomes in found.items():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(outcomes.values()).items()))
        print(f"{which}: {counts}")
    for name in worse:
        print(f"worse with ours: {name} ({theirs[name]} with theirs, {ours.get(name, 'not run')} with ours)")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
