"""The server command over an engine that takes half a second per text. Run by the tests as a program of its own."""

import os
import sys
import time
from collections.abc import Sequence

from stratoscope_server.__main__ import serve
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, Column
from stratoscope_wire.request import Dtype


class SlowRunner(SyntheticRunner):
    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        time.sleep(0.5)
        return super().run(prompts, columns, dtype)


if __name__ == "__main__":
    settings = Settings.from_args(sys.argv[1:], os.environ)
    sys.exit(serve(settings, lambda: BatchedEngine(SlowRunner(), max_batch_tokens=1)))
