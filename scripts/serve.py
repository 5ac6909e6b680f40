"""Serve a model: an API that OpenAI's clients speak, and a page to try it in a browser.

python -m scripts.serve --model scenes
python -m scripts.serve --model scenes --host 0.0.0.0 --api-key-file key.txt

The page is at /, the API at /v1, Prometheus' metrics at /metrics. SIGTERM and Ctrl-C end it, after what runs.
Of requests, only sizes and times are logged; nothing that is sent is written to disk.
"""

import argparse
import logging
import math
from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import read_key
from scripts._load import load_model


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--name", help="what clients call the model (default: the last part of --model)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    add("--api-key-file", type=Path, metavar="FILE", help="a file with the key that clients must send")
    add("--remote-images", action="store_true", help="fetch images at http(s) addresses of public hosts; never paths")
    add("--max-rows", type=int, default=16, help="rows of a batch; a drawing takes two (default: %(default)s)")
    add("--max-queue", type=int, default=64, help="requests that wait for a place (default: %(default)s)")
    add("--max-body-mb", type=float, default=20, help="of a request (default: %(default)s)")
    add("--max-pixels", type=int, default=16_000_000, help="of an image sent (default: %(default)s)")
    add("--max-prompt", type=int, default=8000, help="characters of all messages (default: %(default)s)")
    add("--max-n", type=int, default=8, help="images drawn for a request (default: %(default)s)")
    add("--timeout", type=float, default=120, help="seconds for a request (default: %(default)s)")
    add("--grace", type=float, default=30, help="seconds to finish what runs at the end (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("max_queue", "max_body_mb", "max_pixels", "max_prompt", "max_n", "timeout", "grace"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not above 0: a limit leaves room for something")
    if args.max_rows < 2:
        raise ValueError(f"--max-rows {args.max_rows} is below 2, the rows of a drawing")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    key = read_key(args.api_key_file)
    with stop_at_once():
        from data_recipes.scenes.world import SKILLS, World
        from mllm.decode.engine import Engine
        from mllm.serve.limits import Limits
        from mllm.serve.run import listen, run_server
    world = World()
    examples = [world.render(world.scene(7, "held_out", skill)) for skill in SKILLS]
    most = {"body": int(args.max_body_mb * 2**20), "pixels": args.max_pixels, "prompt": args.max_prompt}
    most |= {"n": args.max_n, "queue": args.max_queue, "seconds": args.timeout, "grace": args.grace}
    name = args.name or Path(args.model).resolve().name
    with listen(args.host, args.port) as listener:
        model, processor = load_model(args.model)
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("mllm.serve").setLevel(logging.INFO)
        engine = Engine(model, processor, args.max_rows, args.max_queue)
        try:
            run_server(engine, listener, args.host, name, Limits(**most), key, examples, args.remote_images)
        finally:
            engine.close(timeout=0)


if __name__ == "__main__":
    cli(main)
