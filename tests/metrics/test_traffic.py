import json

import torch

from lit_fed.core.types import Task, Update
from lit_fed.metrics import Traffic, task_bytes, update_bytes

ADAPTER = {"head.weight": torch.zeros(3, 5), "head.bias": torch.zeros(3, dtype=torch.bfloat16)}
TENSOR_BYTES = 3 * 5 * 4 + 3 * 2


def test_tensors_count_what_they_hold() -> None:
    assert task_bytes(Task(ADAPTER)) - task_bytes(Task({})) == TENSOR_BYTES
    assert update_bytes(Update("a", ADAPTER, 7)) - update_bytes(Update("a", {}, 7)) == TENSOR_BYTES


def test_the_rest_counts_as_json() -> None:
    assert task_bytes(Task({})) == len('{"config":{}}')
    assert task_bytes(Task({}, {"stage": 1}, (0, 11))) == len('{"config":{"stage":1},"blocks":[0,11]}')
    sent = {"client": "café", "num_examples": 7, "metrics": {"loss": 0.5}}
    assert update_bytes(Update("café", {}, 7, {"loss": 0.5})) == len(json.dumps(sent, separators=(",", ":")).encode())


def test_traffic_of_a_round_is_that_of_its_turns() -> None:
    tasks, updates = [Task(ADAPTER), Task({})], [Update("a", ADAPTER, 1), Update("b", {}, 2)]
    turns = Traffic.of([tasks[0]], [updates[0]]) + Traffic.of([tasks[1]], [updates[1]])
    assert Traffic.of(tasks, updates) == turns
    assert turns.down_bytes == sum(map(task_bytes, tasks))
    assert turns.up_bytes == sum(map(update_bytes, updates))
    assert Traffic() + turns == turns
