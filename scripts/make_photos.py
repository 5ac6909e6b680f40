"""Photographs for an image tokenizer's training, from unpacked packages: see docs/data.md.

apt-get download mate-backgrounds plasma-workspace-wallpapers gcompris-qt-data
for package in *.deb; do dpkg-deb -x $package packages; done
python -m scripts.make_photos packages --out photos
"""

from pathlib import Path

from scripts._errors import Parser, cli


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="where the packages were unpacked")
    parser.add_argument("--out", type=Path, default=Path("photos"), help="a new folder (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise ValueError(f"no folder at {args.folder}")
    if args.out.exists():
        raise ValueError(f"{args.out} is there already: name another folder with --out")
    from data_recipes.photos import photographs

    count = 0
    for name, image in photographs(args.folder):
        (args.out / "photo").mkdir(parents=True, exist_ok=True)  # the folder's name is their caption
        image.save(args.out / "photo" / f"{name}.jpg", quality=92)
        count += 1
    if not count:
        raise ValueError(f"{args.folder} holds no wallpapers (.jpg) and no resource files (.rcc) with photographs")
    print(f"{args.out}: {count} photographs")


if __name__ == "__main__":
    cli(main)
