"""Rows under way: prompts are prefilled once, then each step adds one position. Memory for keys and values is allocated
ahead.

Each row has its own length. Rows may come and go between steps, and none changes another's numbers.
Shapes: B rows, S rows there is room for, T columns, D width, H key-value heads of width d, G query heads for each.
"""

import math
from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache

from ..config import CACHE
from ..device import send
from ..fast import Kernels, pick_kernels
from ..fast.eager import put
from ..model import MllmForConditionalGeneration
from ..text.processor import MllmProcessor
from ..text.templates import Sample

ALIGNED = 16  # columns: with masks of other lengths, attention on GPUs first copies them


class KeyValues(Cache):
    """Keys and values of all layers. Row b is filled up to its own length; `mask_ST`, added to scores, hides the rest.

    Memory doubles when a row reaches its end. As a `Cache` of transformers, it takes one position of every row from any
    backbone. With `fixed_shapes`, a step sees all allocated columns, not only those in use. Then its shapes and
    addresses stay the same until `layout` becomes another object.
    """

    def __init__(self, like: DynamicCache, fixed_shapes: bool = False):
        super().__init__(layers=[])
        self.fixed_shapes = fixed_shapes
        parts = [(layer.keys, layer.values) for layer in like.layers]
        self.memory = [[x.new_zeros(0, 0, x.shape[1], x.shape[3]) for x in pair] for pair in parts]  # each [S, T, H, d]
        self.mask_ST = parts[0][0].new_zeros(0, 0)
        self.lengths: list[int] = []  # on the host, so that no step waits for the device

    def add(self, prefilled: DynamicCache, places: Sequence[int], lengths: Sequence[int], room: int) -> None:
        """Append a row for each of `places`, indices into the batch of `prefilled`. `room`: expected new columns."""
        first, T = len(self.lengths), max(lengths)
        places = send(torch.tensor(places), self.mask_ST.device)
        self.lengths += lengths
        end = len(self.lengths)
        self._reserve(end, max(self.lengths) + room)
        for pair, layer in zip(self.memory, prefilled.layers, strict=True):
            for mine, new_BHTd in zip(pair, (layer.keys, layer.values), strict=True):
                mine[first:end, :T] = new_BHTd[places, :, :T].transpose(1, 2)
        for row, length in enumerate(lengths, first):
            self.mask_ST[row, :length] = 0
            self.mask_ST[row, length:] = float("-inf")
        self._locate()

    def remove(self, row: int) -> None:
        """Remove a row; the last row moves to its place."""
        last = len(self.lengths) - 1
        if row != last:
            for mine in (*(x for pair in self.memory for x in pair), self.mask_ST):
                mine[row] = mine[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._locate()

    def open(self, is_image_B: torch.Tensor | None = None) -> None:
        """Open a new column in every row, for a step to fill. `is_image_B` says where it is a position of an image."""
        self.is_image_B = is_image_B
        if max(self.lengths) == self.mask_ST.shape[1]:
            self._reserve(len(self.lengths), 2 * max(self.lengths))
            self._locate()
        self.mask_ST.view(-1).index_fill_(0, self.flat_B, 0)
        self.lengths = [length + 1 for length in self.lengths]

    def close(self) -> None:
        """To be called when all layers have filled the new column."""
        self.places_B += 1
        self.flat_B += 1

    def mask(self) -> torch.Tensor:
        """The mask for one query in each row, [B, 1, 1, T]."""
        return self.mask_ST[: len(self.lengths), None, None, : self.columns]

    def full(self) -> bool:
        """Whether no row has a column to hide, so that no mask is needed."""
        return not self.fixed_shapes and min(self.lengths) == max(self.lengths)

    def update(self, k_BH1d: torch.Tensor, v_BH1d: torch.Tensor, layer_idx: int, *_, **__) -> list[torch.Tensor]:
        return put(self.memory[layer_idx], self.flat_B, self.columns, k_BH1d[:, :, 0], v_BH1d[:, :, 0])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.lengths) - 1

    @property
    def columns(self) -> int:
        """Those that a step sees: in use, the new one included, or, with `fixed_shapes`, all."""
        return self.mask_ST.shape[1] if self.fixed_shapes else max(self.lengths)

    def _locate(self) -> None:
        """Compute where each row's next column is: `places_B` within the row, `flat_B` in all memory, row after row."""
        self.layout = object()
        self.places_B = send(torch.tensor(self.lengths), self.mask_ST.device)
        self.flat_B = (
            self.places_B + torch.arange(len(self.lengths), device=self.mask_ST.device) * self.mask_ST.shape[1]
        )

    def _reserve(self, rows: int, columns: int) -> None:
        S, T = self.mask_ST.shape
        if rows <= S and columns <= T:
            return
        size = max(rows, S), max(-(-columns // ALIGNED) * ALIGNED, T)

        def grown(old: torch.Tensor) -> torch.Tensor:
            # Zeros, not empty memory: masked values are multiplied by a probability of 0, and 0 * NaN is NaN.
            new = old.new_zeros(*size, *old.shape[2:])
            new[:S, :T] = old
            return new

        self.memory = [[grown(x) for x in pair] for pair in self.memory]
        old_ST, self.mask_ST = self.mask_ST, self.mask_ST.new_full(size, float("-inf"))
        self.mask_ST[:S, :T] = old_ST


class Stream:
    """Rows under way, and the hidden states `h_BD` that predict the next position of each.

    `room` is the expected number of new positions. Raises ValueError when rows outgrow a sliding window.
    """

    def __init__(
        self,
        model: MllmForConditionalGeneration,
        samples: Sequence[Sample],
        processor: MllmProcessor,
        kernels: Kernels | None = None,
        room: int = 64,
    ):
        self.model, self.processor, self.cache = model, processor, None
        self.kernels = kernels or pick_kernels(model)
        self.window = getattr(model.config.text_config, "sliding_window", None)
        self.add(samples, room)

    @torch.no_grad()
    def add(self, samples: Sequence[Sample], room: int = 64) -> None:
        """Prefill more rows. Equal samples are read once, such as n images of one prompt, or unconditional prompts."""
        keys = [(*sample.ids, *map(id, sample.images)) for sample in samples]
        unique = dict(zip(keys, samples, strict=True))
        places = [list(unique).index(key) for key in keys]
        lengths = [len(sample.ids) for sample in samples]
        # Padding is on the right, where causal attention does not see it, so no mask is needed.
        batch = self.processor.collate(list(unique.values()), self.model.image_tokenizer)
        device = self.model.device
        codes = None if batch.codes is None else send(batch.codes, device)
        prefilled = DynamicCache()
        ids_BT = send(batch.input_ids, device)
        x_BTD = self.model.embed(ids_BT, codes)
        h_BTD = self.model.run_layers(x_BTD, ids_BT, use_cache=True, **{CACHE: prefilled}).last_hidden_state
        last = [place * h_BTD.shape[1] + length - 1 for place, length in zip(places, lengths, strict=True)]
        h_BD = h_BTD.flatten(0, 1)[send(torch.tensor(last), device)]
        if self.cache is None:
            self.cache, self.h_BD = KeyValues(prefilled, self.kernels.fixed_shapes), h_BD[:0]
        self.cache.add(prefilled, places, lengths, room)
        self.h_BD = torch.cat([self.h_BD, h_BD])

    @torch.no_grad()
    def feed(self, x_BD: torch.Tensor, is_image_B: torch.Tensor | None = None) -> None:
        """Add one position to each row. Models with `image_layers` must know which of them are images'."""
        self.cache.open(is_image_B)
        if self.window and max(self.cache.lengths) > self.window:
            raise ValueError(f"{max(self.cache.lengths)} positions, but this model attends to {self.window} at a time")
        self.h_BD = self.kernels.step(x_BD, self.cache)
        self.cache.close()

    def remove(self, row: int) -> None:
        """Remove a row; the last row moves to its place."""
        self.cache.remove(row)
        last_D, self.h_BD = self.h_BD[-1], self.h_BD[:-1].clone()
        if row < len(self.h_BD):
            self.h_BD[row] = last_D


def check_length(model: MllmForConditionalGeneration, processor: MllmProcessor, sample: Sample, room: int = 1) -> None:
    """Raises ValueError when a sequence and `room` more positions exceed the backbone's context or sliding window."""
    config = model.config.text_config
    limit = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or math.inf)
    if len(sample.ids) + room > limit:
        raise ValueError(
            f"{len(sample.ids)} positions of text and images and {room} to generate, but the model reads {limit}: "
            "shorten the text, the chat or what is to be generated"
        )
