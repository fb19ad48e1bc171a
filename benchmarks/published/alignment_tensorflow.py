"""The alignment loss in the structure of the published code, on TensorFlow: for alignment_loss.py.

    python alignment_tensorflow.py ARRAYS.npz REPEATS

Run by an interpreter that has TensorFlow. Reads `embs` (N, T, D), `steps` (N, T), `lengths` (N,);
prints one JSON object: loss, and CPU milliseconds of each forward and backward pass, eager and
compiled (`tf.function`), and the seconds of the first compiled call. One sub-graph for each ordered
pair of videos; written from TCC's formulas, as its released code has them.
"""

import itertools
import json
import os
import sys
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import tensorflow as tf

TEMPERATURE, WEIGHT = 0.1, 0.001


def scaled(x, y):
    squared = tf.reduce_sum(x**2, 1)[:, None] + tf.reduce_sum(y**2, 1)[None]
    distances = tf.maximum(squared - 2 * tf.matmul(x, y, transpose_b=True), 0.0)
    return -distances / x.shape[1] / TEMPERATURE


def loss_of(embs, steps, lengths):
    videos, frames = embs.shape[:2]
    rows, ends, times = [], [], []
    for i, j in itertools.permutations(range(videos), 2):
        soft = tf.matmul(tf.nn.softmax(scaled(embs[i], embs[j])), embs[j])
        rows.append(scaled(soft, embs[i]))
        ends.append(tf.one_hot(tf.range(frames), frames))
        times.append(tf.tile((steps[i] / lengths[i])[None], [frames, 1]))
    logits, labels, time_of = (tf.concat(part, 0) for part in (rows, ends, times))
    beta = tf.nn.softmax(logits)
    true, found = (tf.reduce_sum(weights * time_of, 1) for weights in (labels, beta))
    variance = tf.reduce_sum(beta * (time_of - found[:, None]) ** 2, 1)
    logs = tf.math.log(variance)
    return tf.reduce_mean((true - found) ** 2 * tf.exp(-logs) + WEIGHT * logs)


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with np.load(sys.argv[1]) as arrays:
        embs, steps, lengths = (
            tf.constant(arrays[name], tf.float32) for name in ("embs", "steps", "lengths")
        )

    def step():
        with tf.GradientTape() as tape:
            tape.watch(embs)
            loss = loss_of(embs, steps, lengths)
        return loss, tape.gradient(loss, embs)

    fast = tf.function(step)
    begun = time.perf_counter()
    found = {"loss": float(fast()[0]), "tracing_s": time.perf_counter() - begun}
    for name, call in (("compiled", fast), ("eager", step)):
        found[name] = []
        for _ in range(int(sys.argv[2]) + 1):
            begun = time.process_time()
            call()[1].numpy()
            found[name].append(1e3 * (time.process_time() - begun))
        found[name] = found[name][1:]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
