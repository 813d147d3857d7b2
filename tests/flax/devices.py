"""Run by test_transformations.py in a process with several devices: the model over all of them, and on one."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_core.flax import FlaxAutoencoderKL

model = FlaxAutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
rng = np.random.default_rng(0)
params = jax.tree_util.tree_map(
    lambda leaf: rng.normal(0.1, 0.2, leaf.shape).astype(np.float32),
    jax.eval_shape(model.init_weights, jax.random.PRNGKey(0)),
)
x = rng.uniform(-1, 1, (8, 3, 8, 8)).astype(np.float32)
devices = jax.devices()


def roundtrip(params: Any, x: Any) -> Any:
    return model.apply({"params": params}, x).sample


def loss(params: Any, x: Any) -> Any:
    return ((roundtrip(params, x) - x) ** 2).mean()


def difference(a: Any, b: Any) -> float:
    pairs = zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True)
    return max(float(np.abs(np.asarray(one) - np.asarray(other)).max()) for one, other in pairs)


expected, gradients = jax.jit(lambda p, x: (roundtrip(p, x), jax.grad(loss)(p, x)))(params, x)

# The batch over a mesh, the parameters on every device.
mesh = Mesh(np.array(devices), ("data",))
everywhere, by_item = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
sharded = jax.jit(roundtrip, out_shardings=by_item)(jax.device_put(params, everywhere), jax.device_put(x, by_item))


# A step of every device with its part of the batch; gradients are averaged.
def step(params: Any, x: Any) -> Any:
    mean = jax.lax.pmean(jax.grad(loss)(params, x), axis_name="data")
    return roundtrip(params, x), mean


replicated = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf] * len(devices)), params)
pmapped, means = jax.pmap(step, axis_name="data")(replicated, x.reshape(len(devices), -1, *x.shape[1:]))
first, last = (jax.tree_util.tree_map(lambda leaf, i=i: leaf[i], means) for i in (0, -1))

results = {
    "devices": len(devices),
    "shards": len({shard.device for shard in sharded.addressable_shards}),
    "sharded difference": difference(sharded, expected),
    "pmapped difference": difference(np.asarray(pmapped).reshape(x.shape), expected),
    "gradient difference": difference(first, gradients),
    "replicas differ": difference(first, last),
}
sys.stdout.write(json.dumps(results) + "\n")
