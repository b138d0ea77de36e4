"""Exports a checkpoint to a model folder for transformers and vLLM: 16-bit safetensors, tokenizer, contract, card."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qaray.asking.templates import Template, prompt_ids
from qaray.config import ConfigError, FineTuneConfig
from qaray.finetune import require_extra
from qaray.finetune.card import CARD, model_card
from qaray.finetune.checkpoints import last_checkpoint
from qaray.finetune.loop import TRAINING, WEIGHTS
from qaray.finetune.model import load_model
from qaray.models.contract import CONTRACT, Contract
from qaray.models.loading import quiet_transformers
from qaray.models.tokenizer import HFTokenizer, load_tokenizer
from qaray.run.storage import Location

SHARD_SIZE = "5GB"


def export(checkpoint: str, output_dir: str, dtype: str = "auto") -> None:
    """Exports a checkpoint, or the last checkpoint of a run's folder, to ``output_dir``.

    Loads the base model, inserts the trained weights and merges LoRA adapters. Raises ConfigError if there is no
    complete checkpoint, or if ``output_dir`` cannot be written to.
    """
    require_extra()
    target = writable(output_dir)
    with quiet_transformers(), local_copy(last_checkpoint(Location.of(checkpoint))) as folder:
        note = Location.of(str(folder / TRAINING)).read_json()
        if note is None:
            raise ConfigError(f"{checkpoint} is not a qaray checkpoint ({TRAINING} is missing)")
        state = (Location.of(str(folder)) / "trainer_state.json").read_json() or {}
        config = FineTuneConfig(**note["config"])
        model = load_model(config, note["rope_factor"], torch.float32, training=False)
        put_weights(model, _weights(folder, note["deepspeed"]))
    if config.low_rank_training:
        model = model.merge_and_unload()
    model.to(_dtype(dtype, config))
    _write(model, config, note, state, target)


def writable(output_dir: str) -> Path:
    """The folder to write a model to. Raises ConfigError for a URI, or a non-empty folder without a qaray model."""
    target = Path(output_dir).expanduser().absolute()
    if "://" in output_dir:
        raise ConfigError(f"output_dir {output_dir}: must be a local path, not a URI")
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / CONTRACT).exists())):
        raise ConfigError(f"output_dir {output_dir} contains files that are not a qaray model: choose another folder")
    return target


@contextlib.contextmanager
def local_copy(place: Location) -> Iterator[Path]:
    """Yields a local path of the folder; a remote folder is downloaded first and the copy removed afterwards."""
    if place.is_local:
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        import pyarrow.fs as pafs

        pafs.copy_files(place.path, folder, source_filesystem=place.fs)
        yield Path(folder)


def _weights(folder: Path, sharded: bool) -> dict[str, torch.Tensor]:
    """The trained weights by parameter name."""
    if not sharded:
        from safetensors.torch import load_file

        return load_file(folder / WEIGHTS)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder)))


def put_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Loads trained weights into the model. Raises ConfigError if they do not fit it, or if some are missing."""
    own = dict(model.named_parameters())
    shapes = [name for name, tensor in weights.items() if name in own and own[name].shape != tensor.shape]
    missing = {name for name, parameter in own.items() if parameter.requires_grad} - set(weights)
    loaded = model.load_state_dict({n: t for n, t in weights.items() if n not in shapes}, strict=False)
    if shapes or loaded.unexpected_keys or missing:
        mismatched = [*shapes, *loaded.unexpected_keys, *sorted(missing)]
        raise ConfigError(f"the checkpoint does not fit the model: {mismatched[0]} and {len(mismatched) - 1} more")


def _dtype(name: str, config: FineTuneConfig) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    return torch.float16 if config.training.get("fp16", "").lower() == "true" else torch.bfloat16


def set_special_tokens(model: Any, tokenizer: Any) -> None:
    """Makes transformers and vLLM stop at the EOS that training taught.

    The tokenizer's EOS joins those of the base, in the model's config and in its generation config. BOS and padding are
    the tokenizer's where the base has none; padding in the generation config always is.
    """
    generation = model.generation_config
    for settings in (model.config, generation):
        settings.eos_token_id = _with_eos(settings.eos_token_id, tokenizer.eos_token_id)
        if settings.bos_token_id is None:
            settings.bos_token_id = tokenizer.bos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True  # some bases set a temperature without it, which transformers refuses to save


def _with_eos(base: int | list[int] | None, eos: int) -> int | list[int]:
    """The base's EOS ids and ``eos``."""
    ids = base if isinstance(base, list) else [] if base is None else [base]
    ids = ids if eos in ids else [*ids, eos]
    return ids if len(ids) > 1 else eos


def _adds_special(template: Template, tokenizer: HFTokenizer) -> bool:
    """Whether the tokenizer's defaults encode a rendered prompt as training does, with its BOS or without one."""
    text = template.render("instruction", "input")
    return list(tokenizer.hf(text).input_ids) == prompt_ids(text, tokenizer)


def _write(model: Any, config: FineTuneConfig, note: dict[str, Any], state: dict[str, Any], target: Path) -> None:
    """Writes to a temporary folder, which is renamed once it is complete."""
    tokenizer = load_tokenizer(config.model_name_or_path, config.cache_dir, config.trust_remote_code, add_special=True)
    contract = Contract(**note["contract"])
    card = model_card(note, state, _adds_special(contract.template, tokenizer))
    set_special_tokens(model, tokenizer.hf)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".tmp-{target.name}-*"):  # left by a killed export
        shutil.rmtree(stale, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    try:
        model.config.use_cache = True
        with quiet_transformers():
            model.save_pretrained(building, max_shard_size=SHARD_SIZE)
            tokenizer.hf.save_pretrained(building)
        contract.save(str(building))
        (building / CARD).write_text(card)
        shutil.rmtree(target, ignore_errors=True)
        building.chmod(0o755)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
