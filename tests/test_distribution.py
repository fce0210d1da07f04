"""Two devices train as one does, each backend in its own way (docs/guides/distribution.md)."""

import json
import os
import subprocess
import sys

import numpy as np
from harness import BACKEND, assert_close

COMMON = """
import json, sys
import keras, numpy as np
import dl_mamba

IDS = np.random.default_rng(0).integers(1, 11, (8, 6)).astype("int32")
LABELS = IDS[:, 0] % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(scan_layers):
    keras.utils.set_random_seed(0)
    sizes = dict(vocab_size=11, d_model=8, num_layers=2, headdim=4, d_state=4, pad_vocab_size_multiple=1)
    backbone = dl_mamba.Mamba2(**sizes, scan_layers=scan_layers)
    ids = keras.Input((6,), dtype="int32")
    pooled = keras.layers.GlobalAveragePooling1D()(backbone(ids)["last_hidden_state"])
    return keras.Model(ids, keras.layers.Dense(2)(pooled))


def answer(**losses):
    print("ANSWER", json.dumps(losses))
"""

SCRIPTS = {
    "jax": """
import jax


def losses(distribution, scan_layers):
    keras.distribution.set_distribution(distribution)
    model = classifier(scan_layers)
    model.compile(keras.optimizers.SGD(0.5), LOSS)
    return model.fit(IDS, LABELS, batch_size=4, epochs=3, shuffle=False, verbose=0).history["loss"]


mesh = keras.distribution.DeviceMesh((1, jax.device_count()), ("batch", "model"))
layout = keras.distribution.LayoutMap(mesh)
layout[".*in_proj/kernel"] = ("model", None)
layout[".*out_proj/kernel"] = (None, "model")
layout[".*embedding/embeddings"] = (None, "model")
ways = {
    "one": None,
    "data": keras.distribution.DataParallel(),
    "weights": keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"),
}
assert jax.device_count() == 2
answer(**{f"{way}, {scan}": losses(ways[way], scan) for way in ways for scan in (False, True)})
""",
    "tensorflow": """
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def losses(strategy, scan_layers):
    with strategy.scope():
        model = classifier(scan_layers)
        model.compile(keras.optimizers.SGD(0.5), LOSS, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((IDS, LABELS)).batch(4)
    return model.fit(batches, epochs=3, verbose=0).history["loss"]


ways = {"one": tf.distribute.get_strategy(), "data": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
answer(**{f"{way}, {scan}": losses(ways[way], scan) for way in ways for scan in (False, True)})
""",
    "torch": """
import os, tempfile
import torch
from torch.nn.parallel import DistributedDataParallel


def losses(network, rank, processes):
    optimizer, seen = torch.optim.SGD(network.parameters(), 0.5), []
    for rows in [np.arange(4), np.arange(4, 8)] * 3:
        mine = rows[rank::processes]
        optimizer.zero_grad()
        loss = LOSS(torch.as_tensor(LABELS[mine]), network(torch.as_tensor(IDS[mine])))
        loss.backward()
        optimizer.step()
        if processes > 1:
            torch.distributed.all_reduce(loss.detach_())
        seen.append(float(loss) / processes)
    return np.reshape(seen, (3, 2)).mean(1).tolist()  # of an epoch


def share(rank, meeting, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {f"data, {scan}": losses(DistributedDataParallel(classifier(scan)), rank, 2) for scan in (False, True)}
    if rank == 0:
        with open(folder + "/found.json", "w") as file:
            json.dump(found, file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    found = {f"one, {scan}": losses(classifier(scan), 0, 1) for scan in (False, True)}
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(share, (folder + "/meeting", folder), 2)
        with open(folder + "/found.json") as file:
            answer(**found, **json.load(file))
""",
}


def test_two_devices_give_the_losses_of_one_with_and_without_a_loop_over_blocks(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(COMMON + SCRIPTS[BACKEND])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"} if BACKEND == "jax" else {}
    finished = subprocess.run(
        [sys.executable, script], env={**os.environ, **flags}, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    line = next(line for line in finished.stdout.splitlines() if line.startswith("ANSWER"))
    losses = json.loads(line.removeprefix("ANSWER"))
    wanted = losses.pop("one, False")
    assert wanted[-1] < wanted[0]
    assert len(losses) == (5 if BACKEND == "jax" else 3)
    for way, came in losses.items():
        assert_close(np.array(came), np.array(wanted), 1e-4, way)  # float32 summed in another order, for six steps
