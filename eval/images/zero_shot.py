"""Zero-shot classification by an image tokenizer: the class whose texts are nearest to the image (CLIP, 2103.00020).

Shapes: N images, C classes, T text positions, E channels shared by images and texts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_recipes.files import read_lines
from data_recipes.images import ImageSource
from data_recipes.scenes.world import CAPTION_FORMS, CLASSES, a
from mllm.text.ids import PLAN, contrastive_ids
from tokenizer import ImageTokenizer, ImageTokenizerConfig
from tokenizer.transform import to_pixels
from tokenizer.weights import weights_hash

from ..pieces import digest, in_batches, work
from .image_pieces import Arrays, Images, Result, Task, from_bytes, gather, image_jobs, to_bytes

CLIP_VOCABULARY = 49408  # entries of OpenAI's, which open_clip brings along; the released UniTok reads it
CLASS_PIECE = 16  # classes in a file
TEMPLATE = "a photo of {a}"
TextReader = Callable[[Sequence[str]], torch.Tensor]
"""Texts -> ids_NT for `ImageTokenizer.text_features`."""


class Classes(NamedTuple):
    """A template is filled with a class's name: {} as it is, {a} with its article. `ids` are other labels, by class."""

    names: Sequence[str]
    templates: Sequence[str] = (TEMPLATE,)
    ids: Sequence[str] = ()

    def texts(self, number: int) -> list[str]:
        name = self.names[number]
        return [template.format(name, a=a(name)) for template in self.templates]

    def numbers(self) -> dict[str, int]:
        """Label -> class. A label is a name that no other class has, an id, or the number itself."""
        numbers = {str(number): number for number in range(len(self.names))}
        numbers |= {label: number for number, label in enumerate(self.ids)}
        return numbers | {name: n for n, name in enumerate(self.names) if self.names.count(name) == 1}


# ---- what is asked for


def scene_classes() -> Classes:
    return Classes(list(CLASSES), [form.replace("{}", "{a}") for form in CAPTION_FORMS])


def imagenet_classes() -> Classes:
    """OpenAI's names and templates. Labels may be WordNet's ids, too. Raises ValueError without open_clip."""
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise ValueError("ImageNet's names and templates need open_clip: pip install open-clip-torch") from error
    from timm.data import ImageNetInfo

    templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return Classes(list(IMAGENET_CLASSNAMES), templates, ImageNetInfo().label_names())


def read_classes(names_file: Path, templates_file: Path | None = None) -> Classes:
    """One a line. Raises ValueError for fewer than two names, and for a template that names no class."""
    names = [name.replace("_", " ") for name in filled_lines(names_file)]
    if len(names) < 2:
        raise ValueError(f"{names_file} holds {len(names)} class names, one a line: at least 2 are needed")
    if templates_file is None:
        return Classes(names)
    templates = filled_lines(templates_file)
    for template in templates or [""]:
        try:
            named = "\0" in template.format("\0", a="\0")
        except (ValueError, LookupError, AttributeError, TypeError):  # whatever else stands in braces
            named = False
        if not named:
            raise ValueError(f"{templates_file}: {template!r} is no template: write {{}} where the class name goes")
    return Classes(names, templates)


def filled_lines(file: Path) -> list[str]:
    """Those that are not empty. Raises ValueError naming a file that is no text."""
    return [line.strip() for line in read_lines(file) if line.strip()]


def load_text_reader(config: ImageTokenizerConfig, name: str | Path) -> TextReader:
    """With the text tokenizer in the folder `name`, or OpenAI's where the text tower has its size. Raises ValueError
    when there is none, or another one than the text tower was trained with."""
    if config.text_vocab_size == CLIP_VOCABULARY:
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError as error:
            raise ValueError("this text tower reads OpenAI's vocabulary: pip install open-clip-torch") from error
        return SimpleTokenizer(context_length=config.text_context)
    try:
        text_tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises whatever a folder without one leads to
        raise ValueError(f"{name} holds no text tokenizer: name its folder with --text-tokenizer") from error
    try:
        return text_reader(config, text_tokenizer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}: name the folder of its own with --text-tokenizer") from error


