"""What every layout promises; a new one is tested by being listed in LAYOUTS, and in ARGS if it needs arguments.

Images of 32 x 32 pixels, 2 x 2 places.
"""

from dataclasses import replace

import pytest
import torch

from tokenizer import SIZES, ImageTokenizer
from tokenizer.layouts import LAYOUTS
from tokenizer.layouts.queries import QueryLayout
from tokenizer.layouts.scales import ScaleLayout, scale_mask
from tokenizer.weights import codes_hash

ARGS = {"queries": {"positions": 3, "depth": 1}, "holistic": {"queries": 2}, "scales": {"scales": [1, 2]}}


def make(layout: str, **args) -> ImageTokenizer:
    torch.manual_seed(0)
    args = {**ARGS.get(layout, {}), **args}
    one_way = LAYOUTS[layout].one_way(args)
    return ImageTokenizer(replace(SIZES["tiny"], layout=layout, layout_args=args, causal=one_way))


@pytest.fixture(params=LAYOUTS)
def image_tokenizer(request) -> ImageTokenizer:
    return make(request.param).eval()


def test_images_become_as_many_codes_as_the_config_says_and_pictures_and_weights_are_saved(image_tokenizer, tmp_path):
    pixels_N3HW, positions = torch.rand(2, 3, 32, 32) * 2 - 1, image_tokenizer.config.num_positions
    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    assert codes_NLK.shape == (2, positions, 2)
    assert [image.size for image in image_tokenizer.decode(codes_NLK)] == [(32, 32)] * 2
    image_tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).eval()
    assert loaded.config == image_tokenizer.config and codes_hash(loaded) == codes_hash(image_tokenizer)
    assert torch.equal(loaded.encode(pixels_N3HW), codes_NLK)
    assert torch.equal(loaded.decode_pixels(codes_NLK), image_tokenizer.decode_pixels(codes_NLK))


def test_every_code_counts_in_the_picture(image_tokenizer):
    codes_NLK = torch.zeros(1, image_tokenizer.config.num_positions, 2, dtype=torch.long)
    before = image_tokenizer.decode_pixels(codes_NLK)
    for place in range(codes_NLK.shape[1]):
        changed_NLK = codes_NLK.clone()
        changed_NLK[0, place] = 7
        assert (image_tokenizer.decode_pixels(changed_NLK) - before).abs().max() > 1e-5


def test_other_sizes_are_encoded_and_decoded_into_their_grid(image_tokenizer):
    codes_NLK = image_tokenizer.encode(torch.zeros(1, 3, 32, 48))
    assert [image.size for image in image_tokenizer.decode(codes_NLK, (2, 3))] == [(48, 32)]


def test_a_training_pass_gives_a_gradient_to_all_weights_of_images(image_tokenizer):
    output = image_tokenizer.train()(torch.rand(2, 3, 32, 32), torch.ones(2, 4, dtype=torch.long))
    assert output.pixels_N3HW.shape == (2, 3, 32, 32)
    (output.pixels_N3HW.square().sum() + output.quantized.loss).backward()
    for part in (image_tokenizer.encoder, image_tokenizer.layout, image_tokenizer.decoder):
        missing = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []


def test_codes_have_another_name_with_another_weight_that_reads():
    image_tokenizer = make("queries")
    hashes = {codes_hash(image_tokenizer)}
    for parameter in image_tokenizer.layout.reading.parameters():
        parameter.data += 1
        hashes.add(codes_hash(image_tokenizer))
    assert len(hashes) == 1 + len([*image_tokenizer.layout.reading.parameters()])
    before = codes_hash(image_tokenizer)
    image_tokenizer.layout.writing.asking_AC.data += 1
    assert codes_hash(image_tokenizer) == before, "a decoder that goes on training keeps the codes"


