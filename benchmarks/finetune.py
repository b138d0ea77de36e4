"""Fine-tuning against a plain script: transformers' Trainer, full attention, padded batches, logits everywhere.

    ratio finetune_tokens_per_second           tokens a second, ours / plain: 8,192 tokens, S²-Attn in groups of 2,048
    ratio finetune_tokens_per_second_natural   the same at mixed lengths in batches of two, groups by the rule (8,192)
    ratio finetune_peak_memory                 peak of a process, ours / plain, at 8,192 tokens
    ratio s2_attention_vs_full_2k … _16k       seconds forward and backward, full / S²-Attn in groups of a quarter

Both train the same Llama (random weights, 32,000 tokens of vocabulary) on the same tokens with gradient checkpointing:
a small one in two gloo processes of one thread each or, where there is a GPU, one of 1.1 billion parameters in bfloat16
in one process. The first step is not counted.

    python benchmarks/finetune.py [--steps 4] [--parts attention,exact,natural]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

LENGTH, GROUP, ANSWER = 8192, 2048, 800  # tokens
VOCABULARY = 32_000
NATURAL = (2800, 8000)  # tokens of a prompt with its answer: the range of thirty examples of the original's kind


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def processes() -> int:
    return 1 if on_gpu() else 2


def write_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {
        token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "[PAD]", *(f"w{i}" for i in range(VOCABULARY - 4))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    hidden, inner, layers, heads, kv_heads = (2048, 8192, 16, 32, 8) if on_gpu() else (384, 1024, 4, 6, 2)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=LENGTH, bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_examples(folder: Path, lengths: list[int]) -> None:
    import pyarrow as pa

    from qaray.schema import EXAMPLE_SCHEMA, table

    numbers = random.Random(0)
    rows = [
        {
            "id": f"bench:{i}",
            "input_ids": [numbers.randrange(4, VOCABULARY) for _ in range(length)],
            "prompt_tokens": length - ANSWER,
            "truncated_tokens": 0,
        }
        for i, length in enumerate(lengths)
    ]
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "0000.arrow"), "wb") as stream, pa.ipc.new_file(stream, EXAMPLE_SCHEMA) as writer:
        writer.write_table(table(rows, EXAMPLE_SCHEMA))


def work(job: dict) -> dict:
    """One training process of either way."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

    from qaray.asking.templates import LLAMA2, Template
    from qaray.config import FineTuneConfig
    from qaray.finetune.arguments import training_arguments
    from qaray.finetune.callback import RunCallback
    from qaray.finetune.examples import Collator, Examples
    from qaray.finetune.loop import LoopSettings, make_trainer
    from qaray.models.planner import ModelPlan
    from qaray.run.storage import Location

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append(time.perf_counter())

    gpu = on_gpu()
    if not gpu:
        torch.set_num_threads(1)
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    flags = {
        "per_device_train_batch_size": str(job["batch"]), "max_steps": str(job["steps"]), "save_strategy": "no",
        "learning_rate": "1e-4", "logging_steps": "1000", "report_to": "none", "bf16": str(gpu),
    }  # fmt: skip
    arguments = training_arguments(flags, job["folder"] + f"/{job['way']}{os.environ['RANK']}", None, use_cpu=not gpu)
    folder, watch = Location.of(job["examples"]), Stopwatch()
    if job["way"] == "ours":
        config = FineTuneConfig(
            model_name_or_path=job["model"], data_path="-", output_dir="-", model_max_length=LENGTH,
            s2_group_size=job["group"],
        )  # fmt: skip
        plan = ModelPlan(Template("llama2", LLAMA2), LENGTH, LENGTH, 1.0)
        settings = LoopSettings(
            config, plan, flags, None, False, folder, None, Location.of(job["folder"]) / "log.json", {}, "", None
        )
        trainer = make_trainer(settings, arguments, RunCallback(settings))
        trainer.remove_callback(RunCallback)  # it reports to Ray Train, which is not here
    else:
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(job["model"], attn_implementation="sdpa"), args=arguments,
            train_dataset=Examples(folder), data_collator=Plain(Collator(3, all_logits=True)),
        )  # fmt: skip
    trainer.add_callback(watch)
    loaded = peak_mib()
    trainer.train()
    lengths = Examples(folder).lengths
    each = job["batch"] * processes() * sum(lengths) / len(lengths)
    return {
        "tokens_per_second": each * (len(watch.marks) - 1) / (watch.marks[-1] - watch.marks[0]),
        "peak_mib": peak_mib(),
        "loaded_mib": loaded,
    }


