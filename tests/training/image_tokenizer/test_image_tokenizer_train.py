"""Training of the image tokenizer: every option survives a resume, ranks and accumulation change nothing, bad images
are counted, and each part of the objective does what its paper says."""

import json
import math
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts import plot_run as plot_run_script
from tests.training.lm.test_training import _losses, _stop_after, _tokenizer_config, text_folder  # noqa: F401
from tokenizer import ImageTokenizer
from tokenizer.quantizers import QUANTIZERS
from tokenizer.quantizers.multi_codebook import MultiCodebookQuantizer
from training.image_tokenizer import text_entries
from training.image_tokenizer.clip_weights import load_clip
from training.image_tokenizer.data import TrainingImages
from training.image_tokenizer.losses import disentangling_loss
from training.image_tokenizer.train import build_image_tokenizer, train_tokenizer
from training.run.recipe import AdversarialConfig, OptimConfig, TokenizerLossConfig, TokenizerTrainConfig, save_config


def _everything(folder, text, name, **options) -> TokenizerTrainConfig:
    config = _tokenizer_config(folder, text, name, **options)
    return replace(
        config,
        quantizer={"entropy_every": 1, "index_temperature": 0.1, "perturbed": 0.2, "revive_after": 2},
        losses=TokenizerLossConfig(perceptual=0.1, gram=0.1, entropy=0.02, disentangle=0.1, contrastive=0.1, decoded=3),
        adversarial=AdversarialConfig(weight=0.4, start=2, ramp=2, blur=2),
        ema=0.9,
    )


def _rows(config) -> list[dict]:
    return [json.loads(line) for line in (config.run.path / "metrics.jsonl").read_text().splitlines()]


def _numbers(config) -> list[dict]:
    clocks = ("seconds", "images_per_s")
    return [{name: value for name, value in row.items() if name not in clocks} for row in _rows(config)]


def test_resuming_is_invisible_with_every_option(tmp_path, text_folder):  # noqa: F811
    whole = _everything(tmp_path, text_folder, "whole", accumulate=2)
    folder = train_tokenizer(whole)
    parts = _everything(tmp_path, text_folder, "parts", accumulate=2)
    _stop_after(parts, 3, train_tokenizer)
    resumed = train_tokenizer(parts)
    assert len(_numbers(whole)) == 6 and _numbers(parts) == _numbers(whole)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, load_file(resumed / "model.safetensors")[name]), name


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_trains_and_resumes(tmp_path, text_folder, quantizer):  # noqa: F811
    def config(name: str) -> TokenizerTrainConfig:
        config = _tokenizer_config(tmp_path, text_folder, name, batch_size=8, steps=10, save_every=5)
        model, losses = {**config.model, "quantizer": quantizer}, TokenizerLossConfig(contrastive=0.1)
        return replace(config, model=model, losses=losses, quantizer={})

    whole, parts = config("whole"), config("parts")
    folder = train_tokenizer(whole)
    _stop_after(parts, 5, train_tokenizer)
    weights = load_file(train_tokenizer(parts) / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    assert _losses(whole)[-1] < 0.95 * _losses(whole)[0]
    loaded = ImageTokenizer.from_pretrained(folder).eval()
    assert loaded.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 2) and loaded.config.quantizer == quantizer


