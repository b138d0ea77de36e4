"""The evaluation against the plain ways, on the same papers in the same run.

    ratio similarity_judge_vs_generate   seconds a judgement: one prompt, `generate` of 128 tokens, next / ours
    ratio racar_shared_prefix            seconds a judgement: paper and rubric read anew each time / ours
    ratio coverage_vs_notebook           one padded float32 batch a paper / ours
    ratio coverage_vs_encode             one bare `encode` over all texts, same precision / the whole command

Judgements are one order of one question pair, and one dimension of one pair. The plain ways are timed on a few of them.
Loading is not counted; the command's start-up, that of the same command on one paper of a few words, is taken off. The
command has an embedding actor of one thread for each core.

    python benchmarks/evaluation.py [--papers PROCESSED_OUTPUT] [--number 6] [--copies 60] [--parts similarity,racar,…]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from generation import corpus

from qaray.config import EvaluateConfig
from qaray.models.planner import plan_model

MODEL = "bundled:smollm2-135m"
PARTS = ("similarity", "racar", "notebook", "encode")


def measured_papers(path: str | None, number: int) -> list[dict[str, Any]]:
    """Papers of real length with ten pairs: those of ``path``, or the sample papers with pairs of the echo engine's."""
    from qaray.corpus.readers.dispatch import SUFFIXES, read_records
    from qaray.corpus.records import paired_fields
    from qaray.engines.echo import echo_pairs
    from qaray.run.storage import expand

    if path:
        found = [paired_fields(r.value) for file in expand(path, SUFFIXES) for r in read_records(file) if not r.problem]
        papers = [{"doi": f["doi"], "keywords": f["keywords"], "txt": f["txt"], "Q&A": f["pairs"]} for f in found]
    else:
        papers = corpus(None, number)
        for paper in papers:
            paper["Q&A"] = [{"Q": q, "A": a} for q, a in echo_pairs(paper["txt"], 10)]
    return papers[:number]


def judge(papers: list[dict[str, Any]]) -> tuple[Any, Any, list[Any]]:
    """(scorer, prompts, papers as rows) of the bundled judge."""
    from qaray.engines.local.causal_lm import CausalLM, ModelSettings
    from qaray.engines.local.scoring import Scorer
    from qaray.evaluate.rubrics import JudgePrompts

    config = EvaluateConfig(output_dir="-")
    found = plan_model(config)
    model = CausalLM(ModelSettings(MODEL, config.model.cache_dir, found.seq_len))
    prompts = JudgePrompts(replace(found.template, opening=""), model.tokenizer, found.seq_len)
    rows = [
        {"doi": p["doi"], "shard": "s", "digest": "", "title": None, "txt": p["txt"], "pairs": p["Q&A"]} for p in papers
    ]
    return Scorer(model), prompts, rows


def plain_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from qaray.models.catalogue import resolve
    from qaray.models.hardware import pick_dtype

    dtype = pick_dtype("auto", torch.device("cpu"))
    return AutoModelForCausalLM.from_pretrained(resolve(MODEL, "./cache"), dtype=dtype)


def similarity(papers: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    scorer, prompts, rows = judge(papers)
    requests = [prompts.similarity(row, np.ones((len(row["pairs"]),) * 2), [])[0] for row in rows]
    scorer.logprobs(requests[0]["prefix"], requests[0]["suffixes"][:4], requests[0]["choices"])
    read, begun = scorer.computed, time.perf_counter()
    for request in requests:
        scorer.logprobs(request["prefix"], request["suffixes"], request["choices"])
    ours = time.perf_counter() - begun
    count = sum(len(request["suffixes"]) for request in requests)
    model, plain, lengths = plain_model(), [], []
    for suffix in requests[0]["suffixes"][:5]:
        ids = torch.tensor([scorer.model.tokenizer.encode(requests[0]["prefix"] + suffix)])
        lengths.append(ids.shape[1])
        begun = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=128, min_new_tokens=128, do_sample=True,
            pad_token_id=2,
        )  # fmt: skip
        plain.append(time.perf_counter() - begun)
    print(
        f"similarity: {count} judgements in {ours:.1f} s, {(scorer.computed - read) / count:.1f} tokens read for each"
    )
    print(f"  plain: {median(plain):.2f} s for a prompt of {mean(lengths):.0f} tokens and 128 generated ones")
    return {"similarity_judge_vs_generate": median(plain) / (ours / count)}


