"""`qaray fine-tune` on real Ray Train and real DeepSpeed: two gloo workers on the CPU.

One run of the original's command with ZeRO-3 and CPU offload serves the tests of curve, checkpoints and model.
"""

import hashlib
import json
import re

import pytest
import torch
from safetensors import safe_open

from qaray.asking.templates import prompt_ids
from qaray.config import FineTuneConfig
from qaray.finetune.examples import Collator, Examples
from qaray.finetune.loop import LengthGrouped
from qaray.finetune.model import load_model
from qaray.models.contract import Contract
from qaray.models.tokenizer import load_tokenizer
from qaray.run.storage import Location
from tests.commands import qaray
from tests.conftest import ROOT, make_paper, read_jsonl, write_jsonl
from tests.recording import reads, recorded_reads
from tests.train.conftest import fine_tune, losses, training_log, write_examples
from tests.unit.test_evaluation import plain_loss

STAGE3 = ROOT / "ds_configs" / "stage3.json"
STEPS, TOGETHER, RATE, SEED = 12, 4, 3e-3, 5  # examples of one step: two workers, two accumulated batches of one
FLAGS = (
    "--deepspeed", STAGE3, "--num_workers", 2, "--bf16", "False", "--gradient_accumulation_steps", 2,
    "--learning_rate", RATE, "--warmup_steps", 2, "--num_train_epochs", 3, "--save_steps", 6, "--s2_group_size", 256,
    "--seed", SEED,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """12 steps, some bad records, examples kept out."""
    folder = tmp_path_factory.mktemp("sft")
    data = write_examples(folder / "train.json", 16)
    rows = json.loads(data.read_text())
    rows += [{"instruction": "x", "input": "y"}, {"instruction": "x", "input": "y" * 9999, "output": "z"}, 7]
    data.write_text(json.dumps(rows))
    kept_out = write_examples(folder / "eval.json", 3)
    out = folder / "out"
    done = fine_tune(tiny_model, data, out, *FLAGS, "--eval_data_path", kept_out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_loss_falls_and_the_run_says_what_it_did(finished):
    out, done = finished
    curve = losses(out)
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    assert curve[-1][1] < 0.8 * curve[0][1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["evaluation"]["perplexity_after"] < manifest["evaluation"]["perplexity_before"]
    assert manifest["examples"]["train"]["examples"] == 16
    reasons = {"missing_key": 1, "over_length": 1, "wrong_type": 1}
    assert manifest["examples"]["train"]["by_reject_reason"] == reasons
    assert {r["position"]: r["reason"] for r in read_jsonl(out / "rejected.jsonl")} == {
        16: "missing_key", 17: "over_length", 18: "wrong_type",
    }  # fmt: skip
    assert "the scheduler WarmupDecayLR but the flags set constant_with_warmup: using the flags" in done.stderr
    rates = [entry["learning_rate"] for entry in training_log(out) if "loss" in entry]
    assert rates[-1] == pytest.approx(RATE)  # constant after the warm-up: WarmupDecayLR would have come down to 0
    assert "step 12/12" in done.stderr
    page = (out / "report" / "index.html").read_text()
    assert "Fine-tuning of" in page
    assert "Loss over 12 logged steps" in page


def test_zero3_on_two_workers_is_one_plain_process(finished, tiny_model, tmp_path):
    out, _ = finished
    found = [loss for _, loss in losses(out)]
    assert found == pytest.approx(plain_curve(tiny_model, out, tmp_path), rel=1e-3)


def test_the_held_out_loss_of_two_ranks_is_that_of_one_process(finished, tiny_model, tmp_path):
    """Three examples on two ranks: one of them is evaluated twice, and counts once."""
    out, _ = finished
    held_out = [
        (e["input_ids"].tolist(), e["prompt_tokens"]) for e in Examples(Location.of(str(out / "eval_examples")))
    ]
    assert len(held_out) == 3
    before = next(entry["eval_loss"] for entry in training_log(out) if "eval_loss" in entry)
    assert before == pytest.approx(plain_loss(plain_model(tiny_model, tmp_path).eval(), held_out), rel=1e-4)


def plain_model(model_name, folder):
    config = FineTuneConfig(
        model_name_or_path=model_name, data_path="-", output_dir="-", model_max_length=768, s2_group_size=256,
        cache_dir=str(folder),
    )  # fmt: skip
    return load_model(config, rope_factor=2.0, dtype=torch.float32)


def plain_curve(model_name, out, tmp_path):
    """The same arithmetic by hand: AdamW, two steps of warm-up, clipped to norm 1, a mean over the step's tokens."""
    model = plain_model(model_name, tmp_path).train()
    examples = Examples(Location.of(str(out / "examples")))
    collate = Collator(load_tokenizer(model_name, str(tmp_path), add_special=True).hf.pad_token_id, all_logits=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    sampler, curve = LengthGrouped(examples.lengths, TOGETHER, seed=SEED), []
    for step in range(STEPS):
        epoch, first = divmod(step * TOGETHER, len(examples))
        sampler.set_epoch(epoch)
        batch = collate([examples[i] for i in list(sampler)[first : first + TOGETHER]])
        loss = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / 2)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


def test_checkpoints_hold_each_shard_once_and_only_the_last_are_kept(finished):
    out, _ = finished
    folders = sorted(path for path in (out / "checkpoints").iterdir() if path.is_dir())
    assert len(folders) == 2  # save_total_limit
    for folder in folders:
        names = [path.name for path in folder.rglob("*") if path.is_file()]
        assert len(names) == len(set(names))
        for rank in (0, 1):
            assert f"rng_state_{rank}.pth" in names
            assert [n for n in names if f"zero_pp_rank_{rank}_" in n and "optim" in n]
            assert [n for n in names if f"zero_pp_rank_{rank}_" in n and "model" in n]
        assert "trainer_state.json" in names


def test_the_run_was_deepspeed_at_stage_3_with_parameters_partitioned(finished):
    out, _ = finished
    engine = json.loads((out / "training.json").read_text())["engine"]
    assert engine["name"] == "DeepSpeedEngine"
    assert engine["zero_stage"] == 3
    assert engine["partitioned"] == engine["parameters"] > 0
    assert engine["optimizer"] == "DeepSpeedCPUAdam"
    assert engine["offloaded"]
    assert engine["attention"] == "s2: scaled_dot_product_attention"


def test_the_model_loads_and_carries_its_contract(finished, tiny_model):
    from transformers import AutoModelForCausalLM

    out, _ = finished
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert str(model.dtype) == "torch.bfloat16"
    with safe_open(out / "model" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype.itemsize for name in weights.keys()} == {2}  # noqa: SIM118
    contract = Contract.load(str(out / "model"))
    assert contract is not None
    assert (contract.context_size, contract.rope_factor, contract.template_name) == (768, 2.0, "llama2")
    tokenizer = model.config.vocab_size
    assert tokenizer == 260  # <unk> and [PAD] were missing


def test_the_model_card_states_data_losses_and_use(finished):
    out, _ = finished
    card, manifest = (out / "model" / "README.md").read_text(), json.loads((out / "manifest.json").read_text())
    for name in ("train.json", "eval.json"):
        content = (out.parent / name).read_bytes()
        assert f"- `{name}`: SHA-256 `{hashlib.sha256(content).hexdigest()}`, {len(content):,} bytes" in card
    assert "- 16 examples, " in card
    held_out = manifest["evaluation"]
    for step, when in ((0, "before"), (STEPS, "after")):
        assert f"| {step} | {held_out[f'loss_{when}']:.4f} | {held_out[f'perplexity_{when}']:,.2f} |" in card
    assert f"| training, first | 1 | {manifest['loss_first']:.4f} |" in card
    assert f"| training, last | {STEPS} | {manifest['loss_last']:.4f} |" in card
    assert "- Global batch: 4 examples (1 per process × 2 accumulated × 2 processes)" in card
    assert "- DeepSpeed ZeRO stage 3" in card
    assert str(out.parent.parent) not in card


def test_the_python_example_of_the_card_runs(finished):
    """On the folder itself, it gives the tokens of training's prompt, and the model knows where an answer ends."""
    out, _ = finished
    script = re.search(r"```python\n(.*?)\n```", (out / "model" / "README.md").read_text(), re.S)[1]
    found = {}
    exec(script.replace("MODEL_FOLDER", str(out / "model")), found)
    tokenizer, contract = load_tokenizer(str(out / "model"), ""), Contract.load(str(out / "model"))
    ids = found["inputs"]["input_ids"][0].tolist()
    assert ids == prompt_ids(contract.template.render(**found["fields"]), tokenizer)
    assert found["output"].shape[1] > len(ids)
    assert found["model"].generation_config.eos_token_id == tokenizer.hf.eos_token_id == 1


def test_generation_keeps_to_the_contract(finished, tmp_path):
    out, _ = finished
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(1)])
    args = ("generate", "--file_path", papers, "--base_model", out / "model", "--output_dir", tmp_path / "g")
    refused = qaray(*args, "--context_size", "1024")
    assert refused.returncode == 2
    assert "context_size 1024 exceeds the 768 tokens that" in refused.stderr


def test_a_finished_run_does_nothing_again_and_another_is_refused(finished, tiny_model):
    out, _ = finished
    data, more = out.parent / "train.json", ("--eval_data_path", out.parent / "eval.json")
    done = fine_tune(tiny_model, data, out, *FLAGS, *more)
    assert done.returncode == 0, done.stderr
    assert "this run is finished" in done.stderr
    other = fine_tune(tiny_model, data, out, *FLAGS, *more, "--learning_rate", "1e-3")
    assert other.returncode == 2
    assert "was started with other settings (training:" in other.stderr


def test_low_rank_training_without_deepspeed_is_merged(tmp_path, tiny_model):
    """LongLoRA's way: adapters on the projections, embeddings and norms in full; the export is a plain model."""
    import torch
    from transformers import AutoModelForCausalLM

    data, out, notes = write_examples(tmp_path / "train.json", 8), tmp_path / "out", tmp_path / "reads"
    notes.mkdir()
    with recorded_reads(notes):
        done = fine_tune(
            tiny_model, data, out, "--low_rank_training", "True", "--num_train_epochs", "2", "--save_steps", "100",
            "--learning_rate", "1e-2", "--warmup_steps", "0",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(FineTuneConfig.flags()) - reads(notes) <= {
        "address"
    }  # the session is connected: tests/ray/test_flags.py
    curve = losses(out)
    assert curve[-1][1] < curve[0][1]
    before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.bfloat16).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name][: len(before[name])])}
    assert {name.split(".")[-2] for name in changed} >= {"q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens"}
    assert not [name for name in changed if "mlp" in name]