def peak_mib() -> float:
    """Of this process: memory of the GPU, else of the machine."""
    import torch

    if on_gpu():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Plain:
    """A plain script's collator: no index of examples."""

    def __init__(self, collate: object) -> None:
        self.collate = collate

    def __call__(self, examples: list) -> dict:
        return {name: tensor for name, tensor in self.collate(examples).items() if name != "index"}


def run(way: str, **job: object) -> dict:
    """The processes of one way; what rank 0 measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(processes()):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes()),
            "LOCAL_WORLD_SIZE": str(processes()), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        line = [sys.executable, __file__, "--job", json.dumps({"way": way, **job})]
        with open(Path(str(job["folder"]), f"stderr{rank}"), "w") as errors:
            started.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True))
    outputs = [process.communicate()[0] for process in started]
    for rank, process in enumerate(started):
        if process.returncode:
            errors = Path(str(job["folder"]), f"stderr{rank}").read_text()
            raise SystemExit(f"{way}, process {rank}:\n{errors[-3000:]}")
    found = json.loads(outputs[0].strip().splitlines()[-1])
    print(
        f"{way}: {found['tokens_per_second']:.0f} tokens/s, peak {found['peak_mib']:.0f} MiB a process "
        f"({found['loaded_mib']:.0f} before the first step)", flush=True,
    )  # fmt: skip
    return found


def attention(length: int) -> float:
    """Seconds forward and backward of one layer of 9 heads and 3 key-value heads of 64 (32 and 8 on a GPU): full /
    S²-Attn."""
    import torch
    from torch import nn

    from qaray.finetune.attention import s2_attention

    torch.set_num_threads(2)
    torch.manual_seed(0)
    place = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu() else {}
    heads = (32, 8, 8) if on_gpu() else (9, 3, 3)
    query, key, value = (torch.randn(1, h, length, 64, requires_grad=True, **place) for h in heads)
    layer = nn.Module().train()
    seconds = {}
    for name, group in (("full", 4 * length), ("s2", length // 4)):
        times = []
        for _ in range(20 if on_gpu() else 3):
            begun = time.perf_counter()
            s2_attention(layer, query, key, value, None, group=group)[0].sum().backward()
            if on_gpu():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        seconds[name] = median(times)
    return seconds["full"] / seconds["s2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--parts", default="attention,exact,natural")
    parser.add_argument("--job")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(work(json.loads(options.job))))
        return
    parts = options.parts.split(",")
    for length in (2048, 4096, 8192, 16384) if "attention" in parts else ():
        print(f"ratio s2_attention_vs_full_{length // 1024}k {attention(length):.2f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        write_examples(Path(folder) / "exact", [LENGTH] * processes() * options.steps)
        numbers = random.Random(1)
        write_examples(
            Path(folder) / "natural", [numbers.randint(*NATURAL) for _ in range(2 * processes() * options.steps)]
        )
        shared = {"folder": folder, "model": f"{folder}/model", "steps": options.steps}
        exact = {**shared, "examples": f"{folder}/exact", "batch": 1, "group": GROUP}
        natural = {**shared, "examples": f"{folder}/natural", "batch": 2, "group": None}
        jobs = {name: job for name, job in (("exact", exact), ("natural", natural)) if name in parts}
        found = {name: {way: run(way, **job) for way in ("plain", "ours")} for name, job in jobs.items()}
    for name, both in found.items():
        ending = "" if name == "exact" else "_natural"
        speed = both["ours"]["tokens_per_second"] / both["plain"]["tokens_per_second"]
        print(f"ratio finetune_tokens_per_second{ending} {speed:.3f}")
        if name == "exact":
            print(f"ratio finetune_peak_memory {both['ours']['peak_mib'] / both['plain']['peak_mib']:.3f}")


if __name__ == "__main__":
    main()
