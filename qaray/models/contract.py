"""The train→inference contract: what a fine-tuned model was trained with, kept beside its weights."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, ValidationError

from qaray.asking.request import Request
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
    request_text: str | None = None  # None: the examples were not made with a request of qaray's
    request_language: str | None = None
    request_sha256: str | None = None
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

    @property
    def request(self) -> Request | None:
        """The request that the examples were made with. Raises ConfigError if the text does not match its hash."""
        if self.request_text is None:
            return None
        request = Request(self.request_text, self.request_language, f"the request of {CONTRACT}")
        if request.sha256 != self.request_sha256:
            raise ConfigError(f"{CONTRACT}: the request does not match its hash")
        return request

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