def test_the_discriminator_starts_when_it_should(tmp_path, text_folder):  # noqa: F811
    config = _everything(tmp_path, text_folder, "late", steps=4)
    train_tokenizer(config)
    rows = _rows(config)
    assert ["discriminator_adversarial" in row for row in rows] == [False, False, True, True]
    assert rows[2]["adversarial_weight"] == 0 < rows[3]["adversarial_weight"]
    plot_run_script.main([str(config.run.path), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "late/pictures/reconstructions_000004.png" in page and "discriminator_consistency" in page
    with Image.open(config.run.path / "pictures" / "reconstructions_000004.png") as strip:
        assert strip.size == (8 * 32, 2 * 32)


def test_wandb_offline_holds_every_number_and_the_pictures(tmp_path, text_folder, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = _tokenizer_config(tmp_path, text_folder, "seen", steps=2, save_every=2, wandb="offline")
    train_tokenizer(config)
    [folder] = (config.run.path / "wandb").glob("offline-run-*")
    [file] = folder.glob("*.wandb")
    names = [name for name in _rows(config)[0] if name not in ("step", "seconds")]
    for _ in range(300):  # wandb's own process writes the file, and may be behind on a busy machine
        written = file.read_bytes()
        if all(name.encode() in written for name in names):
            break
        time.sleep(0.1)
    assert [name for name in names if name.encode() not in written] == []
    assert list((folder / "files" / "media" / "images").glob("reconstructions*.png"))


def test_two_processes_train_as_one(tmp_path, text_folder):  # noqa: F811
    """The contrastive loss sees the captions of both ranks. (Entropy is a mean over a rank's batch, so not here.)"""
    one = replace(
        _tokenizer_config(tmp_path, text_folder, "one", batch_size=8, steps=3),
        losses=TokenizerLossConfig(perceptual=0.1, contrastive=1.0),
        quantizer={"revive_after": 3},
    )
    train_tokenizer(one)
    two = replace(one, run=replace(one.run, name="two", batch_size=4))
    save_config(two, tmp_path / "two.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, "-m", "scripts.train_tokenizer", str(tmp_path / "two.yaml")], check=True)
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-4)
    for name in ("usage", "perplexity/1", "revived"):
        assert [row[name] for row in _rows(two)] == pytest.approx([row[name] for row in _rows(one)])


def test_accumulated_batches_are_one_batch(tmp_path, text_folder):  # noqa: F811
    losses = TokenizerLossConfig(perceptual=0.1, contrastive=0.0)
    whole = replace(_tokenizer_config(tmp_path, text_folder, "whole", batch_size=8, steps=3), losses=losses)
    parts = replace(whole, run=replace(whole.run, name="parts", batch_size=4, accumulate=2))
    train_tokenizer(whole)
    train_tokenizer(parts)
    assert _losses(parts) == pytest.approx(_losses(whole), rel=1e-4)


def test_the_saved_weights_are_the_average(tmp_path, text_folder):  # noqa: F811
    config = replace(_tokenizer_config(tmp_path, text_folder, "ema", steps=2, save_every=1), ema=0.9)
    train_tokenizer(config)
    states = [torch.load(config.run.path / f"step_{step:06d}" / "state.pt", weights_only=True) for step in (1, 2)]
    first, second = (state["weights"] for state in states)
    saved = load_file(config.run.path / "step_000002" / "model" / "model.safetensors")
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, 0.9 * first[name] + 0.1 * second[name])
    assert not torch.equal(first["projection.weight"], second["projection.weight"])


def test_the_decoder_alone_trains_on_perturbed_codes_and_codes_stay(tmp_path, text_folder, monkeypatch):  # noqa: F811
    config = _tokenizer_config(tmp_path, text_folder, "decoder", steps=3, save_every=1)
    config.trainable = ["post_quant_proj", "decoder"]
    config.quantizer = {"perturbed": 0.4, "perturbed_final": 0.0}
    torch.manual_seed(config.run.seed)
    before = build_image_tokenizer(config).state_dict()
    shares, perturb = [], MultiCodebookQuantizer.perturb

    def spy(quantizer, codes_NLK, share_N, near_KVn):
        shares.append(share_N)
        return perturb(quantizer, codes_NLK, share_N, near_KVn)

    monkeypatch.setattr(MultiCodebookQuantizer, "perturb", spy)
    after = load_file(train_tokenizer(config) / "model.safetensors")
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"post_quant_proj", "decoder"}
    assert len(shares) == 2 and 0 < shares[0].max() <= 0.4 and shares[1].max() <= 0.2, "none in the last update"


# ---- data


def _photo(file, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def test_folders_and_shards_train_and_bad_images_are_counted(tmp_path, text_folder, capfd):  # noqa: F811
    for number in range(6):
        folder = tmp_path / "images" / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        _photo(folder / f"{number}.png", number)
    (tmp_path / "images" / "class_0" / "0.png").write_bytes(b"no image")
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as tar:
        for number in range(1, 6):
            data = (tmp_path / "images" / f"class_{number % 2}" / f"{number}.png").read_bytes()
            tar.write({"__key__": f"{number:04d}", "png": data, "txt": f"photo {number}"})
    for name, images in (("folder", str(tmp_path / "images")), ("shards", str(tmp_path / "shard-{0..0}.tar"))):
        config = _tokenizer_config(tmp_path, text_folder, name, steps=3, log_every=3)
        config.data.images, config.data.scale = images, 0.5
        train_tokenizer(config)
        assert len(_rows(config)) == 1
    named = [line for line in capfd.readouterr().err.splitlines() if line.startswith("left out")]
    assert named and all("class_0/0.png" in line for line in named)


def test_photographs_are_cropped_beside_scenes_that_are_not(tmp_path, text_folder):  # noqa: F811
    (tmp_path / "photos").mkdir()
    _photo(tmp_path / "photos" / "0.png", 0)
    config = _tokenizer_config(tmp_path, text_folder, "mixed")
    config.losses.contrastive = 0.0
    scenes = TrainingImages(config, build_image_tokenizer(config).config)
    config.data.mixed, config.data.share, config.data.scale = str(tmp_path / "photos"), 0.5, 0.3
    mixed = TrainingImages(config, scenes.model)
    pixels = [mixed[position][0][0] for position in range(40)]
    same = [torch.equal(found, scenes[position][0][0]) for position, found in enumerate(pixels)]
    assert 10 < sum(same) < 30, "half are the scenes that a run without photographs has there"
    crops = [found for found, is_scene in zip(pixels, same, strict=True) if not is_scene]
    assert {tuple(crop.shape) for crop in crops} == {tuple(pixels[0].shape)}
    assert not torch.equal(crops[0], crops[1]), "each crop of the one photograph is another"


@pytest.mark.parametrize(("max_bad", "reason"), [(1, "2 bad samples, data.max_bad is 1; the last: "), (2, "")])
def test_too_many_bad_images_stop_the_run(tmp_path, text_folder, max_bad, reason):  # noqa: F811
    (tmp_path / "images").mkdir()
    for number in range(6):
        _photo(tmp_path / "images" / f"{number}.png", number)
        (tmp_path / "images" / f"{number}.txt").write_text("a photo")
    for number in (1, 4):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
    config = _tokenizer_config(tmp_path, text_folder, "bad", steps=3)
    config.data.images, config.data.max_bad = str(tmp_path / "images"), max_bad
    with pytest.raises(ValueError, match=reason) if reason else nullcontext():
        train_tokenizer(config)


def test_a_folder_of_bad_images_alone_is_told(tmp_path, text_folder):  # noqa: F811
    (tmp_path / "images").mkdir()
    _photo(tmp_path / "images" / "no_caption.png", 0)
    config = _tokenizer_config(tmp_path, text_folder, "bad", steps=3)
    config.data.images = str(tmp_path / "images")
    with pytest.raises(ValueError, match="no good sample found among .* in a row; the last: .*no_caption.png: no"):
        train_tokenizer(config)


def test_a_folder_of_damaged_images_alone_is_told(tmp_path, text_folder):  # noqa: F811
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    config = _tokenizer_config(tmp_path, text_folder, "bad", steps=3)
    config.data.images = str(tmp_path / "images")
    with pytest.raises(ValueError, match="none of the first images of data.images .* can be read"):
        train_tokenizer(config)


def test_images_that_are_not_there_are_named(tmp_path, text_folder):  # noqa: F811
    config = _tokenizer_config(tmp_path, text_folder, "none")
    config.data.images = "no_such_folder"
    with pytest.raises(ValueError, match="no images at 'no_such_folder'"):
        train_tokenizer(config)


# ---- parts


def test_disentangling_is_zero_for_orthogonal_and_one_for_equal_slices():
    orthogonal = torch.tensor([[[1.0, 0, 0, 2.0]]])
    assert disentangling_loss(orthogonal, 2) == 0
    assert disentangling_loss(torch.tensor([[[1.0, 2, -3, -6]]]), 2) == pytest.approx(1)
    halfway = math.cos(math.radians(60)) ** 2
    assert disentangling_loss(torch.tensor([[[1.0, 0, 0.5, math.sqrt(0.75)]]]), 2) == pytest.approx(halfway)


def test_another_quantizer_begins_anew_in_what_was_trained_with_the_first(tmp_path, text_folder):  # noqa: F811
    """As where a continuous autoencoder gets residual codes."""
    config = _tokenizer_config(tmp_path, text_folder, "continuous")
    continuous = replace(config, model={**config.model, "quantizer": "quantile"}, quantizer={"noise": 0.2})
    before = build_image_tokenizer(continuous)
    before.save_pretrained(tmp_path / "model")
    residual = replace(
        config, model={**config.model, "quantizer": "residual", "num_codebooks": 4}, init_from=str(tmp_path / "model")
    )
    after, weights = build_image_tokenizer(residual).state_dict(), before.state_dict()
    same = {name for name in after if name in weights and torch.equal(after[name], weights[name])}
    assert set(after) - same == {"quantizer.codebooks_KVq"}
    with pytest.raises(ValueError, match="recipe, init_from: .* has other sizes"):
        build_image_tokenizer(replace(residual, model={**residual.model, "code_width": 16}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 32}, "has other sizes than `size` and `model` say"),
        ({"quantizer": "shared_index", "num_codebooks": 2}, "has other sizes than `size` and `model` say"),
        ({"quantizer": "residual", "pixel_codebooks": 0}, "pixel_codebooks 1: quantizer residual adds its codes up"),
    ],
)
def test_weights_that_would_be_lost_or_do_not_fit_are_refused_in_one_line(
    tmp_path,
    text_folder,  # noqa: F811
    change,
    message,
):
    config = _tokenizer_config(tmp_path, text_folder, "taps")
    taps = {"num_codebooks": 4, "pixel_codebooks": 1, "projection": "linear"}
    config = replace(config, model={**config.model, **taps})
    build_image_tokenizer(config).save_pretrained(tmp_path / "model")
    config.init_from = str(tmp_path / "model")
    assert build_image_tokenizer(config).config.pixel_width == 2
    with pytest.raises(ValueError, match=f"^recipe, init_from: .*{message}") as error:
        build_image_tokenizer(replace(config, model={**config.model, **change}, quantizer={}))
    assert "\n" not in str(error.value)


