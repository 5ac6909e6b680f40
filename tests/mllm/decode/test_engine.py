"""The engine: what a request gives is what it gives alone; it may come, go and fail at any time."""

import time
from concurrent.futures import CancelledError
from itertools import takewhile
from queue import Full
from threading import Event, Thread

import pytest
import torch
from PIL import Image

from mllm import generate_images, generate_text
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.decode import engine as engine_module
from mllm.decode.engine import Engine
from mllm.decode.options import DrawingOptions
from mllm.decode.program import Chat, Drawing, Preview, UpTo
from mllm.decode.sampling import NotFinite

KINDS = [(embedding, head) for embedding in CODE_EMBEDDINGS for head in CODE_HEADS]
WAIT = 60  # seconds, for machines under load


def _chat(text: str, color: str | None = None) -> list:
    image = [{"type": "image", "image": Image.new("RGB", (32, 32), color)}] if color else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": text}]}]


def until(condition) -> None:
    """Fails when it does not become true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def _same(pieces: list, others: list) -> bool:
    def plain(piece):
        return piece if isinstance(piece, str) else piece.tobytes()

    return [plain(piece) for piece in pieces] == [plain(piece) for piece in others]


def _long_chat() -> Chat:
    return Chat(_chat("hello"), max_new_tokens=200, temperature=1.0, seed=7)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_mixed_queue_gives_what_each_gives_alone(make_tiny_model, kind):
    model, processor = make_tiny_model(*kind)
    chats = [_chat("what is this?", "red"), _chat("hello"), _chat("where is the long yellow bus?", "blue")]
    drawings = [
        Drawing("a red dog", seed=1),
        Drawing("two cats and a very long prompt about a bus", seed=2, cfg_scale=1.0),
        Drawing("a kite", seed=3, cfg_scale=2.0, temperature=0.9, top_k=9, top_p=0.9),
        Drawing("a red dog", seed=4),
        Drawing("two cats", seed=5, candidates=3),
    ]
    with Engine(model, processor, max_rows=5) as engine:  # less than they need together
        handles = [engine.submit(Chat(chat, 3 * n + 2, drawing=None)) for n, chat in enumerate(chats)]
        handles += [engine.submit(drawing) for drawing in drawings]
        results = [handle.result(WAIT) for handle in handles]
    for n, chat in enumerate(chats):
        alone = generate_text(model, processor, chat, max_new_tokens=3 * n + 2)
        assert results[n] == ["".join(takewhile(lambda piece: isinstance(piece, str), alone))]
    for drawing, result in zip(drawings, results[3:], strict=True):
        names = ("cfg_scale", "temperature", "top_k", "top_p", "candidates")
        options = {name: getattr(drawing, name) for name in names}
        assert _same(result, generate_images(model, processor, [drawing.prompt], drawing.seed, **options))
    assert (engine.running, engine.waiting) == (0, 0)


@pytest.mark.parametrize("length", [1, 6])
def test_drawings_with_plans_are_those_of_generate_images(make_tiny_model, length):
    model, processor = make_tiny_model()
    model.config.plan_length = length
    drawings = [Drawing("a red dog", seed=1), Drawing("two cats", seed=2, cfg_scale=1.0), Drawing("a kite", seed=3)]
    with Engine(model, processor, max_rows=4) as engine:
        handles = [engine.submit(drawing) for drawing in drawings]
        results = [handle.result(WAIT) for handle in handles]
    for drawing, result in zip(drawings, results, strict=True):
        assert _same(
            result, generate_images(model, processor, [drawing.prompt], drawing.seed, cfg_scale=drawing.cfg_scale)
        )


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 1.0}])
def test_an_answer_with_an_image_goes_on_after_it(make_tiny_model, options):
    model, processor = make_tiny_model()
    begin = _begin_of_image_after(model, processor, "draw")
    alone = list(generate_text(*begin(), _chat("draw"), max_new_tokens=8, seed=3, drawing=DrawingOptions(**options)))
    with Engine(*begin()) as engine:
        handle = engine.submit(Chat(_chat("draw"), max_new_tokens=8, seed=3, drawing=DrawingOptions(**options)))
        together = handle.result(WAIT)
    assert [type(piece) for piece in together].count(Image.Image) == 1 and handle.program.tokens == 8 + 4
    assert "".join(piece for piece in alone if isinstance(piece, str)) == "".join(
        piece for piece in together if isinstance(piece, str)
    )
    assert _same([piece for piece in alone if not isinstance(piece, str)], [p for p in together if type(p) is not str])


def test_an_answer_that_outgrows_the_context_after_an_image_ends_as_that_of_generate_text(make_tiny_model):
    model, processor = make_tiny_model()
    length = len(processor.encode(_chat("draw")).ids)
    model.config.text_config.max_position_embeddings = length + 10  # 3 ids, an image of 4 and its end, 5 ids more
    begin, told = _begin_of_image_after(model, processor, "draw"), f"{length + 8} positions of text and images and 5 to"
    with pytest.raises(ValueError, match=told):
        list(generate_text(*begin(), _chat("draw"), max_new_tokens=8))
    with Engine(*begin()) as engine, pytest.raises(ValueError, match=told):
        engine.submit(Chat(_chat("draw"), max_new_tokens=8)).result(WAIT)


def test_a_request_longer_than_a_sliding_window_is_refused_before_it_runs(make_tiny_model):
    model, processor = make_tiny_model()
    window = model.config.text_config.sliding_window = len(processor.encode(_chat("hello")).ids) + 9
    told = f"and 10 to generate, but the model reads {window}"
    with Engine(model, processor) as engine, pytest.raises(ValueError, match=told):
        engine.submit(Chat(_chat("hello"), max_new_tokens=10))


def _begin_of_image_after(model, processor, words):
    """A function: -> model and processor, whose third id of text from now on is the begin of an image."""

    def begin():
        calls = iter(range(1000))
        model.lm_head._forward_hooks.clear()

        def only_the_third(_, __, logits):
            logits = logits.index_fill(-1, torch.tensor([processor.boi_id, processor.eos_id]), -100.0)
            return logits.index_fill(-1, torch.tensor([processor.boi_id]), 100.0) if next(calls) == 2 else logits

        model.lm_head.register_forward_hook(only_the_third)
        return model, processor

    return begin


def test_text_streams_while_others_run(talkative):
    with Engine(*talkative) as engine:
        long, short = engine.submit(_long_chat()), engine.submit(Chat(_chat("hi"), max_new_tokens=2))
        first = next(long.stream(WAIT))
        assert short.result(WAIT) and first
        long.cancel()


def test_cancelling_frees_the_place(talkative):
    with Engine(*talkative, max_rows=2) as engine:
        running = [engine.submit(_long_chat()) for _ in range(2)]
        for handle in running:
            next(handle.stream(WAIT))
        queued, next_one = engine.submit(_long_chat()), engine.submit(Drawing("a dog"))
        for handle in (queued, *running):
            handle.cancel()
        assert isinstance(next_one.result(WAIT)[0], Image.Image)
        for handle in (*running, queued):
            with pytest.raises(CancelledError):
                handle.result(WAIT)
    assert (engine.running, engine.waiting) == (0, 0)


def outcome(handle):
    """What it drew, or why not."""
    try:
        return handle.result(WAIT)[0]
    except RuntimeError as error:
        return str(error)


def test_a_request_that_fails_leaves_the_others(tiny_model, monkeypatch):
    model, processor = tiny_model
    decode = model.decode_image_tokens
    refuse = iter([True, False])

    def decode_or_fail(codes_NLK):
        if next(refuse):
            raise RuntimeError("out of paper")
        return decode(codes_NLK)

    monkeypatch.setattr(model, "decode_image_tokens", decode_or_fail)
    with Engine(model, processor) as engine:
        handles = engine.submit(Drawing("a dog", candidates=3)), engine.submit(Drawing("a cat", candidates=2))
        outcomes = [outcome(handle) for handle in handles]  # either may be decoded first
    assert "out of paper" in outcomes and any(isinstance(one, Image.Image) for one in outcomes)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("place", ["prompt", "step"])
def test_an_error_is_that_of_the_request_that_causes_it(make_tiny_model, kind, place):
    """Others, whose steps fail with it, give what they give alone, and tell nothing twice."""
    model, processor = make_tiny_model(*kind)
    chats = [
        Chat(_chat("what is this?", "red"), 30, temperature=1.0, drawing=None),
        Chat(_chat("hello"), 40, temperature=1.0, drawing=None),
    ]
    drawings = [Drawing("a red dog", seed=1, candidates=2, previews=1), Drawing("a kite", seed=2, cfg_scale=1.0)]
    bad = Chat(_chat("zebra"), 40, temperature=1.0, seed=3, drawing=None)
    embedded = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: embedded.append(args[0]))

    def alone(request):
        """-> pieces, tokens, and the ids that were embedded: of the prompt, and of each step."""
        embedded.clear()
        with Engine(model, processor) as engine:
            handle = engine.submit(request)
            pieces = list(handle.stream(WAIT))
        ids = [set(ids.flatten().tolist()) for ids in embedded]
        return pieces, handle.program.tokens, ids[0] if place == "prompt" else set().union(*ids[3:])

    expected = [alone(request) for request in chats + drawings]
    straw = next(iter(alone(bad)[2] - set().union(*(ids for *_, ids in expected))))

    def fail(_, args):
        if straw in args[0].tolist() or args[0].dim() > 1 and straw in args[0] and place == "prompt":
            raise RuntimeError("the straw")

    model.get_input_embeddings().register_forward_pre_hook(fail)
    with Engine(model, processor, max_rows=16) as engine:
        handles = [engine.submit(request) for request in (chats[0], bad, chats[1], *drawings)]
        with pytest.raises(RuntimeError, match="the straw"):
            handles.pop(1).result(WAIT)
        found = [list(handle.stream(WAIT)) for handle in handles]
    for handle, pieces, (told, tokens, _) in zip(handles, found, expected, strict=True):
        assert handle.program.tokens == tokens and len(pieces) == len(told)
        assert _same([p for p in pieces if type(p) is not Preview], [p for p in told if type(p) is not Preview])
    assert (engine.running, engine.waiting) == (0, 0)


def test_a_step_that_fails_ends_its_batch_and_no_more(make_tiny_model):
    model, processor = make_tiny_model()
    refuse = iter([True])

    def fail_once(*_):
        if next(refuse, False):
            raise RuntimeError("out of memory")

    model.backbone.norm.register_forward_pre_hook(fail_once)
    with Engine(model, processor) as engine:
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.submit(Drawing("a dog")).result(WAIT)
        assert engine.submit(Drawing("a dog")).result(WAIT)


def test_many_threads_may_submit(tiny_model):
    results = {}
    with Engine(*tiny_model, max_rows=6) as engine:

        def ask(seed):
            results[seed] = engine.submit(Drawing("a dog", seed=seed % 3)).result(WAIT)

        threads = [Thread(target=ask, args=(seed,)) for seed in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(_same(results[seed], results[seed % 3]) for seed in range(9)) and len(results) == 9
    assert not _same(results[0], results[1])


def test_impossible_requests_are_refused_at_once(tiny_model):
    with Engine(*tiny_model) as engine:
        for make, told in [
            (lambda: Drawing("  "), "empty prompt"),
            (lambda: Drawing("dog " * 1000), "but the model reads 256"),
            (lambda: Drawing("a dog", temperature=-1.0), "temperature -1.0"),
            (lambda: Drawing("a dog", candidates=0), "candidates 0 is below 1"),
            (lambda: Drawing("a dog", candidates=2, temperature=0.0), "candidates 2 at temperature 0 would all be"),
            (lambda: Drawing("a dog", code_context="published"), "code_context 'published' is for converted UniTok"),
            (lambda: Chat(_chat("hi"), max_new_tokens=300), "and 300 to generate"),
            (lambda: Chat(_chat("hi"), max_new_tokens=0), "max_new_tokens 0 is below 1"),
            (lambda: Chat(_chat("hi"), stop=("a", "")), "an empty string in stop"),
            (lambda: Chat(_chat("hi"), top_p=2.0), "top_p 2.0"),
            (lambda: Chat(_chat("hi"), drawing=DrawingOptions(cfg_scale=0.5)), "cfg_scale 0.5"),
        ]:
            with pytest.raises(ValueError, match=told):
                engine.submit(make())
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(Drawing("a dog"))
    with pytest.raises(ValueError, match="max_rows 1 is below 2"):
        Engine(*tiny_model, max_rows=1)


def test_waiting_for_a_piece_has_an_end(talkative):
    with Engine(*talkative, max_rows=2) as engine:
        *running, waiting = (engine.submit(_long_chat()) for _ in range(3))
        with pytest.raises(TimeoutError, match="nothing came for 0.01 seconds"):
            waiting.result(timeout=0.01)
        for handle in (*running, waiting):
            handle.cancel()


def test_an_answer_ends_before_a_stop_string(talkative):
    chat = {"messages": _chat("hello"), "max_new_tokens": 40, "temperature": 1.0}
    with Engine(*talkative) as engine:
        [whole] = engine.submit(Chat(**chat)).result(WAIT)
        stop = whole[len(whole) // 2 :][:5]
        ended = engine.submit(Chat(**chat, stop=("never said", stop)))
        pieces = list(ended.stream(WAIT))
        [kept] = engine.submit(Chat(**chat, stop=("never said",))).result(WAIT)
    assert "".join(pieces) == whole[: whole.index(stop)] and ended.program.ended_by == "stop"
    assert 0 < ended.program.tokens < 40
    assert kept == whole


def test_what_may_begin_a_stop_string_is_held_back():
    text = UpTo(("END", "NDX"))
    assert [text.add(part) for part in ("a", "bE", "N", "c E", "ND x")] == ["a", "b", "", "ENc ", ""]
    assert text.ended
    text = UpTo(("END",))
    assert (text.add("the EN"), text.rest(), text.ended) == ("the ", "EN", False)


def test_usage_is_counted(tiny_model, talkative):
    with Engine(*talkative) as engine:
        answer, drawing = engine.submit(Chat(_chat("hello"), max_new_tokens=7)), engine.submit(Drawing("a dog"))
        answer.result(WAIT), drawing.result(WAIT)
    processor = tiny_model[1]
    assert (answer.program.prompt_tokens, answer.program.tokens) == (len(processor.encode(_chat("hello")).ids), 7)
    assert answer.program.ended_by == "length"
    assert (drawing.program.prompt_tokens, drawing.program.tokens) == (len(processor.encode_drawing("a dog").ids), 4)


def test_previews_are_what_the_image_will_be(tiny_model):
    model, processor = tiny_model
    with Engine(model, processor) as engine:
        pieces = list(engine.submit(Drawing("a dog", seed=5, previews=3)).stream(WAIT))
    assert [type(piece) for piece in pieces] == [Preview, Image.Image]  # one for each full row before the last
    seen = pieces[0].image(model)
    assert seen.size == pieces[1].size and seen.getchannel("A").getbbox() == (0, 0, seen.width, seen.height // 2)
    assert _same(pieces[1:], generate_images(model, processor, ["a dog"], 5))


def test_pieces_go_where_they_are_wanted(tiny_model):
    received = []
    with Engine(*tiny_model) as engine:
        engine.submit(Drawing("a dog"), received.append)
    assert isinstance(received[0], Image.Image) and received[1:] == [None]


def test_candidates_are_one_request(tiny_model):
    received = []
    with Engine(*tiny_model, max_rows=4) as engine:  # the third candidate waits
        handle = engine.submit(Drawing("a dog", candidates=3, previews=1), received.append)
    assert [type(piece) for piece in received] == [Preview, Image.Image, type(None)]
    assert (handle.program.positions, handle.program.tokens) == (4, 12)


def test_candidates_leave_together(tiny_model):
    received = []
    with Engine(*tiny_model, max_rows=4) as engine:
        engine.submit(Drawing("a dog", candidates=9), received.append).cancel()
        assert isinstance(engine.submit(Drawing("a cat")).result(WAIT)[0], Image.Image)
    assert received == [None] and (engine.running, engine.waiting) == (0, 0)


def test_the_queue_has_an_end(talkative):
    with Engine(*talkative, max_rows=2, max_waiting=1) as engine:
        running = [engine.submit(_long_chat()), None]
        next(running[0].stream(WAIT))
        running[1] = engine.submit(_long_chat())
        next(running[1].stream(WAIT))
        waiting = engine.submit(_long_chat())
        with pytest.raises(Full, match="1 requests are waiting"):
            engine.submit(_long_chat())
        for handle in (waiting, *running):
            handle.cancel()
        with pytest.raises(CancelledError):
            waiting.result(WAIT)
        assert engine.submit(Drawing("a dog")).result(WAIT)


def _order_after_a_chat(model, processor, max_rows: int, requests: dict) -> list:
    """Names of requests, which all come while a chat runs, as they end."""
    ended, held = [], Event()
    model.lm_head.register_forward_hook(lambda *_: held.wait(WAIT) and None)
    with Engine(model, processor, max_rows) as engine:
        engine.submit(Chat(_chat("hello"), 1, drawing=None))
        for name, request in requests.items():
            engine.submit(request, lambda piece, name=name: piece is None and ended.append(name))
        held.set()
    return ended


def test_a_chat_waits_for_no_drawings(make_tiny_model):
    requests = {seed: Drawing("a dog", seed) for seed in range(6)}
    requests["chat"] = Chat(_chat("hello"), 1, drawing=None)
    assert _order_after_a_chat(*make_tiny_model(), 8, requests)[0] == "chat"


def test_a_drawing_waits_for_few_chats(make_tiny_model):
    requests = {number: Chat(_chat("hello"), 1, drawing=None) for number in range(20)}
    requests["drawing"] = Drawing("a dog")
    assert _order_after_a_chat(*make_tiny_model(), 4, requests).index("drawing") < 12


def test_closing_waits_so_long_and_no_longer(talkative):
    engine = Engine(*talkative)
    drawing, endless = engine.submit(Drawing("a dog")), engine.submit(_long_chat())
    engine.close(timeout=0.01)
    with pytest.raises(CancelledError):
        endless.result(WAIT)
    assert (drawing.cancelled, engine.running, engine.waiting) in {(True, 0, 0), (False, 0, 0)}


def test_one_that_fails_again_and_again_is_found_while_others_come(make_tiny_model):
    """New requests do not join a batch that looks for the culprit."""
    model, processor = make_tiny_model()
    bad = processor.encode(_chat("zebra")).ids
    straw = next(id for id in bad if id not in processor.encode(_chat("hello")).ids)

    def fail(_, args):
        if straw in args[0]:
            raise RuntimeError("the straw")

    model.get_input_embeddings().register_forward_pre_hook(fail)
    with Engine(model, processor, max_rows=4) as engine:
        handles = [engine.submit(Chat(_chat("hello"), 3, drawing=None)) for _ in range(6)]
        culprit = engine.submit(Chat(_chat("zebra"), 3, drawing=None))
        handles += [engine.submit(Chat(_chat("hello"), 3, drawing=None)) for _ in range(12)]
        with pytest.raises(RuntimeError, match="the straw"):
            culprit.result(WAIT)
        assert len({str(handle.result(WAIT)) for handle in handles}) == 1


def test_a_batch_that_is_too_large_goes_on_in_halves(make_tiny_model):
    model, processor = make_tiny_model()
    model.lm_head.register_forward_pre_hook(lambda _, args: 1 / (len(args[0]) < 3) and None)
    with Engine(model, processor) as engine:
        handles = [
            engine.submit(Chat(_chat("hello"), 9, temperature=1.0, seed=seed, drawing=None)) for seed in range(5)
        ]
        found = [handle.result(WAIT) for handle in handles]
    for seed, pieces in enumerate(found):
        assert "".join(pieces) == "".join(
            generate_text(model, processor, _chat("hello"), 9, temperature=1.0, seed=seed)
        )


def test_a_stuck_step_is_seen_and_does_not_hold_up_the_end(make_tiny_model, monkeypatch):
    monkeypatch.setattr(engine_module, "PATIENCE", 0.2)
    model, processor = make_tiny_model()
    release = Event()
    engine = Engine(model, processor)
    assert engine.busy_for == 0
    hook = model.lm_head.register_forward_hook(lambda *_: release.wait(WAIT) and None)
    handle = engine.submit(Chat(_chat("hello"), 3))
    until(lambda: engine.busy_for > 0.1)
    engine.close(timeout=0)
    assert engine.alive and engine.busy_for > 0.3
    hook.remove()
    release.set()
    with pytest.raises(CancelledError):
        handle.result(WAIT)
    until(lambda: not engine.alive)


def test_a_row_without_numbers_fails_alone(make_tiny_model):
    """NaN in what a request reads is not the others' business."""
    model, processor = make_tiny_model()
    expected = list(generate_text(model, processor, _chat("hello"), max_new_tokens=9))
    straw = next(id for id in processor.encode(_chat("zebra")).ids if id not in processor.encode(_chat("hello")).ids)
    with torch.no_grad():
        model.get_input_embeddings().weight[straw] = torch.nan
    with Engine(model, processor) as engine:
        good, bad = (engine.submit(Chat(_chat(text), 9, drawing=None)) for text in ("hello", "zebra"))
        drawn = engine.submit(Drawing("zebra", top_p=0.9))
        for handle in (bad, drawn):
            with pytest.raises(NotFinite, match="the model's logits are not finite"):
                handle.result(WAIT)
        assert good.result(WAIT) == ["".join(expected)]
