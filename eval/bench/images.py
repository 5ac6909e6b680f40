"""Pixels to codes and back, beside the loops of the reference."""

import torch

from tokenizer.transform import to_images

from . import Options
from .figures import Figure, check_codes, check_pixels, compare, gap
from .models import get_image_tokenizer
from .reference import reference_decode, reference_encode


@torch.no_grad()
def bench_encode(options: Options, batch: int) -> list[Figure]:
    image_tokenizer = get_image_tokenizer(options.model, options.shape)
    size, quantizer = image_tokenizer.config.image_size, image_tokenizer.quantizer
    pixels_N3HW = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels_N3HW = pixels_N3HW.to(image_tokenizer.device)

    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    cosine_KPV = quantizer.scores(quantizer.split(quantizer.bound(image_tokenizer.features(pixels_N3HW))))
    check_codes(codes_NLK, reference_encode(image_tokenizer, pixels_N3HW), gap(cosine_KPV).T.reshape(codes_NLK.shape))
    return compare(
        f"encode, batch {batch}",
        lambda: image_tokenizer.encode(pixels_N3HW),
        lambda: reference_encode(image_tokenizer, pixels_N3HW),
        {"images/s": batch, "codes/s": codes_NLK.numel()},
        options.repeats,
    )


@torch.no_grad()
def bench_decode(options: Options, batch: int) -> list[Figure]:
    image_tokenizer = get_image_tokenizer(options.model, options.shape)
    sizes, generator = image_tokenizer.config, torch.Generator().manual_seed(0)
    shape_NLK = (batch, sizes.num_positions, sizes.num_codebooks)
    codes_NLK = torch.randint(sizes.codebook_size, shape_NLK, generator=generator).to(image_tokenizer.device)

    check_pixels(image_tokenizer.decode_pixels(codes_NLK), torch.cat([*reference_decode(image_tokenizer, codes_NLK)]))
    return compare(
        f"decode, batch {batch}",
        lambda: image_tokenizer.decode(codes_NLK),
        lambda: [to_images(pixels_13HW) for pixels_13HW in reference_decode(image_tokenizer, codes_NLK)],
        {"images/s": batch, "codes/s": codes_NLK.numel()},
        options.repeats,
    )
