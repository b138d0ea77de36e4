"""The vLLM engine: the whole command against the bare engine, and against the plain loop.

    ratio vllm_pipeline_vs_raw   papers a second of `qaray generate --engine vllm` / of vllm.LLM.generate, the same
                                 prompts handed over at once
    ratio vllm_vs_sequential     seconds of the plain loop (one prompt, transformers' model.generate, next) / of the
                                 command

Prompts and numbers of generated tokens are the same. Each part runs in a process of its own; start-up is taken off: the
command's is that of the same command on one paper of a few words. It also measures what bounds them, the machine's
product of matrices and its memory, and which share prefill and decoding reach. Run it where vLLM is installed
(`make test-vllm` makes such an environment):

    .venv-vllm/bin/python benchmarks/vllm_engine.py [--papers PATH] [--number 16] [--tokens 300] [--plain 4] [--parts …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

from generation import MODEL, command, corpus, prompts_of, say, sequential

PARTS = "roofline,raw,pipeline,sequential"


def engine_arguments() -> tuple[str, dict, dict]:
    """(model folder, arguments, environment) that the command gives to vLLM on this machine."""
    from qaray.config import GenerateConfig
    from qaray.engines.vllm import VLLMEngine
    from qaray.engines.worker import inspect_this
    from qaray.models.catalogue import resolve
    from qaray.models.planner import plan_model
    from qaray.run.directory import Run
    from qaray.run.tries import Tries

    config = GenerateConfig(file_path="-", output_dir="-", base_model=MODEL, engine="vllm")
    tries = Tries.of(Run.at(config.output_dir))
    engine = VLLMEngine(config, plan_model(config), inspect_this(config, 0.0), lambda: False, tries)
    return resolve(MODEL, config.model.cache_dir), engine._engine_kwargs(), engine._environment()


def raw(prompts: list[dict], tokens: int) -> dict:
    import os

    model, arguments, environment = engine_arguments()
    os.environ.update(environment)
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, disable_log_stats=False, **arguments)
    params = [
        SamplingParams(temperature=0.6, top_p=0.9, seed=i, max_tokens=tokens, min_tokens=tokens)
        for i in range(len(prompts))
    ]
    llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=2), use_tqdm=False)
    asked = [{"prompt_token_ids": prompt["token_ids"]} for prompt in prompts]
    begun = time.perf_counter()
    done = llm.generate(asked, params, use_tqdm=False)
    seconds = time.perf_counter() - begun
    spans = [(d.metrics.scheduled_ts, d.metrics.first_token_ts, d.metrics.last_token_ts) for d in done]
    return {
        "seconds": seconds,
        "tokens": sum(len(d.outputs[0].token_ids) for d in done),
        "prefilled": sum(len(p["token_ids"]) for p in prompts),
        "prefill_seconds": union([(a, b) for a, b, _ in spans]),
        "decode_seconds": union([(b, c) for _, b, c in spans]),
        "summed_decode": sum(c - b for _, b, c in spans),
        "context": sum((len(p["token_ids"]) + tokens / 2) * tokens for p in prompts),
        "attended": sum(len(p["token_ids"]) ** 2 / 2 for p in prompts),
    }


def union(spans: list[tuple[float, float]]) -> float:
    from qaray.generate.ledger import Spans

    found = Spans()
    found.add(spans)
    return found.seconds


def roofline() -> dict:
    """FLOP/s of products of matrices as large as a prefill's, in the engine's dtype, and bytes/s read from memory."""
    import torch

    from qaray.models.hardware import cores, pick_dtype

    torch.set_num_threads(cores())
    dtype = pick_dtype("auto", torch.device("cpu"))
    left, right = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    memory = torch.randn(1 << 27)  # 512 MiB: far beyond the caches
    product = best(lambda: left @ right)
    read = best(lambda: memory.sum())
    return {
        "seconds": product,
        "tokens": 0,
        "flops": 2 * 2048**3 / product,
        "bytes": memory.numel() * 4 / read,
        "dtype": str(dtype).removeprefix("torch."),
    }


def best(work) -> float:
    work()
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def pipeline(papers: list[dict], tokens: int) -> dict:
    tiny = {"doi": "tiny", "txt": "Water boils at 100 °C at a pressure of 1 atm.", "keywords": ["water"]}
    start = command([tiny], 1, "--engine=vllm")["seconds"]
    whole = command(papers, tokens, "--engine=vllm")
    return {**whole, "seconds": whole["seconds"] - start, "start_seconds": start}


def part(name: str, options: argparse.Namespace) -> dict:
    line = [sys.executable, __file__, "--part", name, "--number", str(options.number), "--tokens", str(options.tokens)]
    line += ["--plain", str(options.plain), *(["--papers", options.papers] if options.papers else [])]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    say(name, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers")
    parser.add_argument("--number", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--plain", type=int, default=0, help="prompts that the plain loop is timed on; default: all")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--part")
    options = parser.parse_args()
    if options.part:
        papers = [] if options.part == "roofline" else corpus(options.papers, options.number)
        work = {
            "raw": lambda: raw(prompts_of(papers, options.tokens), options.tokens),
            "sequential": lambda: sequential(prompts_of(papers, options.tokens), options.tokens, options.plain),
            "pipeline": lambda: pipeline(papers, options.tokens),
            "roofline": roofline,
        }
        print(json.dumps(work[options.part]()))
        return
    report([{name: part(name, options) for name in options.parts.split(",")} for _ in range(options.repeat)])


def report(rounds: list[dict]) -> None:
    for name, over, under in (
        ("vllm_pipeline_vs_raw", "raw", "pipeline"),
        ("vllm_vs_sequential", "sequential", "pipeline"),
    ):
        if over in rounds[0] and under in rounds[0]:
            assert all(r[over]["tokens"] == r[under]["tokens"] for r in rounds), "token counts differ"
            print(f"ratio {name} {median(r[over]['seconds'] / r[under]['seconds'] for r in rounds):.3f}")
    if "raw" in rounds[0] and "roofline" in rounds[0]:
        bounds(rounds[0]["raw"], rounds[0]["roofline"])


def bounds(run: dict, machine: dict) -> None:
    """Which share of the machine's rates vLLM reaches while prompts are read, and while answers are written."""
    from qaray.config import GenerateConfig
    from qaray.models.shape import model_shape

    dtype = machine["dtype"]
    shape = model_shape(GenerateConfig(file_path="-", output_dir="-", base_model=MODEL), dtype)
    print(f"this machine: {machine['flops'] / 1e9:.0f} GFLOP/s in {dtype}, {machine['bytes'] / 1e9:.1f} GB/s")
    flops = 2 * shape.parameters * run["prefilled"] + 4 * shape.layers * shape.width * run["attended"]
    print(
        f"prefill: {run['prefilled'] / run['prefill_seconds']:.0f} tokens/s, "
        f"{flops / run['prefill_seconds'] / machine['flops']:.0%} of the FLOP/s; "
        f"at all of them {flops / machine['flops']:.0f} s"
    )
    steps = run["tokens"] * run["decode_seconds"] / run["summed_decode"]
    read = steps * shape.weight_bytes + run["context"] * shape.kv_bytes
    print(
        f"decode: {run['tokens'] / run['decode_seconds']:.0f} tokens/s while answers are written, "
        f"{read / run['decode_seconds'] / machine['bytes']:.0%} of the memory's bandwidth"
    )


if __name__ == "__main__":
    main()
