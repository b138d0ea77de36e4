"""The demo: the main job on the sample papers with the two bundled models, as a newcomer runs it."""

from __future__ import annotations

from importlib import resources

from qaray.config import DemoConfig, EvaluateConfig, GenerateConfig
from qaray.pipeline import run_evaluate, run_generate

# The bundled model has 135 million parameters and loses the thread in long contexts: windows of 2,048 tokens share out
# the pairs of a paper. A window is asked for one or two pairs: an answer that has not ended after 200 tokens is running
# in circles. As a judge, where it is hardly better than chance, it reads the first thousand tokens of a paper: most of
# the demo's time is reading, which a CPU without bfloat16 does at some 350 tokens a second.
SEQ_LEN = 2048
JUDGE_SEQ_LEN = 1024


def demo_config(config: DemoConfig) -> GenerateConfig:
    """What the demo generates."""
    return GenerateConfig(
        file_path=str(resources.files("qaray") / "sample" / "papers.json"),
        base_model="bundled:smollm2-135m",
        output_dir=config.output_dir,
        cache_dir=config.cache_dir,
        seq_len=SEQ_LEN,
        overlength="split",
        num_qas=config.num_qas,
        max_gen_len=config.max_gen_len,
        no_progress=config.no_progress,
    )


def run_demo(config: DemoConfig) -> str:
    """Runs the demo; returns the path of its report."""
    run_generate(demo_config(config))
    run_evaluate(
        EvaluateConfig(
            output_dir=config.output_dir,
            cache_dir=config.cache_dir,
            seq_len=JUDGE_SEQ_LEN,
            no_progress=config.no_progress,
        )
    )
    return f"{config.output_dir.rstrip('/')}/report/index.html"
