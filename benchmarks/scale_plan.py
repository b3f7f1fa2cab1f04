"""The arithmetic of docs/scale.md: a 70B model on one GPU, and what capture costs at the scale of the internet.

    python benchmarks/scale_plan.py

Nothing here is measured; what is taken from a measurement or a vendor is a constant, named with its source.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GIB = 1 << 30
VALUE_BYTES = 2  # bfloat16

H200_BYTES = 141e9  # NVIDIA's data sheet; nvidia-smi shows more (143,771 MiB)
CONTEXT_BYTES = 0.6 * GIB  # assumed: CUDA context, kernels, cuBLAS workspace
SLACK = 0.15  # assumed: the allocator's loss, as a share of what is not weights
PEAK_FLOPS = 989e12  # NVIDIA's data sheet, H100 SXM and H200, dense bfloat16
MFU = 0.4  # assumed
DISK_SHARE = 70.6 / 100.7  # measured: a shard of 1024 x 8192 x 6, beside its 16-bit values
STORAGE_USD = 0.023  # Amazon's list price, S3 Standard, GB and month
SHARD_BYTES = 64 << 20  # of float32, the client's default
LINKS = {
    "1 Gbit/s": 1e9 / 8,
    "10 Gbit/s": 10e9 / 8,
    "100 Gbit/s": 100e9 / 8,
    "PCIe 5 x16": 63e9,  # PCI-SIG: 32 GT/s x 16 lanes, 128b/130b
    "NVLink 4": 450e9,  # NVIDIA, one direction
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama, as its config says."""

    name: str
    n_layers: int
    d_model: int
    d_ffn: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab: int

    @property
    def block_parameters(self) -> int:
        attention = self.d_model * self.d_head * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.d_model * self.d_ffn + 2 * self.d_model

    @property
    def parameters(self) -> int:
        """All but the unembedding, which is never loaded."""
        return self.vocab * self.d_model + self.n_layers * self.block_parameters + self.d_model

    @property
    def weight_bytes(self) -> int:
        return VALUE_BYTES * self.parameters

    @property
    def token_flops(self) -> int:
        """Two for each parameter of the blocks; attention over the context is left out."""
        return 2 * self.n_layers * self.block_parameters

    def row_bytes(self, n_sites: int) -> int:
        """One position at every layer of so many sites."""
        return VALUE_BYTES * n_sites * self.n_layers * self.d_model

    @property
    def activation_bytes(self) -> dict[str, int]:
        """What one token needs at the widest moments of a block."""
        wide = {
            "residual stream, and its normed copy": 2 * self.d_model,
            "in the MLP: activated gate, up projection, their product": 3 * self.d_ffn,
            "output of the MLP": self.d_model,
        }
        return {name: VALUE_BYTES * n for name, n in wide.items()}

    @property
    def attention_bytes(self) -> int:
        """Residual, normed; queries and keys before and after rotation; values; both repeated for all heads; out."""
        heads, keys = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        return VALUE_BYTES * (2 * self.d_model + 2 * heads + 3 * keys + 2 * heads + heads)


SHAPES = (
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49_152),
    Shape("Llama-3.1-8B", 32, 4096, 14_336, 32, 8, 128, 128_256),
    Shape("Llama-3.3-70B", 80, 8192, 28_672, 64, 8, 128, 128_256),
    Shape("Llama-3.1-405B", 126, 16_384, 53_248, 128, 8, 128, 128_256),
)
BIG = SHAPES[2]


@dataclass(frozen=True, slots=True)
class Room:
    """What one GPU has left for tokens beside a model's weights."""

    shape: Shape
    device_bytes: float = H200_BYTES

    @property
    def free_bytes(self) -> float:
        return (self.device_bytes - self.shape.weight_bytes - CONTEXT_BYTES) * (1 - SLACK)

    @property
    def token_bytes(self) -> int:
        return max(sum(self.shape.activation_bytes.values()), self.shape.attention_bytes)

    def batch_tokens(self, n_sites: int, kept: float) -> int:
        """Tokens of one batch, if so great a share of the positions is kept at every layer of so many sites."""
        return max(0, int(self.free_bytes / (self.token_bytes + kept * self.shape.row_bytes(n_sites))))


def memory_table() -> list[list[str]]:
    room = Room(BIG)

    def gib(n: float) -> str:
        return f"{n / GIB:.2f}"

    embedding = VALUE_BYTES * BIG.vocab * BIG.d_model
    return [
        ["embedding, 128,256 x 8,192", f"{embedding:,}", gib(embedding)],
        ["80 blocks of 855,654,400 parameters", f"{VALUE_BYTES * 80 * BIG.block_parameters:,}",
         gib(VALUE_BYTES * 80 * BIG.block_parameters)],
        ["final norm", f"{VALUE_BYTES * BIG.d_model:,}", "0.00"],
        ["**weights without the unembedding**", f"{BIG.weight_bytes:,}", gib(BIG.weight_bytes)],
        ["unembedding, not loaded", f"{embedding:,}", gib(embedding)],
        ["the GPU, 141 x 10^9", f"{H200_BYTES:,.0f}", gib(H200_BYTES)],
        ["context and workspace (assumed)", f"{CONTEXT_BYTES:,.0f}", gib(CONTEXT_BYTES)],
        ["**left for tokens, 15 % slack taken off**", f"{room.free_bytes:,.0f}", gib(room.free_bytes)],
    ]  # fmt: skip