MISTAKES = [
    (("--save_only_model", "True"), "--save_only_model is not supported"),
    (("--output_dir", "s3://bucket/x"), "only --storage_path"),
    (("--model_max_length", "0"), "model_max_length"),
    (("--deepspeed", "nowhere.json"), "nowhere.json: no such file"),
    (("--deepspeed", "README.md"), "not valid JSON"),
    (("--deepspeed", "BATCH"), "train_micro_batch_size_per_gpu is 4 but --per_device_train_batch_size gives 1"),
    (("--no_such_flag", "1"), "no such option: --no_such_flag: not a flag of fine-tune nor of TrainingArguments"),
    (("--learning_rate", "hot"), "learning_rate"),
    (("--data_path", "nowhere.json"), "nowhere.json"),
    (("--model_name_or_path", "./nowhere"), "model ./nowhere: no such folder"),
    (("--prompt_template", "nowhere.txt"), "nowhere.txt"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_are_one_line_before_any_worker_starts(tmp_path, tiny_model, flags, message):
    batch = tmp_path / "batch.json"
    batch.write_text('{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3}}')
    flags = [str(batch) if flag == "BATCH" else flag for flag in flags]
    done = fine_tune(tiny_model, write_examples(tmp_path / "train.json", 2), tmp_path / "out", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "training.json").exists()
    assert "Traceback" not in done.stdout
