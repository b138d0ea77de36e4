"""What qaray uses of libraries beyond their public interface: the table of docs/architecture.md, row by row.

A new release that changes one of these fails here with a sentence, and not in a run on a cluster.
"""

import ctypes
import dataclasses
import inspect
import platform
import re
from pathlib import Path

import pytest
import ray
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero import partition_parameters
from ray.data import DataContext, Dataset, ExecutionOptions
from ray.data.llm import Processor, vLLMEngineProcessorConfig
from ray.llm._internal.batch import stages
from transformers import Cache, LlamaConfig, Trainer
from transformers.masking_utils import create_causal_mask
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qaray.engines.local import kv_cache
from tests.conftest import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_table_names_the_test_of_each_row():
    rows = re.findall(r"^\| `.*\| `(test_\w+)`", PAGE, re.M)
    assert set(rows) <= set(globals())
    mine = {name for name in globals() if name.startswith("test_")} - {"test_the_table_names_the_test_of_each_row"}
    assert mine == set(rows)


def test_ray_data_knows_every_setting():
    ours = {
        "enable_progress_bars", "enable_rich_progress_bars", "use_ray_tqdm", "print_on_execution_start",
        "execution_options", "execution_no_progress_timeout_s", "wait_for_min_actors_s", "autoscaling_config",
        "raise_original_map_exception", "target_max_block_size",
    }  # fmt: skip
    gone = ours - {field.name for field in dataclasses.fields(DataContext)}
    assert not gone, f"Ray Data dropped {gone}, and ignores what it does not know without a word"
    assert hasattr(DataContext().autoscaling_config, "actor_pool_util_upscaling_threshold"), "pools would grow late"
    assert hasattr(ExecutionOptions(), "preserve_order"), "papers would lose their order"


def test_ray_data_hands_out_blocks():
    from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry, RefBundle

    assert hasattr(Dataset, "iter_internal_ref_bundles"), "ingest has no other way to blocks without their data"
    assert "blocks" in {field.name for field in dataclasses.fields(RefBundle)}, "a bundle's blocks are elsewhere"
    assert "ref" in {field.name for field in dataclasses.fields(BlockEntry)}, "a block's reference is elsewhere"


def test_llm_stages_can_be_replaced():
    options = {"engine_kwargs": {"distributed_executor_backend": "uni"}}
    made = stages.vLLMEngineStage(fn_constructor_kwargs=options, map_batches_kwargs={"max_concurrency": 2})
    assert inspect.isasyncgenfunction(made.fn.udf), "the stage no longer has an asynchronous udf"
    assert list(inspect.signature(made.fn.udf).parameters) == ["self", "batch"], "the udf takes other things"
    assert isinstance(made.fn.IDX_IN_BATCH_COLUMN, str), "the stage numbers its rows in another way"
    copy = made.model_copy(update={"fn": type("Stage", (made.fn,), {})})
    assert copy.map_batches_kwargs == made.map_batches_kwargs, "a copy of the stage loses its placement"
    config = vLLMEngineProcessorConfig(model_source="x")
    assert Processor(config, [copy]).get_stage_by_name("vLLMEngineStage") is copy, (
        "a processor no longer takes its stages"
    )


def test_llm_columns_are_called_as_before():
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMOutputData

    gone = {"generated_tokens", "generated_text", "metrics", "logprobs"} - set(vLLMOutputData.model_fields)
    assert not gone, f"the vLLM stage renamed {gone}"


def test_ray_train_waits_as_long_as_it_is_told():
    from ray.train.v2._internal import constants

    known = vars(constants).values()
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S" in known, "--wait_hours would be ignored by fine-tune"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("dashboard/modules/job/job_supervisor.py", "RAY_JOB_STOP_WAIT_TIME_S"),
        ("dashboard/modules/job/job_head.py", "No available agent"),
        ("data/_internal/execution/operators/actor_pool_map_operator.py", "The minimum number of concurrent actors"),
        ("data/_internal/util.py", "Failed to "),
        ("_private/runtime_env/constants.py", "RAY_JOB_CONFIG_JSON_ENV_VAR"),
        ("_private/ray_constants.py", "RAY_DEDUP_LOGS_SKIP_REGEX"),
        ("core/src/ray/raylet/raylet", "worker processes have been started"),
    ],
)
def test_ray_words_it_so(file, words):
    assert words.encode() in (Path(ray.__file__).parent / file).read_bytes(), f"Ray no longer says {words!r}"


def test_the_trainer_loads_what_it_is_given():
    parameters = list(inspect.signature(Trainer._load_from_checkpoint).parameters)
    assert parameters == ["self", "resume_from_checkpoint", "model"], "Trainer._load_from_checkpoint takes other things"
    called = "self._load_from_checkpoint(" in inspect.getsource(Trainer)
    assert called, "a resume without DeepSpeed would start from the base weights"
    assert (TRAINER_STATE_NAME, PREFIX_CHECKPOINT_DIR) == ("trainer_state.json", "checkpoint"), (
        "checkpoints are renamed"
    )


def test_deepspeed_marks_its_parameters():
    text = inspect.getsource(partition_parameters)
    assert "param.ds_id =" in text, "ZeRO-3 marks its parameters otherwise"
    assert "param.ds_numel =" in text, "ZeRO-3 counts its parameters otherwise: mfu would be 0"
    for name in ("zero_optimization_stage", "zero_cpu_offload"):
        assert callable(getattr(DeepSpeedEngine, name)), f"DeepSpeed's engine no longer says {name}"


def test_attention_of_slots_gets_no_mask():
    config = LlamaConfig()
    config._attn_implementation = kv_cache.ATTENTION
    found = create_causal_mask(
        config=config, inputs_embeds=torch.zeros(1, 3, 8), attention_mask=None, past_key_values=None
    )
    assert found is None, "transformers builds a mask for an attention that has none registered"
    assert issubclass(kv_cache.SlotCache, Cache)
    assert {"update", "get_seq_length"} <= set(vars(Cache)), "a cache is asked by other names"


def test_the_c_library_takes_the_setting():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc has it")
    mmap_max = -4  # malloc.h
    assert ctypes.CDLL("libc.so.6").mallopt(mmap_max, 65536) == 1, "glibc refuses what keeps freed tensors"


def test_encode_tokenizes_through_preprocess(model_cache, monkeypatch):
    from sentence_transformers import SentenceTransformer

    from qaray.models.catalogue import resolve

    calls = []
    model = SentenceTransformer(resolve("bundled:minilm", model_cache), device="cpu")
    preprocess = type(model).preprocess
    monkeypatch.setattr(type(model), "preprocess", lambda *a, **o: calls.append(1) or preprocess(*a, **o))
    model.encode(["a text"])
    assert calls, "encode no longer goes through preprocess: threads would share the tokenizer"
