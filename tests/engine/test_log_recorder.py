"""What a module logs is reduced as a Trainer would."""

import torch
from torchmetrics import MeanMetric

from lit_fed.engine.log_recorder import LogRecorder


def test_means_are_weighted_by_batch_size():
    recorder = LogRecorder()
    for size, value in ((4, 1.0), (1, 6.0)):
        recorder.batch = {"x": torch.zeros(size, 2)}
        recorder.log("loss", torch.tensor(value))
    recorder.log("given", 3.0, batch_size=10)
    results = recorder.compute(5)
    assert results["loss"] == (2.0, 5.0)  # (4 * 1 + 1 * 6) / 5
    assert results["given"] == (3.0, 10.0)


def test_other_reductions():
    recorder = LogRecorder()
    recorder.batch = torch.zeros(2)
    for value in (3.0, 1.0, 2.0):
        recorder.log("least", value, reduce_fx="min")
        recorder.log("most", value, reduce_fx=torch.max)
        recorder.log("all", value, reduce_fx="sum")
    results = recorder.compute(6)
    assert (results["least"].value, results["most"].value, results["all"].value) == (1.0, 3.0, 6.0)


def test_metric_objects_are_computed_once_and_reset():
    recorder, metric = LogRecorder(), MeanMetric()
    for value in (1.0, 2.0, 6.0):
        metric.update(value)
        recorder.log("score", metric)
    assert recorder.compute(3)["score"] == (3.0, 3.0)
    assert metric.update_count == 0
