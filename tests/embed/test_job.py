"""Where a build runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline.compute import Compute, worker_count
from pipeline.embed import plan
from pipeline.embed.job import on_gpus
from pipeline.embed.settings import Embed
from pipeline.embed.worker import MakeEmbedder
from pipeline.encode.clip import ClipEncoder
from tests.encode import tiny

SETTINGS = Embed(tiny.PARAMS, ("agentview",), 1, 0.2, 0.2, None, 1, None, 256, 256, "stop")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs of 80 GiB and 16 cores."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr("pipeline.compute.cores", lambda: 16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    tiny.register(tmp_path_factory.mktemp("clip"))
    return ClipEncoder(tiny.PARAMS)


@pytest.mark.parametrize(
    ("scheduler", "workers", "device", "expected"),
    [
        ("local", None, "cuda:0", 2),
        ("local", 8, "cuda:0", 2),
        ("local", 1, "cuda:0", 1),
        ("serial", None, "cuda:0", 1),
        ("local", None, "cpu", 16),
        ("local", 8, "cpu", 8),
    ],
)
def test_a_gpu_has_one_worker(gpus: None, scheduler: str, workers: int | None, device: str, expected: int) -> None:
    compute = on_gpus(Compute(scheduler, workers, None), torch.device(device))
    assert worker_count(compute, 100) == expected


def test_a_worker_takes_the_gpu_of_its_number(
    gpus: None, encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        "pipeline.embed.worker.shared_encoder", lambda params, device, *rest: taken.append(device) or encoder
    )
    for index in range(3):
        monkeypatch.setattr("pipeline.embed.worker.worker_index", lambda index=index: index)
        MakeEmbedder(SETTINGS, encoder.identity, ())().close()
    assert taken == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(("asked", "expected"), [(None, 256), (1024, 256), (64, 64)])
def test_no_batch_is_larger_than_a_shard(
    gpus: None, encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch, asked: int | None, expected: int
) -> None:
    """Of what it is short of, a batch is padded: four images would be computed for one."""
    asked_for: list[int] = []
    monkeypatch.setattr(plan, "shared_encoder", lambda params, device, grid, size: asked_for.append(size) or encoder)
    settings, _ = plan.load_encoder(replace(SETTINGS, batch_size=asked))
    assert asked_for == [settings.batch_size] == [expected]