@pytest.mark.parametrize("tail_drop", ["uniform", "powers"])
def test_the_first_positions_alone_make_a_picture_as_in_training(tail_drop):
    image_tokenizer = make("queries", positions=6, tail_drop=tail_drop)
    x_NPC = torch.randn(200, 6, 32)
    torch.manual_seed(1)
    dropped_NLC, _ = image_tokenizer.layout.spread(x_NPC, None)
    image_tokenizer.eval()
    by_length = torch.stack([image_tokenizer.layout.spread(x_NPC[:, :n], None)[0] for n in range(1, 7)])
    distances = (by_length - dropped_NLC).abs().amax((2, 3))  # of each image to each number of positions
    lengths = distances.argmin(0) + 1
    assert distances.amin(0).max() < 1e-5
    assert set(lengths.tolist()) == ({1, 2, 3, 4, 5, 6} if tail_drop == "uniform" else {1, 2, 4, 6})
    assert [image.size for image in image_tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.long))] == [(32, 32)]


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_query_hears_nothing_of_later_ones(causal):
    torch.manual_seed(0)
    layout, x_NLC = QueryLayout(32, 2, 2, positions=4, causal=causal), torch.randn(2, 4, 32)
    with torch.no_grad():
        before = layout.gather(x_NLC, (2, 2))
        layout.reading.asking_AC[2] += torch.randn(32)
        after = layout.gather(x_NLC, (2, 2))
    moved = [not torch.allclose(*pair, atol=1e-6) for pair in zip(before.unbind(1), after.unbind(1), strict=True)]
    assert moved == ([False, False, True, True] if causal else [True] * 4)


def test_the_shortest_codes_have_the_wanted_quality_and_fewer_have_not():
    image_tokenizer, pixels_N3HW = make("queries", positions=6, tail_drop="uniform").eval(), torch.rand(2, 3, 32, 48)
    codes_NLK, lengths = image_tokenizer.encode(pixels_N3HW), set()

    def quality(image: int, count: int) -> float:
        decoded_3HW = image_tokenizer.decode_pixels(codes_NLK[image : image + 1, :count], (2, 3))[0].clamp(-1, 1)
        return 10 * (4 / (decoded_3HW - pixels_N3HW[image]).square().mean()).log10().item()

    for least in (0, *(quality(image, 3) for image in range(2)), 99):
        for image, codes_nK in enumerate(image_tokenizer.shortest(pixels_N3HW, least)):
            count = len(codes_nK)
            assert torch.equal(codes_nK, codes_NLK[image, :count])
            assert count == 6 or quality(image, count) >= least - 1e-4
            assert count == 1 or quality(image, count - 1) < least + 1e-4
            lengths.add(count)
    assert {1, 6} < lengths
    with pytest.raises(ValueError, match="fewer positions make no picture: only those of layouts with a tail"):
        make("grid").shortest(pixels_N3HW, 20)


def test_as_many_positions_as_make_no_picture_are_refused():
    image_tokenizer = make("queries")
    with pytest.raises(ValueError, match="2 positions of 3: only image tokenizers trained with layout_args.tail_drop"):
        image_tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.long))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"{count} positions, but this image tokenizer's pictures have 1 to 3"):
            image_tokenizer.decode(torch.zeros(1, count, 2, dtype=torch.long))


def test_a_whole_picture_needs_all_its_places():
    image_tokenizer = make("holistic")
    for count, grid in ((2, None), (5, (2, 2))):
        with pytest.raises(ValueError, match=f"{count} positions, 2 of which lie nowhere, are no whole picture"):
            image_tokenizer.decode(torch.zeros(1, count, 2, dtype=torch.long), grid)


def test_each_map_sees_itself_and_coarser_ones():
    assert scale_mask([1, 2, 2]).int().tolist() == [[1, 0, 0, 0, 0], *[[1, 1, 1, 0, 0]] * 2, *[[1] * 5] * 2]
    torch.manual_seed(0)
    layout, ends = ScaleLayout(32, 2, 4, scales=[1, 2, 4]), [1, 5, 21]
    maps, x_NPC = [(1, 1), (2, 2), (4, 4)], torch.randn(1, 21, 32)
    for blocks in (layout.reading, layout.writing):
        before = blocks(x_NPC, maps)
        for start, end in zip([0, *ends], ends, strict=False):
            changed_NPC = x_NPC.clone()
            changed_NPC[:, end - 1] += torch.randn(32)
            moved = ((blocks(changed_NPC, maps) - before).abs().amax(-1) > 1e-6)[0].tolist()
            assert moved == [False] * start + [True] * (21 - start)


def test_coarser_maps_are_averages_of_the_grid():
    """Of two pictures with the same averages, only the finest map differs."""
    layout, x_NLC = ScaleLayout(32, 2, 4, scales=[1, 2, 4]), torch.randn(1, 16, 32)
    turned_NLC = x_NLC.unflatten(1, (2, 2, 2, 2)).roll(1, 2).flatten(1, 4)  # within each of 2 x 2 squares
    one, other = (layout.gather(x, (4, 4)) for x in (x_NLC, turned_NLC))
    torch.testing.assert_close(one[:, :5], other[:, :5])
    assert ((one[:, 5:] - other[:, 5:]).abs().amax(-1) > 1e-3).all()


