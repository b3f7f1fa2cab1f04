"""The model's own tokenizer, behind the server's interface."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import tokenizers
from transformers import AutoTokenizer

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.protocol import Encoded
from stratoscope_wire import Message

# Put before a chat template, this hides the function of the same name, which tells today's date.
_FIXED_DATE: Final = (
    "{%- macro strftime_now(format) -%}"
    "{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') | replace('%m', '07') "
    "| replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') | replace('%H:%M:%S', '00:00:00') }}"
    "{%- endmacro +%}"
)


class FastTokenizer:
    """A `Tokenizer` over a fast tokenizer. Safe to call from any thread.

    Offsets count characters (Unicode code points) of the text as it was given, whatever normalisation does to it, and
    leave out white space around what a token covers: with most models " church" is one token, and it covers "church".
    A token of nothing but white space keeps its range. A character that is split into several tokens, as bytes of an
    emoji are, is covered by each of them.

    Special tokens written out in a text, such as ``<|im_end|>``, are recognised as such, as Hugging Face does.

    Chat templates that print today's date print 26 Jul 2024, the date that Llama's template falls back to, so that the
    same messages give the same tokens on any day.

    Parameters
    ----------
    folder
        Of the checkpoint.

    Raises
    ------
    ModelRefusedError
        If the folder has no tokenizer, or none that can tell offsets.
    """

    def __init__(self, folder: Path) -> None:
        self._chat = _load(folder)
        definition = self._chat.backend_tokenizer.to_str()
        # A copy of its own: transformers' switches truncation and padding on and off in the one it holds.
        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        template: str | None = self._chat.chat_template and self._chat.get_chat_template()
        self._template = _FIXED_DATE + template if template and "strftime_now" in template else template
        self.hash = hashlib.sha256(f"{self._tokenizer.to_str()}\0{template}".encode()).hexdigest()
        """SHA-256 over the serialised tokenizer and its chat template."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Tokenise a text, never truncating it; see `stratoscope_server.engines.protocol.Tokenizer.encode`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        offsets = [_trim(text, start, end) for start, end in encoding.offsets]
        return Encoded(np.array(encoding.ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2))

    def encode_chat(self, messages: Sequence[Message]) -> Encoded:
        """Render messages up to the generation prompt and tokenise them.

        Offsets are ranges of the rendered text, which the caller never sees.

        Raises
        ------
        ValueError
            If the model has no chat template, or the template refuses the messages.
        """
        if self._template is None:
            raise ValueError("the model has no chat template; send text or token_ids instead of messages")
        try:
            text = self._chat.apply_chat_template(
                [message.model_dump() for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template refuses the messages: {error}") from error
        return self.encode(text, add_special_tokens=False)


def _load(folder: Path) -> Any:  # noqa: ANN401 - transformers publishes no usable type of its tokenizers
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelRefusedError(f"{folder.name} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ModelRefusedError(
            f"the tokenizer of {folder.name} ({type(tokenizer).__name__}) cannot tell which characters a token covers; "
            "a fast tokenizer (tokenizer.json) is needed"
        )
    return tokenizer


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    if not piece.strip():
        return start, end
    return end - len(piece.lstrip()), start + len(piece.rstrip())
