"""ZeRO-3 on two workers gives the loss curve of one plain torch process."""

import json

import pytest
import torch

from qaray.config import FineTuneConfig
from qaray.finetune.examples import Collator, Examples
from qaray.finetune.loop import LengthGrouped
from qaray.finetune.model import load_model
from qaray.models.tokenizer import load_tokenizer
from qaray.run.storage import Location
from tests.conftest import ROOT
from tests.train.conftest import fine_tune, losses, write_examples

STEPS, TOGETHER = 8, 4  # examples of one step: two workers, two accumulated batches of one


def test_zero3_on_two_workers_is_one_plain_process(tmp_path, tiny_model):
    data, out = write_examples(tmp_path / "train.json", 16), tmp_path / "out"
    done = fine_tune(
        tiny_model, data, out, "--deepspeed", ROOT / "ds_configs" / "stage3.json", "--num_workers", 2,
        "--bf16", "False", "--gradient_accumulation_steps", 2, "--learning_rate", "3e-3", "--warmup_steps", 2,
        "--max_steps", STEPS, "--s2_group_size", 256, "--seed", 5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "training.json").read_text())["engine"]["zero_stage"] == 3
    found = [loss for _, loss in losses(out)]
    assert found == pytest.approx(plain_curve(tiny_model, out, tmp_path), rel=1e-3)
    assert found[-1] < 0.8 * found[0]


def plain_curve(model_name, out, tmp_path):
    """The same arithmetic by hand: AdamW, two steps of warm-up, clipped to norm 1, a mean over the step's tokens."""
    config = FineTuneConfig(
        model_name_or_path=model_name, data_path="-", output_dir="-", model_max_length=768, s2_group_size=256,
        cache_dir=str(tmp_path),
    )  # fmt: skip
    model = load_model(config, rope_factor=2.0, dtype=torch.float32).train()
    examples = Examples(Location.of(str(out / "examples")))
    collate = Collator(load_tokenizer(model_name, str(tmp_path), add_special=True).hf.pad_token_id, all_logits=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    sampler, curve = LengthGrouped(examples.lengths, TOGETHER, seed=5), []
    for step in range(STEPS):
        epoch, first = divmod(step * TOGETHER, len(examples))
        sampler.set_epoch(epoch)
        batch = collate([examples[i] for i in list(sampler)[first : first + TOGETHER]])
        loss = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 2)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve
