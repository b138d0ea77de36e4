"""The train→inference contract: what a fine-tuned model was trained with, kept beside its weights."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, ValidationError

from qaray.asking.templates import Template
from qaray.config import ConfigError
from qaray.models.loading import first_line
from qaray.run.storage import Location

CONTRACT = "qaray_contract.json"


class Contract(BaseModel):
    """What a fine-tuned model was trained with, kept beside its weights; generation keeps to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template_name: str  # llama2, chat or file
    template_text: str
    template_opening: str = ""
    template_source: str = ""
    template_sha256: str
    context_size: int  # tokens
    rope_factor: float = 1.0  # linear, in all
    special_tokens: dict[str, str] = {}

    @property
    def template(self) -> Template:
        """Raises ConfigError if the text is not the one that the hash was made of."""
        template = Template(self.template_name, self.template_text, self.template_opening, self.template_source)
        if template.sha256 != self.template_sha256:
            raise ConfigError(f"{CONTRACT}: the prompt template does not match its hash")
        return template

    def save(self, folder: str) -> None:
        (Location.of(folder) / CONTRACT).write_json(self.model_dump())

    @classmethod
    def load(cls, folder: str) -> Contract | None:
        """The contract of a model folder, None where there is none. Raises ConfigError if it is damaged."""
        if not os.path.isdir(folder):
            return None  # a hub id: contracts are made by qaray, in folders
        try:
            values = (Location.of(folder) / CONTRACT).read_json()
            return None if values is None else cls(**values)
        except (ValueError, ValidationError, TypeError) as error:
            raise ConfigError(f"{folder}/{CONTRACT}: {first_line(error)}") from None