def batch_table() -> list[list[str]]:
    devices = {"141 x 10^9": H200_BYTES, "143,771 MiB": 143_771 * 2**20}
    rows = []
    for label, n_sites, kept in (
        ("`last` of texts of 20 tokens, 3 sites", 3, 1 / 20),
        ("`all`, 1 site", 1, 1.0),
        ("`all`, 3 sites", 3, 1.0),
    ):
        tokens = [Room(BIG, size).batch_tokens(n_sites, kept) for size in devices.values()]
        rows.append([label, f"{kept * BIG.row_bytes(n_sites) / 1024:.0f}", *(f"{n:,}" for n in tokens)])
    return rows


def rate_table() -> list[list[str]]:
    rows = []
    for shape in SHAPES:
        rate = PEAK_FLOPS * MFU / shape.token_flops
        egress = rate * shape.row_bytes(3)
        rows.append([
            shape.name, f"{shape.parameters / 1e9:.2f}", f"{shape.row_bytes(1) / 1024:,.0f}",
            f"{shape.row_bytes(3) / 1024:,.0f}", f"{shape.token_flops / 1e9:,.2f}", f"{rate:,.0f}",
            f"{egress / 1e9:.2f}", f"{shape.token_flops / shape.row_bytes(3):,.0f}",
        ])  # fmt: skip
    return rows


def link_table() -> list[list[str]]:
    """Share of a GPU's full speed that a link allows it, `all` at three sites."""
    rows = []
    for shape in SHAPES:
        egress = PEAK_FLOPS * MFU / shape.token_flops * shape.row_bytes(3)
        rows.append([shape.name, *(f"{min(1.0, speed / egress):.1%}" for speed in LINKS.values())])
    return rows


def corpus_table(days: float = 30) -> list[list[str]]:
    """GPUs, bytes and money of whole corpora, 70B; `last` of every 500 tokens, and `all`."""
    rows = []
    seconds = days * 86_400
    for n_tokens in (1e9, 1e10, 1e11, 1e12):
        gpus = n_tokens * BIG.token_flops / (PEAK_FLOPS * MFU) / seconds
        for label, kept, n_sites in (("`last` of 500, 3 sites", 1 / 500, 3), ("`all`, 1 site", 1.0, 1)):
            wire = n_tokens * kept * BIG.row_bytes(n_sites)
            disk = wire * DISK_SHARE
            rows.append([
                f"{n_tokens:.0e}", label, f"{gpus:,.1f}", f"{wire / 1e12:,.2f}", f"{wire * 8 / seconds / 1e9:,.2f}",
                f"{disk / 1e12:,.2f}", f"{disk / 1e9 * STORAGE_USD:,.0f}", f"{2 * wire / SHARD_BYTES:,.0f}",
            ])  # fmt: skip
    return rows


def spread_table() -> list[list[str]]:
    """Bytes that each rank of a tensor-parallel group copies out per token: column i goes through rank i mod n."""
    rows = []
    for n_ranks in (1, 2, 4, 8):
        columns = [0] * n_ranks
        for column in range(3 * BIG.n_layers):
            columns[column % n_ranks] += VALUE_BYTES * BIG.d_model
        rows.append([str(n_ranks), f"{max(columns) / 1024:,.0f}", f"{max(columns) * n_ranks / sum(columns):.3f}"])
    return rows


TABLES = {
    "Llama-3.3-70B in bfloat16 on one H200": (("", "bytes", "GiB"), memory_table),
    "Tokens of one batch": (("kept", "KiB/token", "of 141 x 10^9", "of 143,771 MiB"), batch_table),
    "Bytes and rates": (
        ("model", "10^9 parameters", "KiB/token, 1 site", "3 sites", "GFLOP/token", "tokens/s and GPU", "GB/s and GPU",
         "FLOP/byte"), rate_table,
    ),
    "What a link allows": (("model", *LINKS), link_table),
    "Corpora in 30 days, Llama-3.3-70B": (
        ("tokens", "kept", "GPUs", "TB sent", "Gbit/s", "TB stored", "USD/month", "shards"), corpus_table,
    ),
    "Egress over tensor-parallel ranks": (("ranks", "KiB/token of the busiest", "of an even share"), spread_table),
}  # fmt: skip


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    for title, (head, make) in TABLES.items():
        print(f"### {title}\n\n{markdown(head, make())}\n")


if __name__ == "__main__":
    main()
