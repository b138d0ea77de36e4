"""The transformers engine against the plain loop, and the whole command against the engine alone.

    ratio generation_vs_sequential   seconds of the loop (one prompt, model.generate, next) / seconds of the engine
    ratio pipeline_overhead          seconds of `qaray generate` / seconds of the engine on the same prompts

The prompts are the same, and so are the numbers of generated tokens: the end of text is forbidden. Each part runs in
a process of its own, with the same threads and dtype; loading is not counted. The command's start-up (Ray, imports,
loading, writing outputs) is that of the same command on one paper of a few words, and is taken off.

    python benchmarks/generation.py [--papers PATH] [--number 16] [--tokens 700] [--plain 4] [--threads N]
        [--parts sequential,…]

With --plain 4 the loop is timed on four of the prompts, and generation_vs_sequential is an estimate. The environment
variable QARAY_BENCH_MODEL names another model. With --threads every part computes on so many, by default on all cores:
with fewer, Ray's own processes have a core to themselves, and pipeline_overhead is what the pipeline itself adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from statistics import median

MODEL = os.environ.get("QARAY_BENCH_MODEL", "bundled:smollm2-135m")
WORDS = 3200  # of a paper: the mean of thirty papers of the original's corpus


def corpus(path: str | None, number: int) -> list[dict]:
    """``number`` papers of real length: those of ``path``, or the sample papers brought to it by one another's text."""
    if path:
        from qaray.corpus.readers.dispatch import SUFFIXES, read_records
        from qaray.corpus.records import paper_fields
        from qaray.run.storage import expand

        found = [paper_fields(r.value) for f in expand(path, SUFFIXES) for r in read_records(f) if r.problem is None]
        return found[:number]
    sample = json.loads((resources.files("qaray") / "sample" / "papers.json").read_text())
    papers = []
    for i in range(number):
        first, second = sample[i % len(sample)], sample[(i + 1 + i // len(sample)) % len(sample)]
        missing = max(0, WORDS - len(first["txt"].split()))
        text = first["txt"] + "\n\n" + " ".join(second["txt"].split(" ")[:missing])
        papers.append({**first, "doi": f"bench/{i}", "txt": text})
    return papers


def flags(tokens: int) -> dict:
    """The settings that all parts share."""
    return {
        "base_model": MODEL,
        "num_qas": 5,
        "max_gen_len": tokens,
        "min_gen_len": tokens,
        "max_attempts": 1,
        "seed": 0,
        "engine": "transformers",
    }


def prompts_of(papers: list[dict], tokens: int) -> list[dict]:
    from qaray.config import GenerateConfig
    from qaray.generate.rounds import BuilderFactory
    from qaray.models.planner import plan_model

    config = GenerateConfig(file_path="-", output_dir="-", **flags(tokens))
    build = BuilderFactory(config, plan_model(config))()
    rows = [prompt for i, paper in enumerate(papers) for prompt in build({**paper, "row": i}, "bench")]
    return sorted(rows, key=lambda row: -row["prompt_tokens"])


def sequential(prompts: list[dict], tokens: int, timed: int = 0, threads: int | None = None) -> dict:
    """One prompt at a time through ``model.generate``, as the original did.

    With ``timed`` so many of the prompts, evenly spaced in their order of length, stand for all: an estimate.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from qaray.engines.local.cpu import default_threads
    from qaray.models.catalogue import resolve
    from qaray.models.hardware import pick_dtype

    torch.set_num_threads(threads or default_threads(1))
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(resolve(MODEL, "./cache"), dtype=pick_dtype("auto", device)).to(device)
    options = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "pad_token_id": 2}
    timed = min(timed or len(prompts), len(prompts))
    share = len(prompts) / timed
    model.generate(torch.tensor([prompts[0]["token_ids"][:64]], device=device), max_new_tokens=4, **options)
    begun = time.perf_counter()
    written = 0
    for place in range(timed):
        prompt = prompts[int((place + 0.5) * share)]
        ids = torch.tensor([prompt["token_ids"]], device=device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, **options
        )
        written += out.shape[1] - ids.shape[1]
    seconds = time.perf_counter() - begun
    return {"seconds": seconds * share, "tokens": round(written * share), "timed": timed, "of": len(prompts)}


def loaded(tokens: int, threads: int | None = None) -> tuple:
    """(configuration, model)."""
    from qaray.config import GenerateConfig
    from qaray.engines.local.causal_lm import CausalLM, ModelSettings
    from qaray.models.planner import plan_model

    config = GenerateConfig(file_path="-", output_dir="-", **flags(tokens))
    return config, CausalLM(ModelSettings(MODEL, config.model.cache_dir, plan_model(config).seq_len, threads=threads))


def engine(prompts: list[dict], tokens: int, threads: int | None = None) -> dict:
    """The engine alone: what an actor does, without Ray."""
    from qaray.engines.local.batching import ContinuousBatcher
    from qaray.engines.local.engine import MAX_BATCH
    from qaray.engines.local.sampling import Sampling

    config, model = loaded(tokens, threads)
    sampling = Sampling(config.sampling.temperature, config.sampling.top_p, config.sampling.seed, tokens)
    batcher = ContinuousBatcher(model, sampling, MAX_BATCH[model.device.type])
    begun = time.perf_counter()
    done = batcher.complete_all(prompts)
    seconds = time.perf_counter() - begun
    batcher.close()
    return {**batcher.figures(), "seconds": seconds, "tokens": sum(row["output_tokens"] for row in done)}


def rates(prompts: list[dict], tokens: int, threads: int | None = None) -> dict:
    """Prefill and decode rates measured apart, tokens/s: the median prompt alone, and all slots half-way through."""
    from qaray.engines.local.engine import MAX_BATCH

    _, model = loaded(tokens, threads)
    ids = prompts[len(prompts) // 2]["token_ids"]
    slots = min(MAX_BATCH[model.device.type], len(prompts))
    model.cache.shape(slots, len(ids) + tokens)
    begun = time.perf_counter()
    model.prefill(0, ids)
    prefill = time.perf_counter() - begun
    model.cache.shape(slots, len(ids) + tokens // 2 + 8)
    model.decode([5] * slots, [len(ids) + tokens // 2] * slots)
    begun = time.perf_counter()
    for step in range(5):
        model.decode([5] * slots, [len(ids) + tokens // 2 + step] * slots)
    decode = time.perf_counter() - begun
    return {
        "seconds": prefill + decode,
        "tokens": 5 * slots,
        "prefill_rate": len(ids) / prefill,
        "decode_rate": 5 * slots / decode,
    }


def pipeline(papers: list[dict], tokens: int, threads: int | None = None) -> dict:
    """The whole command, in a process of its own; its start-up is that of a paper of a few words, at the second run."""
    more = [f"--threads_per_actor={threads}"] if threads else []
    tiny = {"doi": "tiny", "txt": "Water boils at 100 °C at a pressure of 1 atm.", "keywords": ["water"]}
    command([tiny], 1, *more)  # what it reads from the disk is in memory afterwards, for both that are timed
    start = command([tiny], 1, *more)["seconds"]
    whole = command(papers, tokens, *more)
    return {**whole, "seconds": whole["seconds"] - start, "start_seconds": start}


def command(papers: list[dict], tokens: int, *more: str) -> dict:
    """Runs `qaray generate` with ``more`` flags; its seconds and the tokens that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "papers.json", Path(folder) / "out"
        file.write_text(json.dumps(papers))
        options = [f"--{k}={v}" for k, v in {**flags(tokens), "file_path": file, "output_dir": out}.items()]
        begun = time.perf_counter()
        line = [sys.executable, "-m", "qaray.cli", "generate", *options, *more, "--no_progress"]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        return {
            "seconds": seconds,
            "tokens": json.loads((out / "manifest.json").read_text())["tokens"]["outputs"],
        }


def part(name: str, options: argparse.Namespace) -> dict:
    """Runs one part in a process of its own."""
    line = [
        sys.executable,
        __file__,
        "--part",
        name,
        "--number",
        str(options.number),
        "--tokens",
        str(options.tokens),
        "--plain",
        str(options.plain),
    ]
    line += ["--papers", options.papers] if options.papers else []
    line += ["--threads", str(options.threads)] if options.threads else []
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    say(name, result)
    return result


def say(name: str, result: dict) -> None:
    estimated = f", from {result['timed']} prompts of {result['of']}" if result.get("timed") != result.get("of") else ""
    print(f"{name}: {result['seconds']:.1f} s for {result['tokens']} tokens{estimated}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers")
    parser.add_argument("--number", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=700)
    parser.add_argument("--plain", type=int, default=0, help="prompts that the plain loop is timed on; default: all")
    parser.add_argument("--threads", type=int, help="of every part; default: the cores")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--parts", default="sequential,engine,pipeline")
    parser.add_argument("--part")
    options = parser.parse_args()
    if options.part:
        papers, tokens, threads = corpus(options.papers, options.number), options.tokens, options.threads
        work = {
            "sequential": lambda: sequential(prompts_of(papers, tokens), tokens, options.plain, threads),
            "engine": lambda: engine(prompts_of(papers, tokens), tokens, threads),
            "rates": lambda: rates(prompts_of(papers, tokens), tokens, threads),
            "pipeline": lambda: pipeline(papers, tokens, threads),
        }
        print(json.dumps(work[options.part]()))
        return
    rounds = [{name: part(name, options) for name in options.parts.split(",")} for _ in range(options.repeat)]
    if "engine" in rounds[0]:
        report(rounds, part("rates", options))


def report(rounds: list[dict], apart: dict) -> None:
    direct = rounds[0]["engine"]
    prefill, decode = apart["prefill_rate"], apart["decode_rate"]
    print(f"measured apart: prefill {prefill:.0f} tokens/s, decode with all slots {decode:.1f} tokens/s")
    for name, over, under in (
        ("generation_vs_sequential", "sequential", "engine"),
        ("pipeline_overhead", "pipeline", "engine"),
    ):
        if over not in rounds[0]:
            continue
        assert all(r[over]["tokens"] == r[under]["tokens"] for r in rounds), "token counts differ"
        found = [r[over]["seconds"] / r[under]["seconds"] for r in rounds]
        print(f"ratio {name} {median(found):.3f} (of {len(found)}, {min(found):.3f} to {max(found):.3f})")
    if "sequential" in rounds[0]:
        floor = direct["prefill_tokens"] / prefill + direct["tokens"] / decode
        print(f"ceiling of generation_vs_sequential at these rates {rounds[0]['sequential']['seconds'] / floor:.3f}")
    if "pipeline" in rounds[0]:
        print(f"start-up of the command, taken off: {rounds[0]['pipeline']['start_seconds']:.1f} s")


if __name__ == "__main__":
    main()
