"""Rows under way: prompts are prefilled once, then each step adds a position to each row, or several. Memory for keys
and values is allocated ahead.

Each row has its own length. Rows may come and go between steps, and none changes another's numbers. Shapes: B rows, n
new columns of each in a step, E = B * n of them, row after row, S rows there is room for, T columns, D width, H
key-value heads of width d, G query heads for each.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache

from ..config import CACHE
from ..device import send
from ..fast import Kernels, pick_kernels
from ..fast.eager import put
from ..model import MllmForConditionalGeneration
from ..text.processor import MllmProcessor, encoded
from ..text.templates import Sample

ALIGNED = 16  # columns: with masks of other lengths, attention on GPUs first copies them


class New(NamedTuple):
    """What a step adds to a row: how many of its new columns each of them sees, and how many stay, the first ones."""

    sees: Sequence[int]
    kept: int


ONE = New((1,), 1)


class KeyValues(Cache):
    """Keys and values of all layers. Row b is filled up to its own length; `mask_ST`, added to scores, hides the rest.

    Memory doubles when a row reaches its end. As a `Cache` of transformers, it takes the new positions of every row
    from any backbone. In a step of `width` 1, each row gets one column; in a wider one, each gets some (`New`); what a
    row has less than the others is computed, and seen by none. With `fixed_shapes`, a step sees all allocated columns,
    not only those in use. Then its shapes and addresses stay the same until `layout` becomes another object.
    """

    def __init__(self, like: DynamicCache, fixed_shapes: bool = False):
        super().__init__(layers=[])
        self.fixed_shapes = fixed_shapes
        parts = [(layer.keys, layer.values) for layer in like.layers]
        self.memory = [[x.new_zeros(0, 0, x.shape[1], x.shape[3]) for x in pair] for pair in parts]  # each [S, T, H, d]
        self.mask_ST = parts[0][0].new_zeros(0, 0)
        self.lengths: list[int] = []  # on the host, so that no step waits for the device
        self.width = 1

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

    def open(self, new: Sequence[New], is_image_E: torch.Tensor | None = None) -> None:
        """Open new columns in every row for a step to fill. `is_image_E` says which are positions of images."""
        self.is_image_E, self.width = is_image_E, max(len(one.sees) for one in new)
        alike = all(len(one.sees) == self.width and min(one.sees) == self.width for one in new)
        self._full = not self.fixed_shapes and alike and min(self.lengths) == max(self.lengths)
        self._used = max(self.lengths) + self.width  # columns, those that no row keeps included
        if self._used > self.mask_ST.shape[1]:
            self._reserve(len(self.lengths), max(2 * max(self.lengths), self._used))
            self._locate()
        self.places_E, self.flat_E = self._places_B, self._flat_B
        if self.width == 1:
            self.mask_ST.view(-1).index_fill_(0, self.flat_E, 0)
        else:
            self._open_several(new)
        self.lengths = [length + one.kept for length, one in zip(self.lengths, new, strict=True)]

    def _open_several(self, new: Sequence[New]) -> None:
        self.layout = object()
        new_n = send(torch.arange(self.width), self.mask_ST.device)
        self.places_E, self.flat_E = ((x_B[:, None] + new_n).flatten() for x_B in (self._places_B, self._flat_B))
        sees = []
        for row, (length, (of_new, kept)) in enumerate(zip(self.lengths, new, strict=True)):
            sees += [length + count for count in (*of_new, *[of_new[-1]] * (self.width - len(of_new)))]
            self.mask_ST[row, length : length + kept] = 0
        self.sees_E = send(torch.tensor(sees), self.mask_ST.device)

    def close(self) -> None:
        """To be called when all layers have filled the new columns."""
        if self.width == 1:
            self._places_B += 1
            self._flat_B += 1
        else:
            self._locate()

    def mask(self) -> torch.Tensor:
        """The mask for the new positions of each row, [B, 1, n, T]."""
        if self.width == 1:
            return self.mask_ST[: len(self.lengths), None, None, : self.columns]
        hidden_ET = torch.arange(self.columns, device=self.mask_ST.device) >= self.sees_E[:, None]
        mask_ET = self.mask_ST.new_zeros(hidden_ET.shape).masked_fill_(hidden_ET, float("-inf"))
        return mask_ET.unflatten(0, (-1, 1, self.width))

    def full(self) -> bool:
        """Whether no row has a column to hide, so that no mask is needed."""
        return self._full

    def update(self, k_BHnd: torch.Tensor, v_BHnd: torch.Tensor, layer_idx: int, *_, **__) -> list[torch.Tensor]:
        k_EHd, v_EHd = (x.transpose(1, 2).flatten(0, 1) for x in (k_BHnd, v_BHnd))
        return put(self.memory[layer_idx], self.flat_E, len(self.lengths), self.columns, k_EHd, v_EHd)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._used - self.width

    @property
    def columns(self) -> int:
        """Those that a step sees: in use, the new ones included, or, with `fixed_shapes`, all."""
        return self.mask_ST.shape[1] if self.fixed_shapes else self._used

    def _locate(self) -> None:
        """Compute where each row's next column is: within the row, and in all memory, row after row."""
        self.layout = object()
        self._places_B = send(torch.tensor(self.lengths), self.mask_ST.device)
        rows_B = torch.arange(len(self.lengths), device=self.mask_ST.device)
        self._flat_B = self._places_B + rows_B * self.mask_ST.shape[1]

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
    """Rows under way. The newest hidden states of row b, one for each position that the last step added to it, are
    `h_ED[spans[b]]`; after a prompt there is one.

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
        self.spans: list[range] = []
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
        codes, features = (None if x is None else send(x, device) for x in (batch.codes, batch.features))
        prefilled = DynamicCache()
        ids_BT = send(batch.input_ids, device)
        x_BTD = self.model.embed(ids_BT, codes, None, batch.is_target, features, batch.image_lengths)
        h_BTD = self.model.run_layers(x_BTD, ids_BT, use_cache=True, **{CACHE: prefilled}).last_hidden_state
        last = [place * h_BTD.shape[1] + length - 1 for place, length in zip(places, lengths, strict=True)]
        h_ED = h_BTD.flatten(0, 1)[send(torch.tensor(last), device)]
        if self.cache is None:
            self.cache, self.h_ED = KeyValues(prefilled, self.kernels.fixed_shapes), h_ED[:0]
        self.cache.add(prefilled, places, lengths, room)
        first = len(self.h_ED)
        self.spans += [range(place, place + 1) for place in range(first, first + len(last))]
        self.h_ED = torch.cat([self.h_ED, h_ED])

    @torch.no_grad()
    def feed(
        self, x_ED: torch.Tensor, is_image_E: torch.Tensor | None = None, new: Sequence[New] | None = None
    ) -> None:
        """Add positions to each row: one, or, of the equally many in `x_ED`, the first ones, those of `new`. Models
        with `image_layers` must know which of all are images'."""
        new = new or [ONE] * len(self.spans)
        self.cache.open(new, is_image_E)
        if self.window and max(self.cache.lengths) > self.window:
            raise ValueError(f"{max(self.cache.lengths)} positions, but this model attends to {self.window} at a time")
        self.h_ED = self.kernels.step(x_ED, self.cache)
        self.cache.close()
        starts = range(0, len(x_ED), len(x_ED) // len(new))
        self.spans = [range(start, start + len(one.sees)) for start, one in zip(starts, new, strict=True)]

    def remove(self, row: int) -> None:
        """Remove a row; the last row moves to its place."""
        self.cache.remove(row)
        self.spans[row] = self.spans[-1]
        self.spans.pop()


def read_images(
    model: MllmForConditionalGeneration, images: Sequence[Any], is_target: Sequence[bool] = ()
) -> list[torch.Tensor]:
    """What the model reads of images, so that they are encoded once: codes_LK, or features_LQ if its `image_input`
    reads these. Those that it drew, true in `is_target`, are codes in any case. Raises ValueError for codes of others
    that have no features."""
    if not images:
        return []
    codes_NLK, features = encoded(images, model.image_tokenizer)
    if not model.image_input.reads_features:
        return list(codes_NLK)
    drawn = is_target or [False] * len(images)
    if any(one is None and not flag for one, flag in zip(features, drawn, strict=True)):
        name = model.config.image_input
        raise ValueError(f"an image to read is codes, but image_input {name!r} reads what comes before: give a picture")
    return [codes_LK if one is None else one for one, codes_LK in zip(features, codes_NLK, strict=True)]


def check_length(model: MllmForConditionalGeneration, processor: MllmProcessor, sample: Sample, room: int = 1) -> None:
    """Raises ValueError when a sequence and `room` more positions exceed the backbone's context or sliding window."""
    config = model.config.text_config
    limit = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or math.inf)
    if len(sample.ids) + room > limit:
        raise ValueError(
            f"{len(sample.ids)} positions of text and images and {room} to generate, but the model reads {limit}: "
            "shorten the text, the chat or what is to be generated"
        )