def test_layers_are_kept_near_those_of_the_start_after_a_resume_too(tmp_path, text_folder):  # noqa: F811
    def config(name: str, weight: float) -> TokenizerTrainConfig:
        config = _tokenizer_config(tmp_path, text_folder, name, steps=4)
        losses = TokenizerLossConfig(contrastive=0.1, layers=weight)
        return replace(config, losses=losses, init_from=str(tmp_path / "model"))

    build_image_tokenizer(_tokenizer_config(tmp_path, text_folder, "start")).save_pretrained(tmp_path / "model")
    whole, parts = config("whole", 10.0), config("parts", 10.0)
    train_tokenizer(whole)
    _stop_after(parts, 2, train_tokenizer)
    train_tokenizer(parts)
    assert _numbers(parts) == _numbers(whole)
    assert _rows(whole)[0]["layers"] < 1e-6 < _rows(whole)[1]["layers"]
    with pytest.raises(ValueError, match="losses.layers: a new encoder has nothing to keep: give init_from or init_cl"):
        replace(whole, init_from=None)


def test_entries_begin_where_text_embeddings_are(tmp_path, text_folder, pretrained_folder, monkeypatch):  # noqa: F811
    """Here, these are in as many clusters as a codebook has entries."""
    folder, generator = shutil.copytree(pretrained_folder, tmp_path / "clusters"), torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if "embed_tokens" in name]
    T, D = weights[name].shape
    clusters_TD = torch.randn(16, D, generator=generator).repeat(T // 16 + 1, 1)[:T]
    weights[name] = clusters_TD + 0.01 * torch.randn(T, D, generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = replace(_tokenizer_config(tmp_path, text_folder, "text"), init_entries=str(folder))
    centred_TD = weights[name] - weights[name].mean(0)
    components_TQ = centred_TD @ torch.linalg.svd(centred_TD)[2][:8].T
    components_TQ /= components_TQ.std(0)
    apart = []
    for init in (None, str(folder)):
        torch.manual_seed(0)
        quantizer = build_image_tokenizer(replace(config, init_entries=init)).quantizer
        # Principal components have no sign, and the least of them comes first.
        bounded_TKq = quantizer.bound(components_TQ.flip(1)[None])[0].unflatten(-1, (2, -1)).abs()
        entries_KVq = quantizer.entries().detach().abs()
        apart.append(torch.cdist(bounded_TKq.transpose(0, 1), entries_KVq).amin(-1).mean().item())
    assert apart[1] < apart[0] / 2
    with pytest.raises(ValueError, match="init_entries: this kind of quantizer learns no entries"):
        build_image_tokenizer(replace(config, model={**config.model, "quantizer": "fsq"}, quantizer={}))
    with pytest.raises(ValueError, match="text embeddings, fewer than codebook_size 5000 x code_width 8"):
        build_image_tokenizer(replace(config, model={**config.model, "codebook_size": 5000}))
    with pytest.raises(ValueError, match="init_entries: quantizer.k_means_at replaces these entries"):
        replace(config, quantizer={"k_means_at": 3})
    monkeypatch.setattr(text_entries, "MOST", 16)
    entries_KVq = build_image_tokenizer(config).quantizer.entries()
    assert all(len(entries_Vq.unique(dim=0)) == 16 for entries_Vq in entries_KVq), "one for each of 16 tokens"
    monkeypatch.setattr(text_entries, "MOST", 15)
    with pytest.raises(ValueError, match="gives 15 x .* text embeddings, fewer than codebook_size 16 .*at most 15"):
        build_image_tokenizer(config)


def test_of_a_model_on_the_hub_only_the_file_with_the_embeddings_is_fetched(tmp_path, monkeypatch):
    hub, here = tmp_path / "hub", tmp_path / "here"
    here.mkdir()
    hub.mkdir()
    embeddings_TD = torch.randn(8, 4)
    save_file({"model.embed_tokens.weight": embeddings_TD}, hub / "model-1.safetensors")
    save_file({"model.norm.weight": torch.ones(4)}, hub / "model-2.safetensors")
    files = {"model.embed_tokens.weight": "model-1.safetensors", "model.norm.weight": "model-2.safetensors"}

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        assert hub_id == "owner/name"
        for file in {file for pattern in allow_patterns for file in hub.glob(pattern)}:
            shutil.copy(file, here)
        return str(here)

    monkeypatch.setattr(text_entries, "snapshot_download", snapshot_download)
    for index, fetched in ((None, {"model-1.safetensors", "model-2.safetensors"}), (files, {"model-1.safetensors"})):
        if index:
            (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        torch.testing.assert_close(text_entries._embeddings("owner/name"), embeddings_TD)
        assert {file.name for file in here.glob("*.safetensors")} == fetched
        for file in here.iterdir():
            file.unlink()


@pytest.mark.parametrize("source", ["timm", "open_clip"])
def test_clip_weights_fill_the_encoder(tmp_path, text_folder, source):  # noqa: F811
    config = _tokenizer_config(tmp_path, text_folder, "clip")
    other = build_image_tokenizer(config).state_dict()
    prefix = {"timm": "", "open_clip": "visual.trunk."}[source]
    tensors = {
        prefix + name.removeprefix("encoder."): tensor + 1
        for name, tensor in other.items()
        if name.startswith(("encoder.patch_embed", "encoder.blocks"))
    }
    tensors[prefix + "pos_embed"] = torch.zeros(1, 4, 8)
    if source == "open_clip":
        texts = {name: tensor for name, tensor in other.items() if name.startswith("text_encoder.")}
        tensors |= {f"text.{name.removeprefix('text_encoder.')}": tensor + 1 for name, tensor in texts.items()}
        tensors["logit_scale"] = torch.tensor(9.0)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "clip.safetensors")
    torch.save(tensors, tmp_path / "clip.pth")
    for file in ("clip.safetensors", "clip.pth"):
        model = build_image_tokenizer(replace(config, init_clip=str(tmp_path / file)))
        loaded = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, other[name] + 1)}
        assert any(name.startswith("encoder.blocks.0") for name in loaded)
        assert any(name.startswith("text_encoder") for name in loaded) == (source == "open_clip")
        assert not torch.equal(model.state_dict()["logit_scale"], torch.tensor(9.0))


def test_clip_weights_of_another_size_are_refused(tmp_path, text_folder):  # noqa: F811
    config = _tokenizer_config(tmp_path, text_folder, "clip")
    torch.save({"patch_embed.backbone.stem.conv1.weight": torch.zeros(2, 2)}, tmp_path / "clip.pth")
    model = ImageTokenizer(build_image_tokenizer(config).config)
    with pytest.raises(ValueError, match="clip.pth"):
        load_clip(model, tmp_path / "clip.pth")


def test_a_recipe_can_name_each_option(tmp_path, text_folder):  # noqa: F811
    from training.run.recipe import load_config

    save_config(_everything(tmp_path, text_folder, "all"), tmp_path / "all.yaml")
    config = load_config(TokenizerTrainConfig, tmp_path / "all.yaml", ["adversarial.optim.lr=1e-4", "ema=0.5"])
    assert config.adversarial.optim == replace(AdversarialConfig().optim, lr=1e-4) and config.ema == 0.5
    assert isinstance(config.adversarial.optim, OptimConfig)