def racar(papers: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    scorer, prompts, rows = judge(papers)
    requests = [prompts.racar(row, [])[0] for row in rows]
    begun = time.perf_counter()
    answers = [scorer.logprobs(r["prefix"], r["suffixes"], r["choices"]) for r in requests]
    ours = time.perf_counter() - begun
    count = sum(len(request["suffixes"]) for request in requests)
    prefixes = sum(len(scorer.model.tokenizer.encode(request["prefix"])) for request in requests)
    model, plain, gaps, lengths, place = plain_model(), [], [], [], len(requests) // 2
    encode = scorer.model.tokenizer.encode
    for number, suffix in list(enumerate(requests[place]["suffixes"]))[:5]:
        ids = torch.tensor([encode(requests[place]["prefix"] + suffix)])
        lengths.append(ids.shape[1])
        begun = time.perf_counter()
        with torch.inference_mode():
            logits = model(ids, logits_to_keep=1).logits[0, -1].float()
        plain.append(time.perf_counter() - begun)
        wanted = logits.log_softmax(-1)[[encode(choice)[0] for choice in requests[place]["choices"]]].softmax(-1)
        found = np.exp(answers[place][number]) / np.exp(answers[place][number]).sum()
        gaps.append(abs(float(wanted @ torch.arange(1, 6).float()) - float(found @ np.arange(1, 6))))
    suffix_tokens = (scorer.computed - prefixes) / count
    print(
        f"racar: {count} judgements in {ours:.1f} s; {prefixes / len(requests):.0f} tokens of paper and rubric a paper,"
    )
    print(f"  {suffix_tokens:.1f} tokens for each judgement after it;", end=" ")
    print(f"plain: {median(plain):.2f} s, {mean(lengths):.0f} tokens")
    each = prefixes / count + suffix_tokens
    print(
        f"  bound set by the tokens read: {mean(lengths) / each:.1f}; largest gap of an expected grade {max(gaps):.3f}"
    )
    return {"racar_shared_prefix": median(plain) / (ours / count)}


def texts_of(papers: list[dict[str, Any]]) -> list[tuple[list[str], list[str]]]:
    from qaray.corpus.sentences import split_sentences

    return [([f"{p['Q']}\n{p['A']}" for p in paper["Q&A"]], split_sentences(paper["txt"])) for paper in papers]


def notebook(papers: list[dict[str, Any]]) -> dict[str, Any]:
    """A paper's pairs and sentences as one batch, padded to the longest, float32, mean pooling."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from qaray.embedding.embed import PAPERS_PER_BLOCK, settings
    from qaray.embedding.embedders import load_embedder
    from qaray.engines.local.cpu import default_threads
    from qaray.metrics.coverage import coverage
    from qaray.metrics.similarity import unit_vectors
    from qaray.models.catalogue import resolve

    config = EvaluateConfig(output_dir="-")
    embedder = load_embedder(settings(config))
    folder = resolve(config.embedder, config.model.cache_dir)
    texts = texts_of(papers)
    embedder.encode(texts[0][0])
    begun = time.perf_counter()
    ours = []
    for first in range(0, len(texts), PAPERS_PER_BLOCK["cpu"]):  # as an actor takes them
        block = texts[first : first + PAPERS_PER_BLOCK["cpu"]]
        queries, _ = embedder.encode([text for pairs, _ in block for text in pairs])
        documents, _ = embedder.encode([text for _, sentences in block for text in sentences])
        q = d = 0
        for pairs, sentences in block:
            ours.append(queries[q : q + len(pairs)] @ documents[d : d + len(sentences)].T)
            q, d = q + len(pairs), d + len(sentences)
    fast = time.perf_counter() - begun
    torch.set_num_threads(default_threads(1))
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    model(**tokenizer(texts[0][0], padding=True, return_tensors="pt"))
    begun = time.perf_counter()
    plain = []
    for pairs, sentences in texts:
        batch = tokenizer(
            [*pairs, *sentences], padding=True, truncation=True, max_length=embedder.model.max_seq_length,
            return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch.attention_mask[..., None].float()
        vectors = unit_vectors(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        plain.append(vectors[: len(pairs)] @ vectors[len(pairs) :].T)
    slow = time.perf_counter() - begun
    gap = max(float(np.abs(a - b).max()) for a, b in zip(plain, ours, strict=True))
    rates = [coverage(a).overall - coverage(b).overall for a, b in zip(plain, ours, strict=True)]
    print(f"notebook: {slow:.1f} s, ours {fast:.1f} s for {len(texts)} papers; largest gap of a cosine {gap:.4f},")
    print(f"  of an overall coverage {max(map(abs, rates)):.2f}, of the mean {abs(mean(rates)):.4f}")
    return {"coverage_vs_notebook": slow / fast}


def encode(papers: list[dict[str, Any]], copies: int) -> dict[str, Any]:
    """The whole command on ``copies`` of the papers, against `encode` of the same texts in one call."""
    import torch

    from qaray.embedding.embed import settings
    from qaray.embedding.embedders import load_embedder
    from qaray.engines.local.cpu import default_threads

    many = [{**paper, "doi": f"{paper['doi']}#{copy}"} for copy in range(copies) for paper in papers]
    tiny = [{"doi": "tiny", "keywords": [], "txt": "Water boils.", "Q&A": [{"Q": "What boils?", "A": "Water."}]}]
    start = _command(tiny)
    ours = _command(many) - start
    embedder = load_embedder(settings(EvaluateConfig(output_dir="-")))
    texts = [text for pairs, sentences in texts_of(papers) for text in (*pairs, *sentences)] * copies
    torch.set_num_threads(default_threads(1))
    embedder.model.encode(texts[:64], show_progress_bar=False)
    begun = time.perf_counter()
    embedder.model.encode(texts, show_progress_bar=False)
    bare = time.perf_counter() - begun
    print(f"encode: {len(texts)} texts in {bare:.1f} s; the command {ours:.1f} s after a start-up of {start:.1f} s")
    return {"coverage_vs_encode": bare / ours}


def _command(papers: list[dict[str, Any]]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "processed.json"
        file.write_text(json.dumps(papers))
        line = [sys.executable, "-m", "qaray.cli", "evaluate", "--processed_output", str(file), "--metrics", "coverage"]
        cores = len(os.sched_getaffinity(0))  # actors of a thread each wait for nobody
        line += ["--output_dir", f"{folder}/out", "--report_papers", "0", "--no_progress"]
        line += ["--embed_actors", f"{cores}:{cores}"]
        begun = time.perf_counter()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", help="a processed output; default: the sample papers brought to real length")
    parser.add_argument("--number", type=int, default=6, help="papers")
    parser.add_argument("--copies", type=int, default=20, help="of each paper for coverage_vs_encode")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--part", help="run one part in this process")
    options = parser.parse_args()
    if options.part:
        papers = measured_papers(options.papers, options.number)
        work = {"similarity": similarity, "racar": racar, "notebook": notebook}
        found = encode(papers, options.copies) if options.part == "encode" else work[options.part](papers)
        print(json.dumps(found))
        return
    ratios: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        for part in options.parts.split(","):
            line = [sys.executable, __file__, "--part", part, "--number", str(options.number)]
            line += ["--copies", str(options.copies), *(["--papers", options.papers] if options.papers else [])]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()
            print("\n".join(done[:-1]), flush=True)
            for name, value in json.loads(done[-1]).items():
                ratios.setdefault(name, []).append(value)
    for name, values in ratios.items():
        print(f"ratio {name} {median(values):.3f}")


if __name__ == "__main__":
    main()
