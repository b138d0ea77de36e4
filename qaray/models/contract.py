"""The train→inference contract: the training settings of a fine-tuned model, stored with its weights."""

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
    """Training settings of a fine-tuned model, stored with its weights. Generation must match them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template_name: str  # llama2, chat or file
    template_text: str
    template_opening: str = ""
    template_source: str = ""
    template_sha256: str
    request_text: str | None = None  # None: the examples were not made with a qaray request
    request_language: str | None = None
    request_sha256: str | None = None
    context_size: int  # tokens
    rope_factor: float = 1.0  # total linear factor
    special_tokens: dict[str, str] = {}

    @property
    def template(self) -> Template:
        """The template of the training examples. Raises ConfigError if the text does not match its hash."""
        template = Template(self.template_name, self.template_text, self.template_opening, self.template_source)
        if template.sha256 != self.template_sha256:
            raise ConfigError(f"{CONTRACT}: the prompt template does not match its hash")
        return template

    @property
    def request(self) -> Request | None:
        """The request of the training examples, None if unknown. Raises ConfigError if it does not match its hash."""
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
        """The contract of a model folder, None if there is none. Raises ConfigError if it is invalid."""
        if not os.path.isdir(folder):
            return None  # a hub id: qaray writes contracts into local folders only
        try:
            values = (Location.of(folder) / CONTRACT).read_json()
            return None if values is None else cls(**values)
        except (ValueError, ValidationError, TypeError) as error:
            raise ConfigError(f"{folder}/{CONTRACT}: {first_line(error)}") from None
