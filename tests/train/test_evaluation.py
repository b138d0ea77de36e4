"""The held-out loss of two ranks is that of one process that reads the examples one by one."""

import os
import socket

import pytest
import torch

from tests.unit.test_evaluation import evaluator, examples, plain_loss


@pytest.mark.long  # test_fine_tune.py: two ranks under ZeRO-3
def test_two_processes(tmp_path, tiny_model):
    """accelerate repeats examples so that both ranks run the same number of batches: 4 for 3 examples, 8 for 5."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, tmp_path, tiny_model), nprocs=2)
    for number in (3, 5):
        model = evaluator(tmp_path / f"plain-{number}", tiny_model, number, 1).model
        expected = plain_loss(model, examples(number))
        for rank in (0, 1):
            found = float((tmp_path / f"loss-{number}-{rank}").read_text())
            assert found == pytest.approx(expected, rel=1e-5)


def _rank(rank, port, folder, model):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for number in (3, 5):
        trainer = evaluator(folder / f"rank-{rank}-{number}", model, number, 2)
        assert trainer.args.world_size == 2
        (folder / f"loss-{number}-{rank}").write_text(str(trainer.evaluate()["eval_loss"]))
    torch.distributed.destroy_process_group()