def reads(config: ImageTokenizerConfig, text_tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text tokenizer has the size of the one that the text tower was trained with."""
    return _entries(text_tokenizer) + 1 == config.text_vocab_size  # the last entry ends a text


def _entries(text_tokenizer: PreTrainedTokenizerBase) -> int:
    """Without those of plans, which a language model adds, and which are in no text."""
    return sum(not token.startswith(PLAN) for token in text_tokenizer.get_vocab())


def text_reader(config: ImageTokenizerConfig, text_tokenizer: PreTrainedTokenizerBase) -> TextReader:
    """Raises ValueError for another text tokenizer than the text tower was trained with."""
    size = config.text_vocab_size
    if not reads(config, text_tokenizer):
        raise ValueError(
            f"the text tokenizer has {_entries(text_tokenizer)} entries, the text tower was trained with {size - 1}"
        )
    return partial(contrastive_ids, text_tokenizer, context=config.text_context, vocab_size=size)


# ---- work


def evaluate_zero_shot(
    image_tokenizer: ImageTokenizer, read_texts: TextReader, classes: Classes, images: Images, folder: Path
) -> Result | None:
    """Files in `folder` let a second run go on, and processes share the work. None while other processes are at theirs.
    Raises ValueError when too many images are damaged, or of no class."""
    model_hash = weights_hash(image_tokenizer)
    texts = class_jobs(image_tokenizer, model_hash, read_texts, classes)
    jobs = {**texts, **image_jobs(_task(image_tokenizer, model_hash, images.source, classes), images)}
    files = work(folder, list(jobs), lambda name: jobs[name](), "zero-shot")
    if files is None:
        return None
    classes_CE = np.concatenate([from_bytes(file.read_bytes())["features"] for file in files[: len(texts)]])
    rows, left_out = gather(files[len(texts) :], images.max_bad)
    ranks_N = ranks(rows["features"], classes_CE, rows["class"])
    scores = {f"top_{k}": float((ranks_N < k).mean()) for k in (1, 5)}
    return Result(scores, len(ranks_N), left_out, model_hash)


def class_jobs(
    image_tokenizer: ImageTokenizer, model_hash: str, read_texts: TextReader, classes: Classes
) -> dict[str, Callable[[], bytes]]:
    """{name: what makes the content of the file} for `work`: features of some classes."""
    jobs = {}
    for numbers in in_batches(range(len(classes.names)), CLASS_PIECE):
        ids = [read_texts(classes.texts(number)) for number in numbers]
        name = digest(["classes", model_hash, [*numbers], [ids_NT.tolist() for ids_NT in ids]])
        jobs[name] = lambda ids=ids: to_bytes({"features": class_features(image_tokenizer, ids).cpu().numpy()})
    return jobs


@torch.inference_mode()
def class_features(image_tokenizer: ImageTokenizer, ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """ids_NT of the texts of each class -> unit vectors_CE: those of its texts averaged."""
    means = [image_tokenizer.text_features(ids_NT.to(image_tokenizer.device)).mean(0) for ids_NT in ids]
    return F.normalize(torch.stack(means), dim=-1)


def _task(image_tokenizer: ImageTokenizer, model_hash: str, source: ImageSource, classes: Classes) -> Task:
    config, known = image_tokenizer.config, classes.numbers()

    def read(number: int) -> tuple[torch.Tensor, int]:
        image, _, label, name = source[number]
        if label not in known:
            raise ValueError(f"{name} has {f'the label {label!r}, which is no class' if label else 'no label'}")
        return to_pixels(image, config.image_size, config.resize_ratio, config.interpolation), known[label]

    @torch.inference_mode()
    def compute(items: list[tuple[torch.Tensor, int]]) -> Arrays:
        features_NE = image_tokenizer.image_features([pixels_3HW for pixels_3HW, _ in items])
        return {"features": features_NE.cpu().numpy(), "class": np.array([number for _, number in items])}

    return Task(["zero-shot", model_hash, config.to_dict(), known], read, compute)


def ranks(features_NE: np.ndarray, classes_CE: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """How many classes are nearer than the true one; of equally near ones, the first counts as nearer."""
    order_NC = (-features_NE @ classes_CE.T).argsort(1, kind="stable")
    return (order_NC == truth_N[:, None]).argmax(1)