def test_the_first_maps_alone_make_a_picture_as_in_training():
    image_tokenizer = make("scales", tail_drop=True)
    layout, x_NPC = image_tokenizer.layout, torch.randn(200, 5, 32)
    torch.manual_seed(1)
    dropped_NLC, _ = layout.spread(x_NPC, None)
    image_tokenizer.eval()
    by_length = torch.stack([layout.spread(x_NPC[:, :n], None)[0] for n in (1, 5)])
    distances = (by_length - dropped_NLC).abs().amax((2, 3))
    assert distances.amin(0).max() < 1e-5 and set(distances.argmin(0).tolist()) == {0, 1}
    codes_NLK = torch.zeros(1, 1, 2, dtype=torch.long)
    assert [image_tokenizer.decode(codes_NLK, grid)[0].size for grid in (None, (2, 3))] == [(32, 32), (48, 32)]
    pictures = [image_tokenizer.shortest(torch.rand(1, 3, 32, 48), least)[0] for least in (-9, 99)]
    assert [len(codes) for codes in pictures] == [1, 7]
    with pytest.raises(ValueError, match="2 positions, but 2 x 2 places have pictures of 1, 5"):
        image_tokenizer.decode(codes_NLK.expand(1, 2, 2))
    with pytest.raises(ValueError, match="1 positions, but 2 x 2 places have pictures of 5"):
        make("scales").decode(codes_NLK)


@pytest.mark.parametrize("projection", ["linear", "attn"])
def test_coarser_codes_hear_nothing_of_finer_ones(projection):
    sizes = replace(SIZES["tiny"], layout="scales", layout_args={"scales": [1, 2]}, projection="linear")
    image_tokenizer = ImageTokenizer(replace(sizes, projection=projection, causal=projection == "attn")).eval()
    features_NLQ = torch.randn(1, 5, 8)
    changed_NLQ = features_NLQ.clone()
    changed_NLQ[:, 4] += torch.randn(8)
    one, other = map(image_tokenizer.widen, (features_NLQ, changed_NLQ))
    assert torch.equal(one[:, 0], other[:, 0]) and not torch.equal(one[:, 4], other[:, 4])


@pytest.mark.parametrize(
    ("layout", "args", "message"),
    [
        ("spiral", {}, "unknown layout 'spiral'; known: grid, queries, holistic, scales"),
        ("grid", {"positions": 4}, "layout_args: this layout takes none, not positions"),
        ("queries", {}, "layout_args: positions None must be a whole number above 0"),
        ("queries", {"positions": 4, "depth": 0}, "layout_args: depth 0 must"),
        ("queries", {"positions": 4, "tail_drop": "head"}, "unknown tail_drop 'head'; known: none, uniform, powers"),
        ("queries", {"positions": 4, "causal": True}, "layout queries: its codes .* but projection attn sees all"),
        ("queries", {"positions": 4, "causal": "yes"}, "causal 'yes' is neither true nor false"),
        ("holistic", {"queries": 0}, "layout_args: queries 0 must"),
        ("scales", {}, "layout_args: scales None must be whole numbers that rise to 2, the grid's side"),
        ("scales", {"scales": 2}, "layout_args: scales 2 must be"),
        ("scales", {"scales": [1]}, r"layout_args: scales \[1\] must be"),
        ("scales", {"scales": [2, 1]}, r"layout_args: scales \[2, 1\] must be"),
        ("scales", {"scales": [0, 2]}, r"layout_args: scales \[0, 2\] must be"),
        ("scales", {"scales": [1, 2], "tail_drop": "powers"}, "tail_drop 'powers' is neither true nor false"),
        ("scales", {"scales": [1, 2]}, "layout scales: its codes .* but projection attn sees all"),
        ("queries", {"positions": 4, "deep": 1}, "takes positions, depth, tail_drop, causal, not deep"),
    ],
)
def test_layouts_that_cannot_be_are_named(layout, args, message):
    with pytest.raises(ValueError, match=message):
        replace(SIZES["tiny"], layout=layout, layout_args=args)
