"""Fine-tuning on a GPU: the original's command on one process, and S²-Attn through flash-attn."""

import importlib
import json

import pytest
import torch

from qaray.finetune.attention import has_flash_attn, s2_attention
from tests.conftest import ROOT
from tests.train.conftest import fine_tune, losses, write_examples
from tests.unit.test_s2_attention import Layer, dense

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


NEEDS_FLASH = pytest.mark.skipif(not has_flash_attn(), reason="flash-attn is not installed")


@pytest.mark.parametrize("config", ["stage3.json", "stage3_no_offload.json", "stage2.json"])
def test_loss_falls_under_deepspeed(tmp_path, tiny_model, config):
    out = tmp_path / "out"
    done = fine_tune(
        tiny_model, write_examples(tmp_path / "train.json", 16), out, "--deepspeed", ROOT / "ds_configs" / config,
        "--num_train_epochs", "3", "--learning_rate", "1e-2", "--warmup_steps", "2", "--use_gpu", "True",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    curve = losses(out)
    assert curve[-1][1] < 0.5 * curve[0][1]
    engine = json.loads((out / "training.json").read_text())["engine"]
    assert engine["name"] == "DeepSpeedEngine"
    assert engine["zero_stage"] == (2 if "stage2" in config else 3)


@pytest.mark.parametrize("flash", [False, pytest.param(True, marks=NEEDS_FLASH)])
@pytest.mark.parametrize(("heads", "kv_heads", "length", "group"), [(8, 2, 512, 128), (9, 3, 301, 64), (4, 4, 70, 128)])
def test_s2_attention_in_bfloat16(heads, kv_heads, length, group, flash):
    torch.manual_seed(0)
    shapes = ((heads, length), (kv_heads, length), (kv_heads, length))
    query, key, value = (torch.randn(2, h, s, 64, device="cuda", dtype=torch.bfloat16) for h, s in shapes)
    varlen = importlib.import_module("flash_attn").flash_attn_varlen_func if flash else None
    out, _ = s2_attention(Layer().train(), query, key, value, None, group=group, varlen=varlen)
    expected = dense(query.float().cpu(), key.float().cpu(), value.float().cpu(), None, group)
    torch.testing.assert_close(out.float().cpu(), expected, atol=2e-2, rtol=2e-2)
